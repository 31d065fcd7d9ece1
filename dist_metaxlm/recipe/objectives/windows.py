"""Base of objectives on packed windows with a fixed number of tokens."""

from __future__ import annotations

from pydantic import Field

from dist_metaxlm.recipe.objectives.base import EncoderPass, Objective, Share
from dist_metaxlm.text import pluralize


class WindowObjective(Objective):
    """Samples are windows of `sequence_length` tokens, each with the same number of targets (`targets_per_window`)."""

    batch_tokens: int = Field(gt=0)
    """Tokens a step, over all ranks; a multiple of `sequence_length`."""

    batch_field = "batch_tokens"

    @property
    def tokens_per_step(self) -> int:
        """See `Objective`."""
        return self.batch_tokens

    def samples_per_step(self, sequence_length: int) -> int:
        """See `Objective`: windows."""
        return self.batch_tokens // sequence_length

    def denominator(self, sequence_length: int, mask_rate: float) -> int:
        """See `Objective`: targets of all windows."""
        return self.samples_per_step(sequence_length) * self.targets_per_window(sequence_length, mask_rate)

    def targets_per_window(self, sequence_length: int, mask_rate: float) -> int:
        """Targets of a window, fewer only if fewer of its tokens are eligible."""
        return round(self.targets_per_token(mask_rate) * sequence_length)

    def cut(self, turn: int, share: Share) -> list[range]:
        """See `Objective`: a rank has consecutive windows."""
        windows = self.samples_per_step(share.sequence_length)
        own = windows // share.ranks
        first = turn * windows + share.rank * own
        at_once = max(1, share.micro_batch_tokens // share.sequence_length)
        return [range(first + done, first + min(done + at_once, own)) for done in range(0, own, at_once)]

    def undivided(self, sequence_length: int, ranks: int) -> str | None:
        """See `Objective`."""
        windows = self.samples_per_step(sequence_length)
        if windows % ranks == 0:
            return None
        return (
            f"{self.name}: batch_tokens {self.batch_tokens} is {pluralize(windows, 'window')}, not a multiple of {ranks} "
            f"ranks; nearest: {max(1, round(windows / ranks)) * ranks * sequence_length}"
        )

    @property
    def shows_whole_pairs(self) -> bool:
        """See `Objective`."""
        return self.reads == "pairs"

    def batch_problems(self, sequence_length: int) -> list[str]:
        """See `Objective`."""
        if self.batch_tokens % sequence_length == 0:
            return []
        return [
            f"{self.name} batch_tokens {self.batch_tokens} is not a multiple of sequence_length {sequence_length}; "
            f"nearest: {max(1, round(self.batch_tokens / sequence_length)) * sequence_length}"
        ]

    def passes(self, sequence_length: int, mask_rate: float) -> list[EncoderPass]:
        """See `Objective`: full windows of one document, with all targets."""
        targets = self.denominator(sequence_length, mask_rate)
        return [EncoderPass(self.batch_tokens, sequence_length, targets, causal=self.causal)]
