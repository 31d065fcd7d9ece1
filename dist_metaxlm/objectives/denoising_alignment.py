"""Denoising word alignment: point from a masked token to its translation (XLM-Align, arXiv 2106.06381, section 3.2).

The labels come from the same network (section 3.1): the unmasked pair without dropout and without gradient, inner products
of the states after block `layer`, two Sinkhorn iterations, iterative mutual argmax (objectives/word_alignment.py). Then, on
the masked pair, every masked token with a label points to one token of the other sentence. One linear layer makes the
queries (masked tokens), another the keys (tokens of the other sentence); scores are scaled by sqrt(H). Masked tokens of
both sentences are queries.

If a token has several labels, the one with the largest transport weight is used (the released code uses the last).
Nothing waits for the device, and shapes do not depend on the labels.

Shapes: W windows, L tokens of a window, T = W * L, M targets, H hidden.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import nn

from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.data.special_tokens import EOS, PAD
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.modeling.initialisation import initialise
from dist_metaxlm.objectives.loss import Losses, ObjectiveLoss
from dist_metaxlm.objectives.word_alignment import itermax, sinkhorn
from dist_metaxlm.recipe.schema import DenoisingAlignment


class Pointer(nn.Module):
    """The two linear layers that the objective adds to the model; exports do not contain them.

    The released code also has a bias for the keys. It adds the same value to all scores of a token, so it has no effect.
    """

    def __init__(self, encoder: Encoder) -> None:
        """Initial values as for `encoder`'s layers: keyed by seed and logical name, biases zero.

        Under `torch.device("meta")` only the shapes exist.
        """
        super().__init__()
        hidden, home = encoder.config.hidden, torch.get_default_device()
        with torch.device("meta"):  # the layers' own initialisation would be discarded
            self.query, self.key = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden, bias=False)
        if home.type != "meta":
            self.to_empty(device=home)
            initialise(nn.ModuleDict({"objectives": nn.ModuleDict({"dwa": self})}), encoder.seed, encoder.config.init_std)


@dataclass(frozen=True)
class Sides:
    """The pair and the sentence of every token; special tokens and padding belong to neither sentence."""

    first: torch.Tensor
    """[W, L] bool."""
    second: torch.Tensor
    """[W, L] bool."""
    pair: torch.Tensor
    """[W, L] int64: equal for tokens of one pair."""

    @property
    def opposite(self) -> torch.Tensor:
        """[W, L, L] bool: the first token is in a pair's first sentence and the second token in its second."""
        return (self.first.unsqueeze(2) & self.second.unsqueeze(1)) & (self.pair.unsqueeze(2) == self.pair.unsqueeze(1))


def unmasked(batch: PackedBatch) -> torch.Tensor:
    """[T] the tokens before masking."""
    return batch.tokens.scatter(0, batch.targets, batch.target_tokens)


def find_sides(tokens: torch.Tensor, batch: PackedBatch) -> Sides:
    """Sides of the documents `<s> a </s> b </s>` of a batch, from its unmasked `tokens` [T]."""
    ends = (tokens == EOS).cumsum(0)
    starts = torch.arange(tokens.numel(), device=tokens.device) - batch.positions
    before = ends - ends[starts]  # a document begins with <s>
    word = (batch.positions > 0) & (tokens != EOS) & (tokens != PAD)
    shape = (-1, batch.window)
    return Sides((word & (before == 0)).view(shape), (word & (before == 1)).view(shape), starts.view(shape))


@torch.no_grad()
def self_labels(encoder: Encoder, batch: PackedBatch, config: DenoisingAlignment) -> tuple[torch.Tensor, Sides]:
    """[W, L] int64: window position of the token that each token is aligned with, -1 for unaligned tokens."""
    tokens = unmasked(batch)
    sides, training = find_sides(tokens, batch), encoder.training
    encoder.eval()
    try:
        states = encoder(replace(batch, tokens=tokens), last_layer=config.layer)
    finally:
        encoder.train(training)
    states = states.to(torch.promote_types(states.dtype, torch.float32)).view(-1, batch.window, states.size(-1))
    allowed = sides.opposite
    plan, _ = sinkhorn(states @ states.transpose(1, 2), allowed, config.sinkhorn_iterations)
    weights = plan * itermax(plan, allowed, config.rounds)
    forth, back = weights.max(2), weights.max(1)
    labels = torch.where(sides.first, forth.indices, back.indices)
    return labels.masked_fill(torch.where(sides.first, forth.values, back.values) <= 0, -1), sides


def denoising_losses(
    encoder: Encoder, pointer: Pointer, states_TH: torch.Tensor, batch: PackedBatch, config: DenoisingAlignment
) -> tuple[torch.Tensor, torch.Tensor]:
    """Negative log likelihood of the label of every masked token, from the final states of the masked `batch`.

    Returns:
        losses [M] fp32, 0 for a target without a label (so the loss is divided by the number of targets, which the recipe
        fixes), and for each the index [M] of its language pair.
    """
    labels_WL, sides = self_labels(encoder, batch, config)
    window_M = torch.div(batch.targets, batch.window, rounding_mode="floor")
    label_M = labels_WL.view(-1)[batch.targets]
    scores_ML = pointer_scores(pointer, states_TH, batch)
    asks_first_M = sides.first.view(-1)[batch.targets].unsqueeze(1)
    other_ML = torch.where(asks_first_M, sides.second[window_M], sides.first[window_M])
    other_ML &= sides.pair[window_M] == sides.pair.view(-1)[batch.targets].unsqueeze(1)
    known_M = label_M >= 0
    # A row without allowed tokens would be all -inf. Its loss is 0 because it has no label, so all tokens are allowed in it.
    scores_ML = scores_ML.masked_fill(~other_ML & known_M.unsqueeze(1), -torch.inf)
    own_M = scores_ML.gather(1, label_M.clamp(min=0).unsqueeze(1)).squeeze(1)
    return (scores_ML.logsumexp(1) - own_M) * known_M, batch.languages[window_M]


def pointer_scores(pointer: Pointer, states_TH: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
    """[M, L] fp32 (fp64 of fp64 states): score of every token of its window for every target."""
    shape = (-1, batch.window, states_TH.size(-1))
    queries, keys = pointer.query(states_TH).view(shape), pointer.key(states_TH).view(shape)
    # Score all tokens, then select the targets' rows: one product of fixed shape, as large as one of attention's.
    scores = (queries @ keys.transpose(1, 2)).view(-1, batch.window)[batch.targets]
    scaled: torch.Tensor = scores.to(torch.promote_types(scores.dtype, torch.float32)) / math.sqrt(states_TH.size(-1))
    return scaled


class DenoisingAlignmentLoss(ObjectiveLoss[DenoisingAlignment]):
    """Cross-entropy of pointing to the token that the network's own alignment selects."""

    def __init__(self, config: DenoisingAlignment, encoder: Encoder) -> None:
        """See `ObjectiveLoss`."""
        self.module: Pointer = Pointer(encoder)

    def losses(self, encoder: Encoder, states_TH: torch.Tensor, batch: PackedBatch, config: DenoisingAlignment) -> Losses:
        """See `ObjectiveLoss`; one loss per target."""
        losses, languages = denoising_losses(encoder, self.module, states_TH, batch, config)
        return Losses(losses.sum(), losses.detach(), languages)
