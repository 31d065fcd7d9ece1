"""What a phase of a recipe may set: its text mix, objectives, masks, batches, learning rate and length."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dist_metaxlm.recipe.section import Section


class AlphaPoint(Section):
    """One point of an alpha schedule."""

    tokens: int = Field(ge=0)
    """Training tokens of this phase after which `alpha` holds."""
    alpha: float = Field(ge=0, le=1)
    """Exponent of the language mix from here on."""


class Unlock(Section):
    """Languages that the phase does not show from its start on."""

    tokens: int = Field(gt=0)
    """Training tokens of this phase after which `languages` join the mix."""
    languages: list[str] = Field(min_length=1)
    """Languages that join; a language pair joins with the later of its sides."""


class MaskedLM(Section):
    """Masked language modelling on packed monolingual windows (over several languages: MMLM)."""

    name: Literal["mlm"] = "mlm"
    """Objective."""
    weight: float = Field(1.0, gt=0)
    """Factor of this objective's mean loss in the step's loss."""
    batch_tokens: int = Field(gt=0)
    """Tokens a step, over all ranks; a multiple of `sequence_length`."""


class TranslationLM(Section):
    """Masked language modelling on translation pairs packed into windows (TLM, arXiv 1901.07291)."""

    name: Literal["tlm"] = "tlm"
    """Objective."""
    weight: float = Field(1.0, gt=0)
    """Factor of this objective's mean loss in the step's loss."""
    batch_tokens: int = Field(gt=0)
    """Tokens a step, over all ranks; a multiple of `sequence_length`."""


class PairObjective(Section):
    """What objectives on translation pairs as separate sentences share; their samples are pairs, not windows."""

    name: str
    """Objective."""
    weight: float = Field(1.0, gt=0)
    """Factor of this objective's mean loss in the step's loss."""
    pairs: int = Field(gt=1)
    """Translation pairs a step, over all ranks."""
    layer: int = Field(gt=0)
    """Block whose output is read, counted from 1; the blocks above are not run for this objective."""
    max_tokens: int = Field(64, ge=4)
    """Tokens of a sentence, special tokens included; longer ones are cut."""

    @property
    def longest(self) -> int:
        """Tokens of the longest document that the model is shown."""
        return self.max_tokens

    @property
    def pairs_together(self) -> int:
        """Pairs of an example."""
        return 1

    @property
    def examples(self) -> int:
        """Examples a step, over all ranks."""
        return self.pairs // self.pairs_together

    def share_of_group(self, group: int, ranks: int) -> int | None:
        """Pairs of a group that one of `ranks` takes at once: all, or its share of a group that they hold together.

        None: the ranks can share neither the groups nor a group.
        """
        if self.pairs // group % ranks == 0:
            return group
        return None if group % (ranks * self.pairs_together) else group // ranks


class Contrast(PairObjective):
    """InfoNCE between the mean-pooled states of a sentence and its translation, both directions."""

    name: Literal["contrast"] = "contrast"
    """Objective."""
    pairs: int = Field(gt=1)
    """Translation pairs a step, over all ranks; a multiple of `group`."""
    group: int = Field(gt=1)
    """Pairs that serve each other as negatives; fixed here, so the loss does not depend on the layout."""
    temperature: float = Field(0.05, gt=0)
    """Divisor of the cosine similarities."""

    @model_validator(mode="after")
    def _consistent(self) -> Contrast:
        _check_group(self.pairs, self.group)
        return self


class CrossLingualContrast(PairObjective):
    """XlCo of InfoXLM (arXiv 2007.07834): a momentum encoder, a queue of its keys as negatives, mix-up contrast.

    Defaults are those of InfoXLM-base's released code and commands (microsoft/unilm, infoxlm).
    """

    name: Literal["xlco"] = "xlco"
    """Objective."""
    pairs: int = Field(gt=1)
    """Translation pairs a step, over all ranks; even where `mixup` puts two of them into one example."""
    queue: int = Field(131072, ge=0)
    """Keys kept as negatives: the newest of the whole batch, on every rank. 0: none but those of `group`."""
    group: int | None = Field(None, gt=1)
    """Pairs of a step whose keys are negatives of each other too, fixed here so that the loss does not depend on the
    layout; none: only the queue's keys are, as with InfoXLM."""
    momentum: float = Field(0.9999, ge=0, lt=1)
    """Share of the momentum encoder's weights that an optimiser step keeps; the rest are the model's new ones."""
    temperature: float = Field(0.25, gt=0)
    """Divisor of the products of query and key."""
    pooling: Literal["start", "mean"] = "start"
    """What stands for a sequence: the state of its `<s>` (InfoXLM), or the mean of its states."""
    normalise: bool = False
    """Whether queries and keys are scaled to length 1 first; InfoXLM takes raw products."""
    projection: bool = True
    """Whether a trained matrix (hidden x hidden, no bias) follows the pooled state, as with InfoXLM's --use_proj."""
    mixup: Literal["none", "order", "sides"] = "order"
    """`none`: a pair is an example. `order`: two pairs x, d are, as (x1 d1, x2 d2), each side in an order of its own
    (released code). `sides`: also as (x1 d2, d1 x2), half the time (paper)."""
    mask_rate: float = Field(0.15, ge=0, lt=1)
    """Share of a sequence's tokens that are masked (80/10/10) in what either encoder sees; they are no targets."""

    @property
    def pairs_together(self) -> int:
        """Pairs of an example."""
        return 1 if self.mixup == "none" else 2

    @property
    def longest(self) -> int:
        """Tokens of the longest query or key: `<s>` and its sentences, each with its `</s>`."""
        return 1 + self.pairs_together * (self.max_tokens - 1)

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
            _check_group(self.pairs, self.group)
        return self


def _check_group(pairs: int, group: int) -> None:
    if pairs % group:
        raise ValueError(
            f"pairs {pairs} is not a multiple of group {group}; nearest: {max(1, round(pairs / group)) * group}"
        )


class DenoisingAlignment(Section):
    """Pointing from a masked token to its translation, with labels by the network itself (XLM-Align, arXiv 2106.06381)."""

    name: Literal["dwa"] = "dwa"
    """Objective."""
    weight: float = Field(1.0, gt=0)
    """Factor of this objective's mean loss, over all targets, in the step's loss."""
    batch_tokens: int = Field(gt=0)
    """Tokens of translation pairs a step, over all ranks; a multiple of `sequence_length`."""
    layer: int = Field(gt=0)
    """Block whose output the labels are made from, counted from 1 (XLM-Align: 10 of 12)."""
    sinkhorn_iterations: int = Field(2, ge=0)
    """Iterations of optimal transport on the similarities."""
    rounds: int = Field(2, gt=0)
    """Rounds of mutual argmax; those after the first look for tokens that have no partner yet."""


AnyObjective = MaskedLM | TranslationLM | Contrast | CrossLingualContrast | DenoisingAlignment
Objective = Annotated[AnyObjective, Field(discriminator="name")]


class LearningRate(Section):
    """Learning rate over the steps of a phase."""

    peak: float = Field(gt=0)
    """Learning rate after warm-up."""
    schedule: Literal["linear", "cosine", "wsd"] = "linear"
    """Shape after warm-up: to the floor linearly, by a cosine, or constant with a 1-sqrt decay at the end (wsd)."""
    warmup_steps: int = Field(0, ge=0)
    """Optimiser steps of linear warm-up from zero."""
    decay_steps: int = Field(0, ge=0)
    """`wsd` only: optimiser steps of the final decay."""
    floor: float = Field(0.0, ge=0, lt=1)
    """Last learning rate as a share of `peak`."""


class PhaseConfig(Section):
    """What a phase may set of its own."""

    steps: int | None = Field(None, gt=0)
    """Optimiser steps; give this or `tokens`."""
    tokens: int | None = Field(None, gt=0)
    """Tokens of the masked-LM objectives to train on; give this or `steps`."""
    languages: list[str] | Literal["all"] = "all"
    """Languages of the text, or all that the store holds."""
    alpha: float | list[AlphaPoint] = 0.3
    """Exponent of the language mix p ~ tokens^alpha, or its schedule over tokens."""
    shares: dict[str, float] = {}
    """Language -> its share of the mlm windows, whatever alpha says; the other languages divide the rest by alpha."""
    pair_alpha: float | list[AlphaPoint] = 0.3
    """Exponent of the mix of language pairs p ~ pairs^alpha, for all objectives on pairs, or its schedule over tokens."""
    max_repetitions: float | None = Field(None, gt=0)
    """Epochs over a language's text that the phase takes at most; its surplus goes to the others by their shares."""
    pair_max_repetitions: float | None = Field(None, gt=0)
    """The same for language pairs: epochs over a pair's translations in each objective on pairs, at most."""
    unlock: list[Unlock] = []
    """Languages that join the mix later; all others are in it from the start."""
    sequence_length: int = Field(gt=7)
    """Tokens of a window."""
    mask_rate: float = Field(0.15, gt=0, lt=1)
    """Share of a window's tokens that are targets; the count is exact."""
    whole_words: bool = False
    """Mask all pieces of a word together."""
    objectives: list[Objective] = Field(min_length=1)
    """What is learnt, each with its batch and weight."""
    mixing: Literal["sum", "draw"] = "sum"
    """`sum`: each step takes all objectives; `draw`: each step takes one, drawn by weight, the same on all ranks."""
    learning_rate: LearningRate
    """Learning rate schedule."""

    @model_validator(mode="after")
    def _consistent(self) -> PhaseConfig:
        problems = []
        if (self.steps is None) == (self.tokens is None):
            problems.append(f"give either steps or tokens, not {'both' if self.steps else 'neither'}")
        names = [objective.name for objective in self.objectives]
        problems += [f"objective {name} is given twice" for name in sorted({n for n in names if names.count(n) > 1})]
        length = self.sequence_length
        for objective in self.objectives:
            batch = getattr(objective, "batch_tokens", length)
            if batch % length:
                problems.append(
                    f"{objective.name} batch_tokens {batch} is not a multiple of sequence_length {length}; "
                    f"nearest: {max(1, round(batch / length)) * length}"
                )
        problems += _alpha_problems("alpha", self.alpha) + _alpha_problems("pair_alpha", self.pair_alpha)
        problems += _share_problems(self.shares, self.languages)
        problems += _unlock_problems(self.unlock, self.languages)
        if self.tokens is not None and not any(hasattr(o, "batch_tokens") for o in self.objectives):
            problems.append("tokens counts masked-LM tokens and no objective has any; give steps")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def tokens_per_step(self) -> int:
        """Tokens that the masked-LM objectives take in one step; with `mixing: draw` on average, to the nearest token."""
        taken = [(objective.weight, getattr(objective, "batch_tokens", 0)) for objective in self.objectives]
        if self.mixing == "sum":
            return sum(tokens for _, tokens in taken)
        return max(1, round(sum(weight * tokens for weight, tokens in taken) / sum(weight for weight, _ in taken)))

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the phase."""
        if self.steps is not None:
            return self.steps
        assert self.tokens is not None
        return max(1, -(-self.tokens // self.tokens_per_step))


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
