"""Configuration of cross-lingual contrast with a momentum encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from dist_metaxlm.recipe.objectives.base import EncoderPass
from dist_metaxlm.recipe.objectives.pairs import PairObjective, check_group

if TYPE_CHECKING:
    from dist_metaxlm.recipe.schema import ModelConfig


class CrossLingualContrast(PairObjective):
    """XlCo of InfoXLM (arXiv 2007.07834): a momentum encoder, a queue of its keys as negatives, mix-up contrast.

    Defaults are those of InfoXLM-base's released code and commands (microsoft/unilm, infoxlm).
    """

    name: Literal["xlco"] = "xlco"
    """Objective."""
    pairs: int = Field(gt=1)
    """Translation pairs a step, over all ranks; even if `mixup` combines two of them into one example."""
    queue: int = Field(131072, ge=0)
    """Keys kept as negatives: the newest of the whole batch, on every rank. 0: only those of `group`."""
    group: int | None = Field(None, gt=1)
    """Pairs of a step whose keys are negatives of each other too, fixed here so that the loss does not depend on the
    layout; none: only the queue's keys are, as in InfoXLM."""
    momentum: float = Field(0.9999, ge=0, lt=1)
    """Share of the momentum encoder's weights that an optimiser step keeps; the rest comes from the model's new weights."""
    temperature: float = Field(0.25, gt=0)
    """Divisor of the products of query and key."""
    pooling: Literal["start", "mean"] = "start"
    """Representation of a sequence: the state of its `<s>` (InfoXLM), or the mean of its states."""
    normalise: bool = False
    """Whether queries and keys are scaled to length 1 first; InfoXLM uses raw products."""
    projection: bool = True
    """Whether a trained matrix (hidden x hidden, no bias) follows the pooled state, as in InfoXLM's --use_proj."""
    mixup: Literal["none", "order", "sides"] = "order"
    """`none`: a pair is an example. `order`: two pairs x, d are one, as (x1 d1, x2 d2), each side in its own order
    (released code). `sides`: also as (x1 d2, d1 x2), half the time (paper)."""
    mask_rate: float = Field(0.15, ge=0, lt=1)
    """Share of a sequence's tokens that are masked (80/10/10) in the input of both encoders; they are not targets."""

    needs_whole_model = True
    keeps_memory = True

    @property
    def pairs_together(self) -> int:
        """Pairs of an example."""
        return 1 if self.mixup == "none" else 2

    @property
    def longest(self) -> int:
        """Tokens of the longest query or key: `<s>` and its sentences, each with its `</s>`."""
        return 1 + self.pairs_together * (self.max_tokens - 1)

    @property
    def pairs_of_group(self) -> int | None:
        """See `PairObjective`."""
        return self.group

    @property
    def negatives(self) -> int:
        """Most keys that a query is compared with besides its own."""
        return self.queue + (self.group or 0) // self.pairs_together

    @model_validator(mode="after")
    def _consistent(self) -> CrossLingualContrast:
        if self.pairs % self.pairs_together:
            raise ValueError(
                f"pairs {self.pairs} is odd, and mixup: {self.mixup} makes an example of two; nearest: "
                f"{self.pairs + 1}, or set mixup: none"
            )
        if self.group is None and not self.queue:
            raise ValueError(f"queue 0 without group leaves no negatives; set group, for example to pairs {self.pairs}")
        if self.group is not None:
            if self.group % self.pairs_together:
                raise ValueError(
                    f"group {self.group} is odd, and mixup: {self.mixup} makes an example of two; nearest: "
                    f"{self.group + 1}, or set mixup: none"
                )
            check_group(self.pairs, self.group)
        return self

    def passes(self, sequence_length: int, mask_rate: float) -> list[EncoderPass]:
        """See `Objective`: the queries, and the keys in the momentum encoder."""
        tokens = self.examples * self.longest
        return [EncoderPass(tokens, self.longest, layers=self.layer, backward=trained) for trained in (True, False)]

    def other_flops(self, model: ModelConfig, sequence_length: int) -> float:
        """See `Objective`: products with the other keys, forward, and backward to the queries."""
        return float(4 * self.examples * self.negatives * model.hidden)

    def uncut_tokens(self, ranks: int) -> int:
        """See `Objective`: only the queries of a group's pairs are kept for the backward pass."""
        return (self.share_of_group(ranks) or 0) // self.pairs_together * self.longest

    def own_parameters(self, model: ModelConfig) -> int:
        """See `Objective`: the projection."""
        return model.hidden**2 if self.projection else 0

    @property
    def copied_layers(self) -> int | None:
        """See `Objective`: the momentum encoder ends with the block that is read."""
        return self.layer

    def shared_numbers(self, model: ModelConfig) -> int:
        """See `Objective`: the queue."""
        return self.queue * model.hidden

    @property
    def unshared_bytes(self) -> int:
        """See `Objective`: two hashes of the words of each key of the queue."""
        return 16 * self.queue

    def buffer_bytes(self, model: ModelConfig, micro_batch_tokens: int, ranks: int) -> int:
        """See `Objective`: keys with their hashes, and a micro-step's products with them, in fp32, before and after
        masking and next to the own key's."""
        if self.group is None:
            at_once = min(self.examples, max(1, micro_batch_tokens // self.longest))
        else:
            at_once = (self.share_of_group(ranks) or 0) // self.pairs_together
        return self.negatives * (4 * model.hidden + 16 + 12 * at_once)
