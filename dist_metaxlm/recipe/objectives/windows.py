"""Base of objectives on packed windows with a fixed number of tokens."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, ModelWrapValidatorHandler, SerializerFunctionWrapHandler, model_serializer, model_validator

from dist_metaxlm.recipe.objectives.base import EncoderPass, Objective, Share
from dist_metaxlm.recipe.stages import BatchPoint, points_to_schedule, schedule_problems, schedule_to_points, value_after
from dist_metaxlm.text import pluralize

_READ = points_to_schedule("batch_tokens", "batch_schedule")
_WRITE = schedule_to_points("batch_tokens", "batch_schedule")


class WindowObjective(Objective):
    """Samples are windows of `sequence_length` tokens, each with the same number of targets (`targets_per_window`)."""

    batch_tokens: int = Field(gt=0)
    """Tokens a step, over all ranks; a multiple of `sequence_length`. Or points over the tokens of the phase:
    `[{tokens: 0, batch_tokens: 4096}, ...]`."""
    batch_schedule: list[BatchPoint] = []
    """The points of `batch_tokens`, which is then the largest."""

    batch_field = "batch_tokens"

    @model_validator(mode="wrap")
    @classmethod
    def _points(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        read: Self = _READ(cls, values, handler)
        problems = schedule_problems(f"{read.name} batch_tokens", read.batch_schedule)
        largest = max((point.batch_tokens for point in read.batch_schedule), default=read.batch_tokens)
        if largest != read.batch_tokens:
            problems.append(
                f"batch_schedule reaches {largest} and batch_tokens is {read.batch_tokens}; give points in one of them"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return read

    @model_serializer(mode="wrap")
    def _as_points(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _WRITE(self, handler)

    @property
    def changes(self) -> list[int]:
        """See `Objective`."""
        return [point.tokens for point in self.batch_schedule]

    def after(self, tokens: int) -> Objective:
        """See `Objective`."""
        if not self.batch_schedule:
            return self
        return self.model_copy(
            update={"batch_schedule": [], "batch_tokens": value_after(self.batch_schedule, tokens).batch_tokens}
        )

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
    def masks_by_rate(self) -> bool:
        """See `Objective`."""
        return self.targets_per_token(0.25) != self.targets_per_token(0.5)

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


class MaskedObjective(WindowObjective):
    """Windows whose targets are masked, and how: base of masked and translation language modelling."""

    masked_share: float = Field(0.8, ge=0, le=1)
    """Share of the targets that the model sees as `<mask>` (BERT, arXiv 1810.04805)."""
    random_share: float = Field(0.1, ge=0, le=1)
    """Share of the targets that it sees as a random token; the others it sees as they are."""
    span_p: float | None = Field(None, gt=0, lt=1)
    """Masks whole spans, whose lengths are geometric with this probability of ending (SpanBERT, arXiv 1907.10529: 0.2).
    Empty: tokens (or words, with `whole_words`) by themselves. With it a word belongs to the span of its first piece."""
    span_max: int = Field(10, gt=0)
    """With `span_p`: longest span, in tokens."""

    @model_validator(mode="after")
    def _shares(self) -> Self:
        if self.masked_share + self.random_share > 1 + 1e-9:
            raise ValueError(
                f"{self.name} masked_share {self.masked_share} and random_share {self.random_share} are more than 1 "
                "together; lower one of them"
            )
        return self
