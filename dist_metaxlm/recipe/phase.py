"""The settings of a phase: its text mix, objectives, masks, batches, learning rate and length."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self, cast

from pydantic import (
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from dist_metaxlm.recipe.objectives.registry import RegisteredObjective
from dist_metaxlm.recipe.section import Section
from dist_metaxlm.recipe.stages import (
    LengthPoint,
    MaskPoint,
    points_to_schedule,
    schedule_problems,
    schedule_to_points,
    stages,
)

if TYPE_CHECKING:
    from dist_metaxlm.recipe.schema import ModelConfig

_READ_MASKS = points_to_schedule("mask_rate", "mask_schedule")
_READ_LENGTHS = points_to_schedule("sequence_length", "length_schedule")
_WRITE_MASKS = schedule_to_points("mask_rate", "mask_schedule")
_WRITE_LENGTHS = schedule_to_points("sequence_length", "length_schedule")


class AlphaPoint(Section):
    """One point of an alpha schedule."""

    tokens: int = Field(ge=0)
    """Training tokens of this phase after which `alpha` holds."""
    alpha: float = Field(ge=0, le=1)
    """Exponent of the language mix from here on."""


class Unlock(Section):
    """Languages that join the mix after the start of the phase."""

    tokens: int = Field(gt=0)
    """Training tokens of this phase after which `languages` join the mix."""
    languages: list[str] = Field(min_length=1)
    """Languages that join; a language pair joins with the later of its languages."""


class LearningRate(Section):
    """Learning rate over the steps of a phase."""

    peak: float = Field(gt=0)
    """Learning rate after warm-up."""
    schedule: Literal["linear", "cosine", "wsd"] = "linear"
    """Shape after warm-up: linear or cosine decay to the minimum, or constant with a 1-sqrt decay at the end (wsd)."""
    warmup_steps: int = Field(0, ge=0)
    """Optimiser steps of linear warm-up from zero."""
    decay_steps: int = Field(0, ge=0)
    """`wsd` only: optimiser steps of the final decay."""
    floor: float = Field(0.0, ge=0, lt=1)
    """Last learning rate as a share of `peak`."""


class CarryOver(Section):
    """What a phase inherits from the one before besides the weights (always) and the tokenizer (must be the same)."""

    optimizer: Literal["reset", "carry"] = "reset"
    """Adam's moments and step count: start from zero or continue."""
    schedule: Literal["restart", "continue"] = "restart"
    """Learning rate: the phase's schedule from its start, or from the step that the phase before had reached."""
    unseen_embeddings: Literal["keep", "reinitialise"] = "keep"
    """Embeddings of tokens that were never input or target before: keep, or initialise again."""


class PhaseConfig(Section):
    """The fields that a phase may set."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    from_: str | None = Field(None, alias="from")
    """What the phase continues from: an earlier phase (`meta`, its end; `meta@400`, its step 400; `meta@best`, its best
    held-out loss), `nothing`, or a folder with a slash in it: of a phase of any run (`runs/x/meta@400`) or an imported
    model. Empty: `meta` for a phase called cross, nothing for meta, joint and the first phase; the others must say."""
    carry_over: CarryOver | None = None
    """What the phase inherits besides the weights, if it continues from another; empty: `carry_over` of the recipe."""
    steps: int | None = Field(None, gt=0)
    """Optimiser steps; give this or `tokens`."""
    tokens: int | None = Field(None, gt=0)
    """Tokens of the objectives on windows to train on; give this or `steps`."""
    languages: list[str] | Literal["all"] = "all"
    """Languages of the text, or all that the store holds."""
    alpha: float | list[AlphaPoint] = 0.3
    """Exponent of the language mix p ~ tokens^alpha, or its schedule over tokens."""
    shares: dict[str, float] = {}
    """Language -> its fixed share of the mlm windows; the other languages divide the rest by alpha."""
    pair_alpha: float | list[AlphaPoint] = 0.3
    """Exponent of the mix of language pairs p ~ pairs^alpha, for all objectives on pairs, or its schedule over tokens."""
    max_repetitions: float | None = Field(None, gt=0)
    """Most epochs over a language's text in the phase; its surplus goes to the others by their shares."""
    pair_max_repetitions: float | None = Field(None, gt=0)
    """The same for language pairs: most epochs over a pair's translations in each objective on pairs."""
    unlock: list[Unlock] = []
    """Languages that join the mix later; all others are in it from the start."""
    sequence_length: int = Field(gt=7)
    """Tokens of a window, or points over tokens: `[{tokens: 0, sequence_length: 128}, ...]`."""
    length_schedule: list[LengthPoint] = []
    """The points of `sequence_length`, which is then the longest."""
    mask_rate: float = Field(0.15, gt=0, lt=1)
    """Share of a window's tokens that are targets; the count is exact. Or points over tokens (arXiv 2305.15096):
    `[{tokens: 0, mask_rate: 0.3}, ...]`."""
    mask_schedule: list[MaskPoint] = []
    """The points of `mask_rate`, which is then the largest."""
    whole_words: bool = False
    """Mask all pieces of a word together."""
    objectives: list[RegisteredObjective] = Field(min_length=1)
    """Training objectives, each with its batch and weight."""
    mixing: Literal["sum", "draw"] = "sum"
    """`sum`: each step uses all objectives; `draw`: each step uses one, drawn by weight, the same on all ranks."""
    learning_rate: LearningRate
    """Learning rate schedule."""
    rope_theta: float | None = Field(None, gt=0)
    """`modern` only: rotary base of the global layers in this phase; empty: `model.rope_theta`."""
    rope_theta_local: float | None = Field(None, gt=0)
    """`modern` only: rotary base of the local layers in this phase; empty: `model.rope_theta_local`."""
    local_window: int | None = Field(None, gt=0)
    """`modern` only: tokens a local layer attends over in this phase; empty: `model.local_window`."""

    @model_validator(mode="wrap")
    @classmethod
    def _points(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        return cast(Self, _READ_MASKS(cls, values, lambda given: _READ_LENGTHS(cls, given, handler)))

    @model_serializer(mode="wrap")
    def _as_points(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _WRITE_LENGTHS(self, lambda phase: _WRITE_MASKS(phase, handler))

    @model_validator(mode="after")
    def _consistent(self) -> PhaseConfig:
        problems = []
        if (self.steps is None) == (self.tokens is None):
            problems.append(f"give either steps or tokens, not {'both' if self.steps else 'neither'}")
        names = [objective.name for objective in self.objectives]
        problems += [f"objective {name} is given twice" for name in sorted({n for n in names if names.count(n) > 1})]
        problems += self._schedule_problems()
        own = [] if problems else [stage.phase for stage in stages(self)]
        batches = [o.batch_problems(phase.sequence_length) for phase in own for o in phase.objectives]
        problems += dict.fromkeys(problem for of in batches for problem in of)
        memories = [objective.name for objective in self.objectives if objective.keeps_memory]
        if len(memories) > 1:
            problems.append(
                f"{' and '.join(memories)} each keep a memory in addition to the model; keep one of them, drop the others"
            )
        problems += _alpha_problems("alpha", self.alpha) + _alpha_problems("pair_alpha", self.pair_alpha)
        problems += _share_problems(self.shares, self.languages)
        problems += _unlock_problems(self.unlock, self.languages)
        if self.tokens is not None and not any(objective.tokens_per_step for objective in self.objectives):
            problems.append("tokens counts the tokens of objectives on windows and the phase has none; give steps")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _schedule_problems(self) -> list[str]:
        problems = schedule_problems("mask_rate", self.mask_schedule)
        problems += schedule_problems("sequence_length", self.length_schedule)
        if self.mask_schedule and not any(objective.masks_by_rate for objective in self.objectives):
            names = ", ".join(objective.name for objective in self.objectives)
            problems.append(f"mask_rate is a schedule and no objective of the phase masks by it ({names}); give one number")
        for field, schedule in (("mask_rate", "mask_schedule"), ("sequence_length", "length_schedule")):
            values = [getattr(point, field) for point in getattr(self, schedule)]
            if values and max(values) != getattr(self, field):
                problems.append(
                    f"{schedule} reaches {max(values)} and {field} is {getattr(self, field)}; give points in one of them"
                )
        capped = [name for name in ("max_repetitions", "pair_max_repetitions") if getattr(self, name) is not None]
        if self.length_schedule and capped:
            problems.append(
                f"{capped[0]} counts epochs of windows of one length and sequence_length is a schedule; leave one out"
            )
        scheduled = self.mask_schedule or self.length_schedule or any(o.changes for o in self.objectives)
        if scheduled and not any(objective.tokens_per_step for objective in self.objectives):
            problems.append("a schedule counts the tokens of objectives on windows and the phase has none; give one number")
        return problems

    def model(self, model: ModelConfig) -> ModelConfig:
        """The recipe's model as this phase trains it: with the phase's rotary bases and windows."""
        names = ("rope_theta", "rope_theta_local", "local_window")
        own = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return model.model_copy(update=own) if own else model

    @property
    def tokens_per_step(self) -> int:
        """Tokens that the objectives on windows take in one step; with `mixing: draw` on average, to the nearest token.

        With a schedule of batches: at their largest.
        """
        taken = [(objective.weight, objective.tokens_per_step) for objective in self.objectives]
        if self.mixing == "sum":
            return sum(tokens for _, tokens in taken)
        return max(1, round(sum(weight * tokens for weight, tokens in taken) / sum(weight for weight, _ in taken)))

    @property
    def targets_per_window(self) -> int:
        """Targets of a masked window: round(mask_rate * sequence_length)."""
        return round(self.mask_rate * self.sequence_length)

    @property
    def targets_per_token(self) -> float:
        """Share of tokens whose states reach the vocabulary, of the objective with the largest."""
        return max(objective.targets_per_token(self.mask_rate) for objective in self.objectives)

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the phase."""
        if self.steps is not None:
            return self.steps
        assert self.tokens is not None
        last = [stage for stage in stages(self) if stage.tokens < self.tokens][-1]
        return max(1, last.first_step - (-(self.tokens - last.tokens) // last.phase.tokens_per_step))

    @property
    def total_tokens(self) -> int:
        """Training tokens of the phase's steps."""
        last = [stage for stage in stages(self) if stage.first_step < self.total_steps][-1]
        return last.tokens + (self.total_steps - last.first_step) * last.phase.tokens_per_step


def _alpha_problems(name: str, alpha: float | list[AlphaPoint]) -> list[str]:
    if isinstance(alpha, float):
        return [] if 0 <= alpha <= 1 else [f"{name} {alpha} is not between 0 (all alike) and 1 (by size)"]
    return [] if alpha else [f"{name} is an empty schedule; give a number, or points of tokens and alpha"]


def _share_problems(shares: dict[str, float], languages: list[str] | Literal["all"]) -> list[str]:
    problems = [f"shares.{name} {share} is not between 0 and 1" for name, share in shares.items() if not 0 < share < 1]
    problems += [
        f"shares names {name}, which is not in languages" for name in shares if languages != "all" and name not in languages
    ]
    if sum(shares.values()) >= 1:
        problems.append(
            f"shares add up to {sum(shares.values()):g}, which leaves nothing for other languages; make them "
            "less than 1 together"
        )
    return problems


def _unlock_problems(unlock: list[Unlock], languages: list[str] | Literal["all"]) -> list[str]:
    late = [language for point in unlock for language in point.languages]
    problems = [f"unlock names {language} twice" for language in sorted({n for n in late if late.count(n) > 1})]
    if languages != "all":
        problems += [f"unlock names {language}, which is not in languages" for language in late if language not in languages]
        if late and set(languages) <= set(late):
            problems.append("unlock leaves no language for the start of the phase; take one out of it")
    return problems
