"""From one phase to the next: carries weights over, checked at load, and reports embeddings that were never used.

With one multilingual vocabulary the English phase never sees most tokens: through the tied head their embeddings get
only the softmax's negative gradients, which can draw them together. So norms and cosines are measured, and the recipe
can reinitialise these rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NotRequired, TypedDict

import torch
import torch.nn.functional as F

from dist_metaxlm.deepspeed_adapter import optimizer_state
from dist_metaxlm.deepspeed_adapter.engine_protocol import Engine
from dist_metaxlm.errors import UserError
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.modeling.initialisation import initial_values
from dist_metaxlm.objectives.model import OWN
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.recipe.schema import CarryOver, Recipe
from dist_metaxlm.training.checkpointing.checkpoint import Checkpoint, newest_checkpoint, saved_moments
from dist_metaxlm.training.checkpointing.manifest import weights_digest
from dist_metaxlm.training.run.before import Before
from dist_metaxlm.training.run.initial_weights import differing_fields

Statistics = dict[str, dict[str, float]]
"""seen or unseen -> figure -> value."""
TABLE = "embedding.tokens.weight"
HEAD_BIAS = "head.bias"


class ObjectiveWeights(TypedDict):
    """Names of the objectives' own weights."""

    carried: list[str]
    fresh: list[str]


_From = TypedDict("_From", {"from": str})


class CarryOverReport(_From):
    """carry_over.json: policy, source and embedding statistics."""

    phase: NotRequired[str | None]
    """The phase before, if it is one of the same run; absent in reports of older versions: meta."""
    pinned: NotRequired[bool]
    """Whether a certain checkpoint was asked for (`meta@400`) instead of the end of the phase."""
    step: int
    weights: str
    weights_digest: str | None
    tokenizer: str
    policy: dict[str, str]
    """Fields of the phase's `carry_over`."""
    data_cursor: str
    unseen_tokens: int
    embeddings_before: Statistics
    embeddings_after: NotRequired[Statistics]
    """Set when the policy is applied."""
    objective_weights: NotRequired[ObjectiveWeights]


@dataclass(frozen=True)
class Carried:
    """The weights that the next phase starts from."""

    checkpoint: Checkpoint
    unseen: torch.Tensor
    """[V] bool: tokens that were never input or target in the previous phase."""
    report: CarryOverReport
    """Policy, source and embedding statistics, for the log and for carry_over.json."""
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    """The loaded tensors, whole and by logical name, read from their files on use: initial values of the masters."""


def carry_over(encoder: Encoder, recipe: Recipe, before: Before, policy: CarryOver, tokenizer_hash: str) -> Carried:
    """Load the weights of the phase before into `encoder` and apply the policy to unseen embeddings.

    Raises:
        UserError: if the phase before is missing or unfinished, or has another tokenizer or shape.
    """
    checkpoint = _checked(recipe, before, tokenizer_hash)
    if policy.optimizer == "carry" and "average" in checkpoint.facts:
        raise UserError(
            f"{checkpoint.folder} is an average of checkpoints, which has no moments; set "
            f"phases.{before.phase}.carry_over={{optimizer: reset}}"
        )
    weights = dict(checkpoint.tensors("weights"))  # views of the mapped files: nothing is read yet
    unseen = ~checkpoint.tensors("progress")["seen"].bool()
    report: CarryOverReport = {
        "from": str(checkpoint.folder),
        "phase": before.folder.phase if before.same_run else None,
        "pinned": before.mark is not None,
        "step": checkpoint.step,
        "weights": "carried",
        "weights_digest": weights_digest(checkpoint.folder),
        "tokenizer": tokenizer_hash,
        "policy": policy.model_dump(),
        "data_cursor": "own, from the start",
        "unseen_tokens": int(unseen.sum()),
        "embeddings_before": embedding_statistics(weights[TABLE], unseen),
    }
    if policy.unseen_embeddings == "reinitialise":
        for name in (TABLE, HEAD_BIAS):
            fresh = initial_values(name, weights[name].shape, encoder.seed, recipe.model.std_of(name))
            weights[name] = torch.where(unseen.view(-1, *[1] * (fresh.dim() - 1)), fresh, weights[name])
    encoder.load_logical(weights)
    report["embeddings_after"] = embedding_statistics(weights[TABLE], unseen)
    return Carried(checkpoint, unseen, report, weights)


@torch.no_grad()
def carry_own(model: torch.nn.Module, carried: Carried) -> None:
    """Load the objectives' own weights that the previous phase also had; the others keep their initial values.

    The report names both under `objective_weights`.
    """
    saved = carried.checkpoint.tensors("objectives")
    own = {name: parameter for name, parameter in model.named_parameters() if name.startswith(OWN)}
    for name in set(own) & set(saved):
        own[name].copy_(saved[name])
        carried.weights[name] = saved[name]
    if own:
        carried.report["objective_weights"] = {
            "carried": [name for name in own if name in saved],
            "fresh": [name for name in own if name not in saved],
        }


def carry_optimizer(engine: Engine, carried: Carried) -> None:
    """Load the moments and step count of the previous phase; reinitialised rows get zero moments (collective)."""
    moment_of = saved_moments(engine, carried.checkpoint)
    reset = carried.report["policy"]["unseen_embeddings"] == "reinitialise"
    optimizer_state.set_adam_step(engine, int(carried.checkpoint.facts["adam_step"]))
    for name, param in optimizer_state.named_parameters(engine):
        for moment in optimizer_state.MOMENTS:
            value = moment_of(name, moment)
            if value is None:
                assert name.startswith(OWN), f"no {moment} of {name}"
                continue  # of an objective that is new in this phase
            if reset and name in (TABLE, HEAD_BIAS):
                value = value.clone()  # it is a view of the checkpoint's file
                value[carried.unseen] = 0.0
            optimizer_state.set_full_moment(engine, name, param, moment, value)


def embedding_statistics(table_VH: torch.Tensor, unseen_V: torch.Tensor) -> Statistics:
    """Mean norm, and mean cosine between two different rows, of the seen and of the unseen embeddings."""
    statistics = {}
    for name, rows in (("seen", ~unseen_V), ("unseen", unseen_V)):
        count = int(rows.sum())
        if count == 0:
            continue
        part = table_VH[rows].float()
        unit_sum = F.normalize(part, dim=-1).sum(0)
        # |sum of unit vectors|^2 counts each pair twice and each row with itself once.
        cosine = (float(unit_sum @ unit_sum) - count) / max(1, count * (count - 1))
        statistics[name] = {"tokens": float(count), "mean_norm": float(part.norm(dim=-1).mean()), "mean_cosine": cosine}
    return statistics


def describe(report: CarryOverReport) -> list[str]:
    """Log lines about the carry-over."""
    policy = report["policy"]
    lines = [
        f"carried over from {report['from']}: weights; tokenizer {report['tokenizer'][:12]} (equal); "
        f"optimiser {policy['optimizer']}; learning rate {policy['schedule']}; data cursor own; "
        f"{report['unseen_tokens']} unseen embeddings {policy['unseen_embeddings']}"
    ]
    for when, statistics in (("before", report["embeddings_before"]), ("after", report["embeddings_after"])):
        lines += [
            f"embeddings {when}, {kind}: {values['tokens']:.0f}, mean norm {values['mean_norm']:.3f}, "
            f"mean cosine {values['mean_cosine']:.3f}"
            for kind, values in statistics.items()
        ]
    nothing: ObjectiveWeights = {"carried": [], "fresh": []}
    own = report.get("objective_weights", nothing)
    for names, word in (
        (own["carried"], "carried over"),
        (own["fresh"], "freshly initialised, the previous phase had none"),
    ):
        if names:
            lines.append(f"weights of objectives, {word}: {', '.join(names)}")
    return lines


def _checked(recipe: Recipe, before: Before, tokenizer_hash: str) -> Checkpoint:
    before.check()
    checkpoint = newest_checkpoint(before.folder.checkpoints, before.step)
    if checkpoint is None:
        raise UserError(
            f"no intact checkpoint{before.of_step} in {before.folder.checkpoints}; restore it or train the phase again with "
            "--resume never"
        )
    if checkpoint.facts["tokenizer"] != tokenizer_hash:
        raise UserError(
            f"{checkpoint.folder} was trained with tokenizer {checkpoint.facts['tokenizer'][:12]}, the store "
            f"has {tokenizer_hash[:12]}; give the data.directory of the previous phase"
        )
    if checkpoint.facts["vocab_size"] != recipe.model.vocab_size:
        raise UserError(
            f"{checkpoint.folder} has a vocabulary of {checkpoint.facts['vocab_size']}, the recipe "
            f"{recipe.model.vocab_size}; both phases share one model"
        )
    differing = differing_fields(recipe.model, load_recipe(before.folder.path / "recipe.yaml").model)
    if differing:
        raise UserError(
            f"{before.folder.path} trained another model than the recipe's, but both phases share one; set {differing}"
        )
    return checkpoint
