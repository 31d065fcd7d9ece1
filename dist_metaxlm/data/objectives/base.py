"""The data source of a training objective: packed batches by sample number, without any state.

Shapes: n samples of a batch, D documents, T tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar, cast

import numpy as np

from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.data.packing.masking import Masker, MaskRule
from dist_metaxlm.data.sampling.mixing import Mixture
from dist_metaxlm.data.sampling.permutation import key
from dist_metaxlm.data.sources import Source, text_sources
from dist_metaxlm.errors import UserError
from dist_metaxlm.recipe.objectives.windows import MaskedObjective
from dist_metaxlm.recipe.schema import Objective, PhaseConfig

if TYPE_CHECKING:
    from dist_metaxlm.data.tokenizer import Tokenizer
    from dist_metaxlm.data.tokens.store import Corpus, TokenStore

Config = TypeVar("Config", bound=Objective)
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Opening:
    """Arguments for opening a data source: the store, and the languages and pairs that the phase reads."""

    store: TokenStore
    tokenizer: Tokenizer
    phase: PhaseConfig
    """The phase, or a stage of it, without schedules."""
    phase_name: str
    seed: int
    languages: list[str]
    """Languages of the phase, in the order in which batches number them."""
    pairs: list[str]
    """Language pairs of the phase, likewise; empty if no objective reads pairs."""
    whole: PhaseConfig | None = None
    """The phase with its schedules, which decide the language mix; None: `phase`."""
    opened: dict[Hashable, object] = field(default_factory=dict)
    """What several stages share, by name."""

    @property
    def schedules(self) -> PhaseConfig:
        """The phase with its schedules."""
        return self.whole or self.phase

    def once(self, name: Hashable, make: Callable[[], T]) -> T:
        """What `make` makes, or what an earlier stage has made under the same name."""
        if name not in self.opened:
            self.opened[name] = make()
        return cast(T, self.opened[name])

    def keys(self, objective: str) -> tuple[str | int, ...]:
        """Key of the random streams of an objective."""
        return self.seed, self.phase_name, objective

    def sources(self) -> list[list[Source]]:
        """The text of each language: corpora of the store."""
        known = text_sources(self.store.manifest["text"])
        return [known[language] for language in self.languages]

    @cached_property
    def bitexts(self) -> list[Corpus]:
        """The translations of each language pair."""
        return [self.store.bitext(pair) for pair in self.pairs]

    @property
    def pair_titles(self) -> list[str]:
        """Names of the language pairs in messages."""
        return [f"language pair {pair}" for pair in self.pairs]

    def masker(self, objective: str, rule: MaskRule | None = None) -> Masker:
        """Masks with the phase's settings, keyed by the objective's name."""
        phase, stream = self.phase, key(*self.keys(objective), "mask")
        return Masker(self.tokenizer, phase.targets_per_window, phase.whole_words, stream, rule or MaskRule())

    def check_targets(self) -> None:
        """Raise UserError if the phase's mask rate gives a window no target."""
        if self.phase.targets_per_window < 1:
            raise UserError(
                f"mask_rate {self.phase.mask_rate} of sequence_length {self.phase.sequence_length} is less than one "
                f"target a window; set mask_rate to at least {1 / self.phase.sequence_length:.3f}"
            )


def mask_rule(objective: Objective) -> MaskRule:
    """How an objective masks: its own fields, or the usual rule if it has none."""
    if not isinstance(objective, MaskedObjective):
        return MaskRule()
    return MaskRule(
        masked_share=objective.masked_share,
        random_share=objective.random_share,
        span_p=objective.span_p,
        span_max=objective.span_max,
    )


class Origin(NamedTuple):
    """Where a sample comes from."""

    corpus: str
    """Name in the store: of a text, or of a language pair."""
    runs: list[tuple[int, int]]
    """(flat position in the sample, first token in the corpus) of its unbroken runs, by position."""


@dataclass(frozen=True)
class Shown:
    """Documents of a sample as the model sees them, for display."""

    batch: PackedBatch
    words: np.ndarray
    """[T] int64: the same tokens before masking."""
    part: str | None = None
    """Description of these documents if they are assembled from several places of the store."""


class DataSource(ABC, Generic[Config]):
    """The data of one objective of a phase. Batches may be built from several threads at once."""

    names: list[str]
    """Languages or language pairs that it reads; batches refer to them by index in this list."""
    mixture: Mixture
    """Which of its corpora each sample is from."""

    @abstractmethod
    def __init__(self, opening: Opening, objective: Config) -> None:
        """Open what the objective needs; raises UserError for a store that cannot serve it."""

    @abstractmethod
    def batch(self, objective: Config, samples: np.ndarray) -> PackedBatch:
        """The samples numbered `samples` [n] int64, consecutive. Each sample is independent of the rest of the batch."""

    @abstractmethod
    def origin(self, sample: int) -> Origin:
        """Where a sample comes from."""

    def shown(self, objective: Config, sample: int) -> list[Shown]:
        """The documents of a sample."""
        batch = self.batch(objective, np.array([sample], np.int64))
        return [Shown(batch, batch.tokens.scatter(0, batch.targets, batch.target_tokens).numpy())]

    def locate(self, sample: int) -> tuple[np.ndarray, np.ndarray]:
        """([1] number of the corpus, [1] ordinal in it) of a sample."""
        return self.mixture.lookup(np.array([sample], np.int64))
