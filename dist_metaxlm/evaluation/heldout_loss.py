"""The held-out loss inside training: masked-LM bits per byte by language on text that no phase trains on.

A fixed sample is read: of a language with held-out prose, windows of it, else its held-out strings. English gets half of
`training.heldout_tokens`, the other languages share the rest evenly. A hash of the text chooses the hidden tokens, so
sample and masks are the same at every step, in every phase, layout and seed, and figures can be compared.

The same figure of a table of word frequencies of the phase's training text is given too: a model at that level has learnt
nothing else yet.
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from dist_metaxlm.data.loader import chosen_pairs
from dist_metaxlm.data.tokenizer import Tokenizer
from dist_metaxlm.data.tokens.store import TokenStore
from dist_metaxlm.errors import UserError
from dist_metaxlm.evaluation.heldout import read_strings
from dist_metaxlm.evaluation.measures.bits import FrequencyTable, bits_per_byte, piece_bytes, token_counts
from dist_metaxlm.evaluation.measures.embed import SPECIALS, SentencePack, pack_sentences
from dist_metaxlm.evaluation.measures.perplexity import MaskedSentence, hidden_targets, hide, mask_sentence, read_prose
from dist_metaxlm.evaluation.probe import MAX_TOKENS, ranks_share
from dist_metaxlm.evaluation.run import window_of
from dist_metaxlm.parallel.groups import groups
from dist_metaxlm.parallel.process_group import sum_over_batch
from dist_metaxlm.recipe.schema import PhaseConfig, Recipe
from dist_metaxlm.reporting.records import HeldoutFigures
from dist_metaxlm.training.loop.heldout import ReadLosses

ENGLISH = "en"


class HeldoutLoss:
    """Bits per byte on the fixed sample, and those of the word frequencies of the phase's training text."""

    def __init__(self, recipe: Recipe, phase_name: str) -> None:
        """Read prepared data, the same on all ranks. Errors: UserError if the phase has no language with held-out text."""
        phase, directory = recipe.phase(phase_name), Path(recipe.data.directory)
        tokenizer = Tokenizer.load(directory / "tokenizer.model")
        cut = recipe.parallel.tensor if recipe.parallel.sequence else 1
        self._window = window_of(recipe) // cut * cut
        self._mask_id = tokenizer.mask_id
        sample = read_sample(directory / "heldout", tokenizer, self._window, recipe.training.heldout_tokens)
        self._names = list(sample)
        self._sentences = [sentence for of in sample.values() for sentence in of]
        self._language = np.repeat(np.arange(len(sample)), [len(of) for of in sample.values()])
        sizes = piece_bytes(tokenizer)
        hidden = {code: [s.ids[place] for s in of for place in s.hidden] for code, of in sample.items()}
        self._bytes = {code: int(sizes[tokens].sum()) for code, tokens in hidden.items()}
        wanted = _phase_languages(phase)
        self._averaged = [code for code in self._names if wanted is None or code in wanted]
        if not self._averaged:
            raise UserError(
                f"training.heldout_interval {recipe.training.heldout_interval} needs held-out text in a language of phase "
                f"{phase_name}, and {directory / 'heldout'} has none; raise data.heldout_strings and prepare the data "
                "again, or set training.heldout_interval: 0"
            )
        self._frequencies = _word_frequencies(directory, tokenizer, phase, hidden, self._bytes)
        self.sample = hashlib.sha256(json.dumps([[s.ids, s.hidden] for s in self._sentences]).encode()).hexdigest()[:12]
        """Names the sample: figures of different samples cannot be compared."""

    def __call__(self, read: ReadLosses, device: torch.device) -> HeldoutFigures:
        """Figures of the model, equal on all ranks (collective).

        Returns:
            `bits_per_byte`: mean over the phase's languages; `languages`: by language, those of other phases included;
            `word_frequencies`: the mean as the table of word frequencies has it (None where a language has no training
            text), and `language_word_frequencies`; `sample`.
        """
        nats = self._nats(read, device)
        languages = {code: bits_per_byte(nats[n], self._bytes[code]) for n, code in enumerate(self._names)}
        return {
            "bits_per_byte": sum(languages[code] for code in self._averaged) / len(self._averaged),
            "languages": languages,
            "word_frequencies": self._mean_frequencies(),
            "language_word_frequencies": self._frequencies,
            "sample": self.sample,
        }

    def _mean_frequencies(self) -> float | None:
        known = [self._frequencies[code] for code in self._averaged if code in self._frequencies]
        return sum(known) / len(known) if len(known) == len(self._averaged) else None

    @cached_property
    def _packs(self) -> list[SentencePack]:
        tokens = sum(len(sentence.ids) + SPECIALS for sentence in self._sentences)
        share = -(-tokens // groups().data_size // self._window) * self._window
        shown = [hide(sentence, self._mask_id) for sentence in self._sentences]
        return pack_sentences(shown, self._window, min(MAX_TOKENS, share))

    def _nats(self, read: ReadLosses, device: torch.device) -> list[float]:
        """Sum of the negative log likelihoods of each language, on all ranks."""
        totals = torch.zeros(len(self._names), dtype=torch.float64, device=device)
        for pack, own in ranks_share(self._packs):
            places, answers = hidden_targets(pack, self._sentences, self._window)
            losses = read(pack.batch.to(device), places.to(device), answers.to(device))
            if losses is not None and own:
                totals.index_add_(0, self._languages_of(pack).to(device), losses.double())
        return [float(total) for total in sum_over_batch(totals).cpu()]

    def _languages_of(self, pack: SentencePack) -> torch.Tensor:
        """[M] int64: the language of every hidden token of a pack, in the order of `hidden_targets`."""
        numbers = [number for number in pack.index.tolist() if number >= 0]
        counts = [len(self._sentences[number].hidden) for number in numbers]
        return torch.from_numpy(np.repeat(self._language[numbers], counts))


def read_sample(heldout: Path, tokenizer: Tokenizer, window: int, tokens: int) -> dict[str, list[MaskedSentence]]:
    """About `tokens` tokens of held-out text by language, with hidden tokens; languages without any are left out.

    Half is English, unless it is the only language or absent; the others have equal parts of the rest.
    """
    rows = read_strings(heldout / "strings.jsonl", english=False) if _has_content(heldout / "strings.jsonl") else []
    prose = {path.stem: path for path in sorted((heldout / "text").glob("*.txt")) if _has_content(path)}
    codes = sorted({code for row in rows for code in row} | set(prose))
    codes = [*([ENGLISH] if ENGLISH in codes else []), *(code for code in codes if code != ENGLISH)]
    sample = {}
    for code in codes:
        share = tokens // len(codes)
        if ENGLISH in codes and len(codes) > 1:
            share = tokens // 2 if code == ENGLISH else tokens // 2 // (len(codes) - 1)
        if code in prose:
            pieces = read_prose(prose[code], tokenizer, window)
        else:
            texts = list(dict.fromkeys(row[code] for row in rows if code in row))
            pieces = [_masked(text, tokenizer, window) for text in texts]
        chosen = _evenly([piece for piece in pieces if piece.hidden], share)
        if chosen:
            sample[code] = chosen
    return sample


def _masked(text: str, tokenizer: Tokenizer, window: int) -> MaskedSentence:
    return mask_sentence(text, tokenizer.encode(text)[: window - SPECIALS], tokenizer.special)


def _evenly(pieces: list[MaskedSentence], tokens: int) -> list[MaskedSentence]:
    """Evenly spaced pieces with about `tokens` tokens in all, at least one; all if they have fewer."""
    total = sum(len(piece.ids) + SPECIALS for piece in pieces)
    count = min(len(pieces), max(1, round(len(pieces) * tokens / max(1, total))))
    return [pieces[n * len(pieces) // count] for n in range(count)] if pieces else []


def _has_content(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _phase_languages(phase: PhaseConfig) -> set[str] | None:
    """The languages that a phase trains on; None for all."""
    if phase.languages == "all":
        return None
    return {*phase.languages, *(code for point in phase.unlock for code in point.languages)}


def _word_frequencies(
    directory: Path, tokenizer: Tokenizer, phase: PhaseConfig, hidden: dict[str, list[int]], sizes: dict[str, int]
) -> dict[str, float]:
    """Bits per byte of `hidden` tokens under the word frequencies of the phase's training text, by language."""
    store, wanted = TokenStore.open(directory / "store"), _phase_languages(phase)
    pairs = chosen_pairs(phase, store.pairs) if any(objective.reads == "pairs" for objective in phase.objectives) else []
    counts = token_counts(store, tokenizer, [code for code in hidden if wanted is None or code in wanted], pairs)
    return {
        code: bits_per_byte(FrequencyTable(table, tokenizer).nats(hidden[code]), sizes[code])
        for code, table in counts.items()
    }
