"""Sentence contrast on translation pairs: InfoNCE (arXiv 1807.03748) on mean-pooled states, after InfoXLM (2007.07834).

Differences from InfoXLM's loss, which is in xlco.py: mean pooling and cosine instead of the `<s>` state and a raw product,
and negatives from a group of pairs of fixed size (set by the recipe) instead of a momentum queue.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.objectives.loss import Losses, ObjectiveLoss
from dist_metaxlm.parallel.groups import groups
from dist_metaxlm.parallel.process_group import gather_rows
from dist_metaxlm.recipe.schema import Contrast


def mean_pool(states_TH: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
    """[D, H]: mean state of each document of the pack, including its special tokens, in fp32 (fp64 of fp64 states)."""
    documents = batch.cu_seqlens.numel() - 1
    exact = torch.promote_types(states_TH.dtype, torch.float32)
    sums = states_TH.new_zeros(documents, states_TH.size(1), dtype=exact)
    sums = sums.index_add(0, batch.document_ids, states_TH.to(exact))
    lengths = batch.cu_seqlens.diff().to(sums.dtype)
    return sums / lengths.unsqueeze(1)


def document_keys(batch: PackedBatch) -> torch.Tensor:
    """[D] int64 hashes: equal for documents with the same tokens; others differ, except for 64-bit collisions."""
    mixed = batch.tokens * -7046029254386353131 + batch.positions * -4417276706812531889
    mixed = (mixed ^ (mixed >> 32)) * -4658895280553007687
    mixed = mixed ^ (mixed >> 29)
    documents = batch.cu_seqlens.numel() - 1
    return mixed.new_zeros(documents).index_add(0, batch.document_ids, mixed)


def contrast_losses(states_TH: torch.Tensor, batch: PackedBatch, config: Contrast) -> tuple[torch.Tensor, torch.Tensor]:
    """InfoNCE in both directions for the pairs of one group, from the states of `batch` after block `config.layer`.

    The batch holds this rank's P pairs: a whole group (P = group), or its share of a group that spans all
    data-parallel ranks (P * ranks = group). In the second case every rank computes the loss of the whole group with the
    others' vectors as constants: the gradient of its own vectors is then complete without a collective in the backward.

    If a sentence occurs twice in a group, its other translations are not negatives: the sum excludes them.

    Returns:
        losses [group or P] fp32, mean of the two directions for each pair, and the index of each pair's languages.
        Only this rank's own pairs count in metrics: see `owned_pairs`.
    """
    assert batch.pairs is not None
    assert batch.pair_languages is not None
    pooled_DH = F.normalize(mean_pool(states_TH, batch), dim=-1)
    left_PH, right_PH = pooled_DH[batch.pairs[:, 0]], pooled_DH[batch.pairs[:, 1]]
    keys_P2, languages = document_keys(batch)[batch.pairs], batch.pair_languages
    if batch.pairs.size(0) < config.group:
        left_PH, right_PH = gather_rows(left_PH), gather_rows(right_PH)
        keys_P2, languages = gather_rows(keys_P2), gather_rows(languages)
    same_GG = (keys_P2.unsqueeze(0) == keys_P2.unsqueeze(1)).any(-1).fill_diagonal_(False)
    logits_GG = (left_PH @ right_PH.T / config.temperature).masked_fill(same_GG, -torch.inf)
    labels = torch.arange(logits_GG.size(0), device=logits_GG.device)
    forth = F.cross_entropy(logits_GG, labels, reduction="none")
    back = F.cross_entropy(logits_GG.T, labels, reduction="none")
    return (forth + back) / 2, languages


def owned_pairs(losses: torch.Tensor, batch: PackedBatch) -> slice:
    """The slice of a group's losses for this rank's own pairs, so that sums over ranks count each pair once."""
    assert batch.pairs is not None
    own = batch.pairs.size(0)
    if own == losses.size(0):
        return slice(0, own)
    grid = groups()
    assert own * grid.data_size == losses.size(0)
    return slice(grid.data_rank * own, (grid.data_rank + 1) * own)


class ContrastLoss(ObjectiveLoss[Contrast]):
    """InfoNCE within groups of pairs."""

    def losses(self, encoder: Encoder, states_TH: torch.Tensor, batch: PackedBatch, config: Contrast) -> Losses:
        """See `ObjectiveLoss`; one loss per pair."""
        losses, languages = contrast_losses(states_TH, batch, config)
        own = owned_pairs(losses, batch)
        return Losses(losses.sum(), losses.detach()[own], languages[own])
