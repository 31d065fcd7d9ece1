"""Floating-point operations of training: forward and backward, counted once each, with the head on targets only.

Per token, fwd + bwd:  6 L (4 h^2 + 2 h f) + 12 L s h + 6 r (V h + h^2)
with L blocks, width h, feed-forward width f (3 h f for GeGLU), s = sum(len^2) / sum(len) the length a token attends
over, r targets per token. A matrix product of m x n weights is 2 m n a token forward and twice that backward; the
embedding lookup, norms, activations and recomputation are not counted.
"""

from __future__ import annotations

from dist_metaxlm.recipe.schema import ModelConfig, Objective, PhaseConfig
from dist_metaxlm.recipe.stages import stages


def training_flops(
    model: ModelConfig,
    tokens: float,
    squared_lengths: float,
    targets: float,
    layers: int | None = None,
    causal: bool = False,
) -> float:
    """Operations of one forward and backward pass over packed documents.

    tokens: all tokens of the pack. squared_lengths: sum over documents of length^2. targets: positions that reach the
    vocabulary. layers: blocks that are run (default: all). Local layers of family modern attend over at most
    `local_window` tokens; a shorter document counts with its length. causal: a token attends over half as many.
    """
    run = model.layers if layers is None else layers
    hidden, matrices = model.hidden, 3 if model.family == "modern" else 2
    linear = 6 * run * (4 * hidden * hidden + matrices * hidden * model.ffn) * tokens
    attended = run * squared_lengths
    if model.family == "modern":
        all_over = -(-run // model.global_every)
        attended = all_over * squared_lengths + (run - all_over) * min(squared_lengths, model.local_window * tokens)
    head = 6 * targets * (model.vocab_size * hidden + hidden * hidden)
    return float(linear + 12 * hidden * attended / (2 if causal else 1) + head)


def flops_per_token(model: ModelConfig, length: float, target_share: float, layers: int | None = None) -> float:
    """Operations per token, fwd + bwd, of documents of `length` tokens with `target_share` targets per token."""
    return training_flops(model, 1.0, length, target_share, layers)


def objective_flops(model: ModelConfig, objective: Objective, sequence_length: int, mask_rate: float) -> float:
    """Operations of one step with `objective`, upper bound: full windows, longest sentences."""
    total = objective.other_flops(model, sequence_length)
    for encoder_pass in objective.passes(sequence_length, mask_rate):
        both_ways = training_flops(
            model,
            encoder_pass.tokens,
            encoder_pass.tokens * encoder_pass.document,
            encoder_pass.targets,
            encoder_pass.layers,
            encoder_pass.causal,
        )
        total += both_ways if encoder_pass.backward else both_ways / 3
    return total


def step_flops(model: ModelConfig, phase: PhaseConfig) -> float:
    """Operations of objective optimiser step with all objectives (`mixing: sum`), upper bound."""
    return sum(objective_flops(model, objective, phase.sequence_length, phase.mask_rate) for objective in phase.objectives)


def phase_flops(model: ModelConfig, phase: PhaseConfig) -> float:
    """Operations of all steps of a phase, upper bound."""
    own, total = stages(phase), 0.0
    for stage, following in zip(own, [*own[1:], None], strict=True):
        end = phase.total_steps if following is None else min(phase.total_steps, following.first_step)
        total += max(0, end - stage.first_step) * step_flops(model, stage.phase)
    return total
