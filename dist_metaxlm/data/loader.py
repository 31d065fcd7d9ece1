"""The data of one phase: packed batches by objective and sample number, without any state.

Sample n of an objective follows from (seed, phase, objective, n) alone, so ranks, micro-batches and resumed runs read
samples by number. The objective's data source defines whether a sample is a window or a translation pair
(data/objectives/).
"""

from __future__ import annotations

import difflib
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import numpy as np

from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.data.objectives.base import DataSource, Opening, Origin, Shown
from dist_metaxlm.data.sampling.phase_mix import samples_after
from dist_metaxlm.data.sources import text_sources
from dist_metaxlm.data.stages import StagedSamples
from dist_metaxlm.errors import UserError
from dist_metaxlm.recipe.objectives import registry
from dist_metaxlm.recipe.schema import Objective, PhaseConfig

if TYPE_CHECKING:
    from dist_metaxlm.data.tokenizer import Tokenizer
    from dist_metaxlm.data.tokens.store import TokenStore


class PhaseData:
    """What a phase reads from a token store. Batches may be built from several threads at once."""

    def __init__(self, store: TokenStore, tokenizer: Tokenizer, phase_name: str, phase: PhaseConfig, seed: int) -> None:
        """Open what the objectives of `phase` need; raises UserError for a store that cannot serve them."""
        if tokenizer.hash != store.tokenizer_hash:
            raise UserError(
                f"the token store was made with tokenizer {store.tokenizer_hash[:12]}, but tokenizer "
                f"{tokenizer.hash[:12]} is given ({tokenizer.path}); prepare the store again with it, "
                "or give the tokenizer of the store"
            )
        self._phase = phase
        reads = {objective.reads for objective in phase.objectives}
        text = list(text_sources(store.manifest["text"]))
        # a language may have translations only; objectives on text need its text
        self.languages = chosen_languages(phase, text if "text" in reads else _with_sides(text, store.pairs))
        self.pairs = chosen_pairs(phase, store.pairs) if "pairs" in reads else []
        self._staged = StagedSamples(phase, phase_name, seed)
        opened: dict[Hashable, object] = {}
        self._by_stage: list[dict[str, DataSource[Any]]] = []
        for stage in self._staged.stages:
            opening = Opening(store, tokenizer, stage.phase, phase_name, seed, self.languages, self.pairs, phase, opened)
            self._by_stage.append(
                {
                    objective.name: registry.entry(objective.name).load_data()(opening, objective)
                    for objective in stage.phase.objectives
                }
            )
        self._sources = self._by_stage[0]

    def batch(self, objective: Objective, first: int, count: int, stage: int = 0) -> PackedBatch:
        """Samples first .. first + count - 1 of one of the phase's objectives, which a step of `stage` takes."""
        return self._by_stage[stage][objective.name].batch(objective, np.arange(first, first + count, dtype=np.int64))

    def origin(self, objective: Objective, sample: int) -> Origin:
        """The origin of a sample in the store."""
        return self._of_sample(objective, sample).origin(sample)

    def shown(self, objective: Objective, sample: int) -> list[Shown]:
        """The documents of a sample, for display."""
        return self._of_sample(objective, sample).shown(objective, sample)

    def _of_sample(self, objective: Objective, sample: int) -> DataSource[Any]:
        return self._by_stage[self._staged.stage_of_sample(objective.name, sample)][objective.name]

    def names(self, objective_name: str) -> list[str]:
        """Languages or language pairs of an objective; batches refer to them by index in this list."""
        return self._sources[objective_name].names

    def asked(self, objective_name: str, tokens: int) -> dict[str, float]:
        """Language (or language pair) -> share that the recipe asks for after `tokens` training tokens of the phase."""
        sample = int(samples_after(self._phase, objective_name, tokens))
        return self._named(objective_name, self._sources[objective_name].mixture.shares(sample))

    def asked_so_far(self, objective_name: str, samples: int) -> dict[str, float]:
        """The same, averaged over the first `samples` samples of the objective: the expected actual mix."""
        return self._named(objective_name, self._sources[objective_name].mixture.shares_so_far(samples))

    def _named(self, objective_name: str, shares: np.ndarray) -> dict[str, float]:
        return dict(zip(self.names(objective_name), shares.tolist(), strict=True))


def chosen_languages(phase: PhaseConfig, available: list[str]) -> list[str]:
    """The phase's languages in the recipe's order, or all of the store; UserError for a language that the store lacks."""
    languages = list(available) if phase.languages == "all" else list(dict.fromkeys(phase.languages))
    for language in [*languages, *(name for point in phase.unlock for name in point.languages)]:
        if language not in available:
            near = difflib.get_close_matches(language, available, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            known = ", ".join(sorted(available))
            raise UserError(f"language {language!r} is not in the token store; it has {known}{hint}")
    if not languages:
        raise UserError("languages is an empty list; name at least one language, or set languages: all")
    return languages


def chosen_pairs(phase: PhaseConfig, available: list[str]) -> list[str]:
    """The store's language pairs with both sides among the phase's languages; UserError if none exists."""
    if phase.languages == "all":
        pairs = list(available)
    else:
        pairs = [pair for pair in available if set(pair.split("-")) <= set(phase.languages)]
    if not pairs:
        need = " and ".join(objective.name for objective in phase.objectives if objective.reads == "pairs")
        has = f"has the pairs {', '.join(sorted(available))}" if available else "has no translations"
        raise UserError(
            f"objectives on translations ({need}) need a language pair with both sides in languages {phase.languages}, "
            f"and the token store {has}; add the missing side to languages, or drop these objectives"
        )
    return pairs


def _with_sides(languages: list[str], pairs: list[str]) -> list[str]:
    sides = [side for pair in pairs for side in pair.split("-")]
    return list(dict.fromkeys([*languages, *sides]))
