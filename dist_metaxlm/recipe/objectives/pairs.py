"""Base of objectives on translation pairs as separate sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from dist_metaxlm.recipe.objectives.base import Objective, Share
from dist_metaxlm.text import pluralize

if TYPE_CHECKING:
    from dist_metaxlm.recipe.schema import ModelConfig


class PairObjective(Objective):
    """Samples are pairs. Sentences have no fixed number of tokens, so they do not count towards token budgets."""

    pairs: int = Field(gt=1)
    """Translation pairs a step, over all ranks."""
    layer: int = Field(gt=0)
    """Block whose output is read, counted from 1; the blocks above are not run for this objective."""
    max_tokens: int = Field(64, ge=4)
    """Tokens of a sentence, special tokens included; longer ones are cut."""

    reads = "pairs"
    batch_field = "pairs"
    trains_alignment = True

    @property
    def tokens_per_step(self) -> int:
        """See `Objective`: no tokens are counted."""
        return 0

    @property
    def last_layer(self) -> int | None:
        """See `Objective`."""
        return self.layer

    @property
    def longest(self) -> int:
        """Tokens of the longest model input."""
        return self.max_tokens

    @property
    def pairs_together(self) -> int:
        """Pairs of an example."""
        return 1

    @property
    def examples(self) -> int:
        """Examples a step, over all ranks."""
        return self.pairs // self.pairs_together

    @property
    def pairs_of_group(self) -> int | None:
        """Pairs that are negatives of each other and are therefore in one micro-batch; None: examples are independent."""
        return None

    def share_of_group(self, ranks: int) -> int | None:
        """Pairs of a group that one of `ranks` processes at once: all, or its share of a group split over ranks.

        None: no groups, or the ranks can share neither the groups nor a group.
        """
        group = self.pairs_of_group
        if group is None:
            return None
        if self.pairs // group % ranks == 0:
            return group
        return None if group % (ranks * self.pairs_together) else group // ranks

    def samples_per_step(self, sequence_length: int) -> int:
        """See `Objective`: pairs."""
        return self.pairs

    def denominator(self, sequence_length: int, mask_rate: float) -> int:
        """See `Objective`: examples."""
        return self.examples

    def cut(self, turn: int, share: Share) -> list[range]:
        """See `Objective`: consecutive examples, or group after group."""
        return self._cut_examples(turn, share) if self.pairs_of_group is None else self._cut_groups(turn, share)

    def _cut_examples(self, turn: int, share: Share) -> list[range]:
        own, together = self.examples // share.ranks, self.pairs_together
        first = turn * self.examples + share.rank * own
        at_once = max(1, share.micro_batch_tokens // self.longest)
        return [
            range(together * (first + done), together * (first + min(done + at_once, own)))
            for done in range(0, own, at_once)
        ]

    def _cut_groups(self, turn: int, share: Share) -> list[range]:
        group, own = self.pairs_of_group, self.share_of_group(share.ranks)
        assert group is not None
        assert own is not None
        first, groups = turn * self.pairs, self.pairs // group
        if own == group:
            own_groups = range(share.rank * groups // share.ranks, (share.rank + 1) * groups // share.ranks)
            starts = [first + number * group for number in own_groups]
        else:
            starts = [first + number * group + share.rank * own for number in range(groups)]
        return [range(start, start + own) for start in starts]

    def undivided(self, sequence_length: int, ranks: int) -> str | None:
        """See `Objective`."""
        group, together = self.pairs_of_group, self.pairs_together
        if group is None:
            if self.examples % ranks == 0:
                return None
            return (
                f"{self.name}: pairs {self.pairs} is {pluralize(self.examples, 'example')}, not a multiple of {ranks} "
                f"ranks; nearest: {max(1, round(self.examples / ranks)) * ranks * together}"
            )
        if self.share_of_group(ranks) is not None:
            return None
        unit = ranks * together
        nearest = max(1, round(group / unit)) * unit
        pairs = max(1, round(self.pairs / nearest)) * nearest  # a multiple of the group, which validation requires
        return (
            f"{self.name}: neither its {pluralize(self.pairs // group, 'group')} nor its group of {group} pairs can be "
            f"shared by {ranks} ranks; nearest: group {nearest} and pairs {pairs}"
        )

    def model_problems(self, where: str, model: ModelConfig, sequence_length: int) -> list[str]:
        """See `Objective`."""
        problems = []
        if self.layer > model.layers:
            problems.append(f"{where}.layer {self.layer} is more than model.layers {model.layers}")
        if self.longest > sequence_length:
            together = " (two together)" if self.longest > self.max_tokens else ""
            problems.append(f"{where}.max_tokens {self.max_tokens}{together} is more than sequence_length {sequence_length}")
        return problems


def check_group(pairs: int, group: int) -> None:
    """Raise ValueError if `pairs` is not a multiple of `group`."""
    if pairs % group:
        raise ValueError(
            f"pairs {pairs} is not a multiple of group {group}; nearest: {max(1, round(pairs / group)) * group}"
        )
