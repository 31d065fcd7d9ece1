"""The data of one phase: packed batches by objective and sample number, without any state.

Sample n of an objective follows from (seed, phase, objective, n) alone, so ranks, micro-batches and resumed runs read
what they need by number. For mlm, tlm and dwa a sample is a window of `sequence_length` tokens, for contrast and
xlco a pair.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

import numpy as np
import torch

from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.data.packing.bitext import BitextWindows
from dist_metaxlm.data.packing.contrast import ContrastPairs
from dist_metaxlm.data.packing.masking import Masker
from dist_metaxlm.data.packing.spans import positions_within
from dist_metaxlm.data.packing.windows import Windows
from dist_metaxlm.data.packing.xlco import xlco_batch
from dist_metaxlm.data.sampling.mixing import Mixture
from dist_metaxlm.data.sampling.permutation import key
from dist_metaxlm.data.sampling.phase_mix import language_mix, pair_mix, samples_per_token
from dist_metaxlm.data.sources import Source, part_weights, text_sources
from dist_metaxlm.errors import UserError
from dist_metaxlm.recipe.schema import (
    AnyObjective,
    Contrast,
    CrossLingualContrast,
    DenoisingAlignment,
    MaskedLM,
    PhaseConfig,
    TranslationLM,
)

if TYPE_CHECKING:
    from dist_metaxlm.data.tokenizer import Tokenizer
    from dist_metaxlm.data.tokens.store import Corpus, TokenStore


MASKED = ("mlm", "tlm", "dwa")
"""Objectives on windows with targets."""


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
        self._names = [objective.name for objective in phase.objectives]
        self._keys = (seed, phase_name)
        self._mixtures: dict[str, Mixture] = {}
        self._maskers: dict[str, Masker] = {}
        sources = text_sources(store.manifest["text"])
        # a language may be there in translations only; with mlm it needs text
        known = list(sources) if "mlm" in self._names else _with_sides(list(sources), store.pairs)
        self.languages = chosen_languages(phase, known)
        self.pairs = chosen_pairs(phase, store.pairs) if set(self._names) - {"mlm"} else []
        if set(MASKED) & set(self._names) and self.targets_per_window < 1:
            raise UserError(
                f"mask_rate {phase.mask_rate} of sequence_length {phase.sequence_length} is less than one "
                f"target a window; set mask_rate to at least {1 / phase.sequence_length:.3f}"
            )
        for name in (*MASKED, "xlco"):
            if name in self._names:
                self._maskers[name] = Masker(
                    tokenizer, self.targets_per_window, phase.whole_words, key(*self._keys, name, "mask")
                )
        if "mlm" in self._names:
            self._open_text(store, [sources[language] for language in self.languages])
        if self.pairs:
            self._open_bitext([store.bitext(pair) for pair in self.pairs])

    @property
    def targets_per_window(self) -> int:
        """Targets of every mlm, tlm and dwa window: round(mask_rate * sequence_length)."""
        return round(self._phase.mask_rate * self._phase.sequence_length)

    def batch(self, objective: AnyObjective, first: int, count: int) -> PackedBatch:
        """Samples first .. first + count - 1 of one of the phase's objectives (windows; for contrast and xlco pairs)."""
        samples = np.arange(first, first + count, dtype=np.int64)
        language, ordinal = self._mixtures[objective.name].lookup(samples)
        if isinstance(objective, Contrast):
            return self._contrast_batch(samples, language, ordinal, objective.max_tokens)
        if isinstance(objective, CrossLingualContrast):
            return xlco_batch(
                self._examples,
                self._maskers["xlco"],
                key(*self._keys, "xlco", "mixup"),
                objective,
                samples,
                language,
                ordinal,
            )
        if isinstance(objective, TranslationLM | DenoisingAlignment):
            pairs = self._bitext[objective.name].read(language, ordinal, samples)
            tokens, documents = pairs.tokens, pairs.documents
        else:
            pieces = self._text.pieces(language, self._text.locate(language, ordinal))
            tokens, documents = self._text.read(pieces, count)
        masked = self._maskers[objective.name].mask(tokens, samples, documents)
        owner = self._mixtures[objective.name].owner[language]
        return _packed(masked.inputs, documents, samples, owner, masked.targets, masked.target_tokens)

    def origin(self, objective: AnyObjective, sample: int) -> tuple[str, list[tuple[int, int]]]:
        """Where a sample comes from: corpus of the store, and [(flat position in the sample, first token in the corpus)]
        of its unbroken runs; for tlm and dwa of its pairs, for contrast and xlco of the one pair."""
        number, ordinal = self._mixtures[objective.name].lookup(np.array([sample], np.int64))
        if isinstance(objective, MaskedLM):
            pieces = self._text.pieces(number, self._text.locate(number, ordinal))
            return self._corpora[number[0]], sorted(zip(pieces.destination.tolist(), pieces.source.tolist(), strict=True))
        if isinstance(objective, TranslationLM | DenoisingAlignment):
            return self.pairs[number[0]], self._bitext[objective.name].origin(number, ordinal)
        sentences = self._sentences if isinstance(objective, Contrast) else self._examples
        return self.pairs[number[0]], [(0, sentences.origin(number, ordinal))]

    def asked(self, objective_name: str, tokens: int) -> dict[str, float]:
        """Language (or language pair) -> share that the recipe asks for after `tokens` training tokens of the phase."""
        sample = int(tokens * samples_per_token(self._phase, objective_name))
        return self._named(objective_name, self._mixtures[objective_name].shares(sample))

    def asked_so_far(self, objective_name: str, samples: int) -> dict[str, float]:
        """The same, averaged over the first `samples` samples of the objective: what their realised mix should be."""
        return self._named(objective_name, self._mixtures[objective_name].shares_so_far(samples))

    def _named(self, objective_name: str, shares: np.ndarray) -> dict[str, float]:
        names = self.languages if objective_name == "mlm" else self.pairs
        return dict(zip(names, shares.tolist(), strict=True))

    def _open_text(self, store: TokenStore, sources: list[list[Source]]) -> None:
        keys = (*self._keys, "mlm")
        flat = [source for parts in sources for source in parts]
        self._corpora = [source.corpus for source in flat]
        corpora = [store.text(name) for name in self._corpora]
        self._text = Windows(corpora, [source.title for source in flat], self._phase.sequence_length, keys)
        sizes = iter(len(corpus.tokens) for corpus in corpora)
        tokens = [[next(sizes) for _ in parts] for parts in sources]
        weights = [part_weights(parts, counts) for parts, counts in zip(sources, tokens, strict=True)]
        self._mixtures["mlm"] = Mixture(language_mix(self._phase, self.languages, tokens, weights), key(*keys, "mix"))

    def _open_bitext(self, corpora: list[Corpus]) -> None:
        names = [f"language pair {pair}" for pair in self.pairs]
        length = self._phase.sequence_length
        counts = [len(corpus) for corpus in corpora]
        self._bitext = {
            name: BitextWindows(corpora, names, length, (*self._keys, name))
            for name in ("tlm", "dwa")
            if name in self._names
        }
        epochs: dict[str, list[int]] = {name: windows.counts.tolist() for name, windows in self._bitext.items()}
        if "contrast" in self._names:
            self._sentences = ContrastPairs(corpora, names, length, (*self._keys, "contrast"))
            epochs["contrast"] = counts
        if "xlco" in self._names:
            self._examples = ContrastPairs(corpora, names, length, (*self._keys, "xlco"))
            epochs["xlco"] = counts
        for name, samples in epochs.items():
            mix = pair_mix(self._phase, name, self.pairs, counts, samples)
            self._mixtures[name] = Mixture(mix, key(*self._keys, name, "mix"))

    def _contrast_batch(
        self, samples: np.ndarray, language: np.ndarray, ordinal: np.ndarray, max_tokens: int
    ) -> PackedBatch:
        read = self._sentences.read(language, self._sentences.locate(language, ordinal), max_tokens)
        numbers = np.full(len(read.documents), -1, np.int64)
        numbers[read.pairs] = 2 * samples[:, None] + np.arange(2)
        nothing = np.empty(0, np.int64)
        return _packed(
            read.tokens,
            read.documents,
            numbers,
            language[read.leaders // 2],
            nothing,
            nothing,
            torch.from_numpy(read.pairs),
            torch.from_numpy(language),
        )


def chosen_languages(phase: PhaseConfig, there: list[str]) -> list[str]:
    """The phase's languages in the recipe's order, or all of the store; UserError for one that is not in the store."""
    languages = list(there) if phase.languages == "all" else list(dict.fromkeys(phase.languages))
    for language in [*languages, *(name for point in phase.unlock for name in point.languages)]:
        if language not in there:
            near = difflib.get_close_matches(language, there, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"language {language!r} is not in the token store; it has {', '.join(sorted(there))}{hint}")
    if not languages:
        raise UserError("languages is an empty list; name at least one language, or set languages: all")
    return languages


def chosen_pairs(phase: PhaseConfig, there: list[str]) -> list[str]:
    """The store's language pairs with both sides among the phase's languages; UserError where there is none."""
    if phase.languages == "all":
        pairs = list(there)
    else:
        pairs = [pair for pair in there if set(pair.split("-")) <= set(phase.languages)]
    if not pairs:
        has = f"has the pairs {', '.join(sorted(there))}" if there else "has no translations"
        raise UserError(
            f"tlm, dwa, contrast and xlco need a language pair with both sides in languages {phase.languages}, "
            f"and the token store {has}; add the missing side to languages, or drop these objectives"
        )
    return pairs


def _with_sides(languages: list[str], pairs: list[str]) -> list[str]:
    sides = [side for pair in pairs for side in pair.split("-")]
    return list(dict.fromkeys([*languages, *sides]))


def _packed(
    tokens: np.ndarray,
    documents: np.ndarray,
    samples: np.ndarray,
    languages: np.ndarray,
    targets: np.ndarray,
    target_tokens: np.ndarray,
    pairs: torch.Tensor | None = None,
    pair_languages: torch.Tensor | None = None,
) -> PackedBatch:
    """The torch form of windows `tokens` [W, L] with `documents` [D] beginning at these flat positions."""
    return PackedBatch(
        tokens=torch.from_numpy(tokens.reshape(-1)),
        positions=torch.from_numpy(positions_within(documents, tokens.size)),
        cu_seqlens=torch.from_numpy(np.append(documents, tokens.size).astype(np.int32)),
        window=tokens.shape[1],
        samples=torch.from_numpy(samples),
        languages=torch.from_numpy(languages),
        targets=torch.from_numpy(targets),
        target_tokens=torch.from_numpy(target_tokens),
        pairs=pairs,
        pair_languages=pair_languages,
    )
