"""Cross-lingual contrast with a momentum encoder and a queue: XlCo of InfoXLM (arXiv 2007.07834).

A query is the `<s>` state of a block of the model, its key that of the translation in the momentum encoder, an average of
the model's weights over the steps (MoCo, arXiv 1911.05722). The loss is the cross-entropy of selecting the query's own key
among itself and the queue, which holds the newest keys of the whole batch. Formula, temperature 0.25, raw products and the
projection are those of the released code (microsoft/unilm, infoxlm: criterions/xlco.py, models/infoxlm.py).

Differences from the released code:

* All micro-steps of a step use the queue of its start. Keys join it after the optimiser step in the order of their samples,
  so the loss does not depend on ranks and micro-batches.
* The queue begins empty, and only filled places are used (the released code fills it with the momentum encoder's keys
  before the first step).
* A key with the same words as the query or its key is not a negative.
* With `group`, the keys of a group of examples are negatives of each other too. Keys of the queue are older than the own
  one, and a fast-changing model can distinguish them by age instead of meaning. Keys of the step are not older, and may be
  the only negatives (docs/contrast.md).

Shapes: E examples of a micro-step, G of a group, N of a step, Q places of the queue, F of them filled, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.modeling.initialisation import initial_values
from dist_metaxlm.objectives.contrast import mean_pool
from dist_metaxlm.objectives.loss import Losses, ObjectiveLoss
from dist_metaxlm.parallel.groups import groups
from dist_metaxlm.parallel.process_group import gather_rows
from dist_metaxlm.planning.stages import Stage
from dist_metaxlm.recipe.schema import CrossLingualContrast

PROJECTION = "objectives.xlco.projection.weight"
"""Logical name of the projection [H, H]; `PretrainingModel` has it under this name too."""
QUEUE = "queue"
"""Name of the queue in a checkpoint, next to the momentum weights."""


class XlcoHead(nn.Module):
    """The trained part of the objective: a projection of the `<s>` state, without bias."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        config = encoder.config
        self.projection = nn.Linear(config.hidden, config.hidden, bias=False, device="meta")
        values = initial_values(PROJECTION, self.projection.weight.shape, encoder.seed, config.init_std)
        self.projection.weight = nn.Parameter(values)


def representations(
    states_TH: torch.Tensor, batch: PackedBatch, projection_HH: torch.Tensor | None, config: CrossLingualContrast
) -> torch.Tensor:
    """[E, H]: representations of the sequences that begin at `batch.starts`, in fp32 (fp64 of fp64 states)."""
    assert batch.starts is not None
    if config.pooling == "mean":
        found_EH = mean_pool(states_TH, batch)[batch.document_ids[batch.starts]].to(states_TH.dtype)
    else:
        found_EH = states_TH.index_select(0, batch.starts)
    if projection_HH is not None:
        found_EH = F.linear(found_EH, projection_HH)
    found_EH = found_EH.to(_exact(found_EH))
    return F.normalize(found_EH, dim=-1) if config.normalise else found_EH


def xlco_losses(
    query_EH: torch.Tensor, key_EH: torch.Tensor, others: Sequence[tuple[torch.Tensor, torch.Tensor]], temperature: float
) -> torch.Tensor:
    """[E]: cross-entropy of each query's own key against itself and other keys.

    `others`: pairs of other keys [F, H] and a bool mask [E, F] of the queries that exclude each of them.
    """
    positive_E1 = (query_EH * key_EH).sum(-1, keepdim=True)
    negatives_EF = [(query_EH @ keys_FH.T).masked_fill(left_out_EF, -torch.inf) for keys_FH, left_out_EF in others]
    logits = torch.cat([positive_E1, *negatives_EF], dim=1) / temperature
    return torch.logsumexp(logits, dim=1) - logits[:, 0]


class MomentumContrast:
    """Momentum encoder and queue of a phase. Both are bit-identical on every rank.

    The averages are fp32 (fp64 for an fp64 model). In half precision the encoder runs on a rounded copy of them, and the
    model's rounded weights are averaged, which every rank has whole. Blocks above `config.layer` are left out.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor], encoder: Encoder, config: CrossLingualContrast) -> None:
        """Begin with `weights`, the model's by logical name, and an empty queue."""
        self.config = config
        like = weights["embedding.tokens.weight"]
        with torch.device("meta"):
            own = Encoder(encoder.config, encoder.seed, stage=Stage(range(config.layer), last=False))
        self.encoder = own.to_empty(device=like.device).to(like.dtype).eval().requires_grad_(False)
        self._running = dict(self.encoder.named_parameters())
        if config.projection:
            self._running[PROJECTION] = nn.Parameter(torch.empty_like(weights[PROJECTION]), requires_grad=False)
        self.average: dict[str, torch.Tensor] = {}
        """Logical name -> momentum weight, exactly."""
        for name, parameter in self._running.items():
            parameter.data.copy_(weights[name].detach())
            exact = _exact(parameter)
            self.average[name] = parameter.data if parameter.dtype == exact else parameter.data.to(exact)
        self.queue = torch.zeros(config.queue, encoder.config.hidden, dtype=_exact(like), device=like.device)
        """[Q, H]: a ring of keys."""
        self.texts = torch.zeros(config.queue, 2, dtype=torch.int64, device=like.device)
        """[Q, 2]: text hashes of each key and its query (`PackedBatch.texts`)."""
        self.enqueued = 0
        """Number of keys that have joined the queue so far."""
        self.before_change: Callable[[], None] = lambda: None
        """Called before the memory changes: a checkpoint that is being written may still read it."""
        self._waiting: list[tuple[torch.Tensor, torch.Tensor]] = []

    def losses(
        self, states_TH: torch.Tensor, batch: PackedBatch, projection_HH: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss of each of this rank's queries, from the states of `batch` after block `config.layer`; stores the keys.

        Returns:
            losses [E] fp32, and the index [E] of the languages of each one's first pair.
        """
        assert batch.texts is not None
        assert batch.pair_languages is not None
        query_EH = representations(states_TH, batch, projection_HH, self.config)
        key_EH = self._keys(batch)
        filled = min(self.enqueued, self.config.queue)
        others, joining = [(self.queue[:filled], self.texts[:filled])], (key_EH, batch.texts)
        if self.config.group is not None:
            if self._shares_groups:
                joining = gather_rows(key_EH), gather_rows(batch.texts)
            others.append(joining)
        if self.config.queue:
            self._waiting.append(joining)
        # The own key has the query's own words, so the group's mask excludes it.
        allowed = [(keys, same_text(batch.texts, texts)) for keys, texts in others]
        losses = xlco_losses(query_EH, key_EH, allowed, self.config.temperature)
        return losses, batch.pair_languages[:: self.config.pairs_together]

    @property
    def _shares_groups(self) -> bool:
        """Whether each group spans all ranks, which then gather its keys; else each rank has its own groups."""
        group = self.config.group
        return group is not None and self.config.share_of_group(groups().data_size) != group

    @torch.no_grad()
    def _keys(self, batch: PackedBatch) -> torch.Tensor:
        assert batch.keys is not None
        return representations(self.encoder(batch.keys), batch.keys, self._running.get(PROJECTION), self.config)

    @torch.no_grad()
    def update(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Update the averages after an optimiser step, then enqueue the step's keys (collective if there are any)."""
        self.before_change()
        keep = self.config.momentum
        for name, parameter in self._running.items():
            average = self.average[name].mul_(keep).add_(weights[name].detach(), alpha=1 - keep)
            if parameter.dtype != average.dtype:
                parameter.copy_(average)
        if self._waiting:
            keys, texts = (torch.cat(parts) for parts in zip(*self._waiting, strict=True))
            if not self._shares_groups:
                keys, texts = gather_rows(keys), gather_rows(texts)
            self._waiting = []
            self._enqueue(keys, texts)

    def _enqueue(self, keys_NH: torch.Tensor, texts_N2: torch.Tensor) -> None:
        """Overwrite the oldest keys by the step's keys, in the order of its examples."""
        size, count = self.config.queue, len(keys_NH)
        passed = max(0, count - size)  # of more keys than places only the last are kept
        places = (torch.arange(passed, count, device=keys_NH.device) + self.enqueued) % size
        self.queue.index_copy_(0, places, keys_NH[passed:])
        self.texts.index_copy_(0, places, texts_N2[passed:])
        self.enqueued += count

    def large(self) -> dict[str, torch.Tensor]:
        """Tensors for a checkpoint, without copying: fp32, equal on every rank."""
        return self.average | ({QUEUE: self.queue} if self.config.queue else {})

    def small(self) -> dict[str, torch.Tensor]:
        """The remaining state: a few numbers per key."""
        return {"xlco.texts": self.texts, "xlco.enqueued": torch.tensor(self.enqueued)}

    @torch.no_grad()
    def restore(self, large: Mapping[str, torch.Tensor], small: Mapping[str, torch.Tensor]) -> None:
        """Restore the results of `large` and `small`."""
        for name, average in self.average.items():
            average.copy_(large[name])
            self._running[name].data.copy_(average)
        if self.config.queue:
            self.queue.copy_(large[QUEUE])
        self.texts.copy_(small["xlco.texts"])
        self.enqueued = int(small["xlco.enqueued"])


class XlcoLoss(ObjectiveLoss[CrossLingualContrast]):
    """Cross-entropy of selecting the own key among others."""

    def __init__(self, config: CrossLingualContrast, encoder: Encoder) -> None:
        """See `ObjectiveLoss`."""
        self._config, self._encoder = config, encoder
        self.module: XlcoHead | None = XlcoHead(encoder) if config.projection else None
        self._memory: MomentumContrast | None = None

    def losses(self, encoder: Encoder, states_TH: torch.Tensor, batch: PackedBatch, config: CrossLingualContrast) -> Losses:
        """See `ObjectiveLoss`; one loss per example. The memory must exist."""
        assert self._memory is not None
        projection = None if self.module is None else self.module.projection.weight
        losses, languages = self._memory.losses(states_TH, batch, projection)
        return Losses(losses.sum(), losses.detach(), languages)

    def memory(self, weights: Mapping[str, torch.Tensor]) -> MomentumContrast:
        """See `ObjectiveLoss`: momentum encoder and queue."""
        if self._memory is None:
            self._memory = MomentumContrast(weights, self._encoder, self._config)
        return self._memory


def same_text(texts_E2: torch.Tensor, others_F2: torch.Tensor) -> torch.Tensor:
    """[E, F] bool: whether query or key of an example has the words of query or key of another."""
    same = [texts_E2[:, own].unsqueeze(1) == others_F2[:, other] for own in range(2) for other in range(2)]
    return same[0] | same[1] | same[2] | same[3]


def _exact(tensor: torch.Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
