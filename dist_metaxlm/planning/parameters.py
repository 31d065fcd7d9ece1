"""Parameter counts of an encoder by part, from its shape alone."""

from __future__ import annotations

from dataclasses import dataclass

from dist_metaxlm.planning.stages import Stage
from dist_metaxlm.recipe.schema import ModelConfig, Objective

POSITION_OFFSET = 2
"""Rows that XLM-R's position table has before position 0."""


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters; `split`: divided by tensor parallelism; `whole`: held by every tensor rank."""

    word_embedding: int
    """Word embedding [V, H], also the output projection; split over the vocabulary."""
    positions: int
    """Learned positions and the one token type (family xlmr)."""
    embedding_norm: int
    """Norm after the embedding."""
    blocks_split: int
    """All blocks: attention and feed-forward matrices and the biases of their split outputs."""
    blocks_whole: int
    """All blocks: norms and the biases after each summing matrix."""
    final_norm: int
    """Norm after the last block (pre-norm only)."""
    head: int
    """Dense layer and norm before the output projection."""
    output_bias: int
    """Bias of the output projection [V]; split over the vocabulary."""

    @property
    def total(self) -> int:
        """All parameters, the tied word embedding counted once."""
        return (
            self.word_embedding
            + self.positions
            + self.embedding_norm
            + self.blocks_split
            + self.blocks_whole
            + self.final_norm
            + self.head
            + self.output_bias
        )

    @property
    def without_embeddings(self) -> int:
        """All parameters except the word embedding and the positions."""
        return self.total - self.word_embedding - self.positions


def count_parameters(model: ModelConfig) -> ParameterCounts:
    """Parameters of `Encoder(model)` with its masked-LM head."""
    modern = model.family == "modern"
    hidden, ffn = model.hidden, model.ffn
    bias = 0 if modern else 1
    norm = hidden * (1 + bias)
    attention = 4 * hidden * hidden + bias * 3 * hidden
    feed_forward = hidden * ffn * (3 if modern else 2) + bias * ffn
    # Post-norm and modern have a norm after the embedding; the first modern block then has no norm itself.
    embedding_norm = norm if modern or model.norm == "post" else 0
    block_norms = 2 * model.layers - (1 if modern else 0)
    return ParameterCounts(
        word_embedding=model.vocab_size * hidden,
        positions=0 if modern else (model.max_positions + POSITION_OFFSET + 1) * hidden,
        embedding_norm=embedding_norm,
        blocks_split=model.layers * (attention + feed_forward),
        blocks_whole=model.layers * bias * 2 * hidden + block_norms * norm,
        final_norm=norm if model.norm == "pre" else 0,
        head=hidden * hidden + bias * hidden + norm,
        output_bias=model.vocab_size,
    )


def largest_matrix(model: ModelConfig) -> int:
    """Elements of the largest single parameter: the token embedding, or a matrix of a block."""
    return model.hidden * max(model.vocab_size, model.ffn, 3 * model.hidden)


@dataclass(frozen=True)
class StageParameters:
    """Numbers of parameters on one tensor rank of a pipeline stage, before ZeRO."""

    own: int
    """Parameters that it updates."""
    copied: int = 0
    """Its part of the last stage's copy of the token embedding: weights and gradients without optimiser state."""

    @property
    def total(self) -> int:
        """All parameters that it holds."""
        return self.own + self.copied


def stage_parameters(model: ModelConfig, stage: Stage, tensor: int = 1) -> StageParameters:
    """Parameters on a rank of `stage` if `tensor` ranks share it; the vocabulary is padded to a multiple of `tensor`."""
    counts, rows = count_parameters(model), -(-model.vocab_size // tensor)
    # The first block of family modern has no norm; all others are identical.
    absent = counts.embedding_norm if model.family == "modern" else 0
    split = counts.blocks_split // model.layers * len(stage.blocks)
    whole = (counts.blocks_whole + absent) // model.layers * len(stage.blocks) - absent * (0 in stage.blocks)
    own = split // tensor + whole
    if stage.first:
        own += rows * model.hidden + counts.positions + counts.embedding_norm
    if stage.last:
        own += counts.final_norm + counts.head + rows
    return StageParameters(own, rows * model.hidden if stage.last and not stage.first else 0)


def copied_parameters(model: ModelConfig, objective: Objective) -> int:
    """Weights of the untrained copy of the model that an objective keeps on every rank, its own parameters included."""
    if objective.copied_layers is None:
        return 0
    upto = stage_parameters(model, Stage(range(objective.copied_layers), last=False)).own
    return upto + objective.own_parameters(model)
