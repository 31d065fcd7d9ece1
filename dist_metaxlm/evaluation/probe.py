"""The probe inside training: sentence retrieval on the first held-out strings, at the study's fixed layer.

To be cheap it uses few strings packed without padding, encodes each sentence once for all languages, stops at the layer
it reads, and distributes the windows over the data-parallel ranks.

Shapes: N sentences, D documents of a pack, H hidden.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import torch

from dist_metaxlm.data.tokenizer import Tokenizer
from dist_metaxlm.errors import UserError
from dist_metaxlm.evaluation.heldout import read_strings
from dist_metaxlm.evaluation.measures.embed import SPECIALS, SentencePack, mean_pool, pack_sentences
from dist_metaxlm.evaluation.measures.retrieval import MIN_PAIRS, distinct_pairs, fixed_layer, precision_at_1
from dist_metaxlm.evaluation.run import window_of
from dist_metaxlm.parallel.groups import groups
from dist_metaxlm.parallel.process_group import sum_over_batch
from dist_metaxlm.recipe.schema import Recipe
from dist_metaxlm.reporting.records import ProbeFigures
from dist_metaxlm.text import pluralize
from dist_metaxlm.training.loop.probing import ReadStates

MAX_TOKENS = 8192
"""Upper bound on the tokens encoded at once."""


class HeldoutProbe:
    """P@1 of every language against English, mean of both directions, on `training.probe_strings` held-out strings."""

    def __init__(self, recipe: Recipe) -> None:
        """Read the strings of prepared data, the same on all ranks. Errors: UserError when no language has enough."""
        self.layer = fixed_layer(recipe.model.layers)
        self._hidden = recipe.model.hidden
        cut = recipe.parallel.tensor if recipe.parallel.sequence else 1
        self._window = window_of(recipe) // cut * cut
        tokenizer = Tokenizer.load(Path(recipe.data.directory) / "tokenizer.model")
        path = Path(recipe.data.directory) / "heldout" / "strings.jsonl"
        rows = _rows(path, recipe.training.probe_strings)
        self._sentences: list[list[int]] = []
        """N lists of ids, English first."""
        self._pairs: dict[str, tuple[list[int], list[int]]] = {}
        """Language -> numbers of the English sentences and of their translations."""
        english = self._add(tokenizer, [row["en"] for row in rows])
        for code in sorted({code for row in rows for code in row} - {"en"}):
            known = [number for number, row in enumerate(rows) if code in row]
            first, second = [english[number] for number in known], self._add(tokenizer, [rows[n][code] for n in known])
            kept = distinct_pairs([self._sentences[at] for at in first], [self._sentences[at] for at in second])
            if len(kept) >= MIN_PAIRS:
                self._pairs[code] = [first[n] for n in kept], [second[n] for n in kept]
        if not self._pairs:
            raise UserError(
                f"training.probe_interval {recipe.training.probe_interval} needs a language with {MIN_PAIRS} "
                f"translations of English held out, and the first {pluralize(len(rows), 'string')} of {path} "
                "have none; raise training.probe_strings, give data.bitext with English, or set "
                "training.probe_interval: 0"
            )

    def __call__(self, read: ReadStates, device: torch.device) -> ProbeFigures:
        """{retrieval (mean over languages), layer, strings, languages {language: P@1}}, equal on all ranks (collective)."""
        vectors = self._vectors(read, device)
        scores = {code: _both_ways(vectors[first], vectors[second]) for code, (first, second) in self._pairs.items()}
        return {
            "retrieval": sum(scores.values()) / len(scores),
            "layer": self.layer,
            "strings": max(len(first) for first, _ in self._pairs.values()),
            "languages": scores,
        }

    def _add(self, tokenizer: Tokenizer, texts: list[str]) -> list[int]:
        """Add `texts`; returns their sentence numbers."""
        before = len(self._sentences)
        self._sentences += [ids[: self._window - SPECIALS] for ids in tokenizer.encode_batch(texts)]
        return list(range(before, len(self._sentences)))

    @cached_property
    def _packs(self) -> list[SentencePack]:
        """All sentences, in at least one pack per data-parallel rank if there are enough tokens."""
        tokens = sum(len(ids) + SPECIALS for ids in self._sentences)
        share = -(-tokens // groups().data_size // self._window) * self._window
        return pack_sentences(self._sentences, self._window, min(MAX_TOKENS, share))

    def _vectors(self, read: ReadStates, device: torch.device) -> torch.Tensor:
        """[N, H] float32: mean state of every sentence, on all ranks."""
        vectors = torch.zeros(len(self._sentences), self._hidden, device=device)
        for pack, own in ranks_share(self._packs):
            batch = pack.batch.to(device)
            states = read(batch, self.layer)
            if states is not None and own:
                real = pack.index >= 0
                vectors[pack.index[real].to(device)] = mean_pool(states, batch)[real.to(device)]
        return sum_over_batch(vectors)


def ranks_share(packs: list[SentencePack]) -> Iterator[tuple[SentencePack, bool]]:
    """This data-parallel rank's packs, equally many on all ranks, and whether each is its own to count.

    A rank without a pack of its own runs the last one: the forward pass is collective under ZeRO-3.
    """
    place = groups()
    for turn in range(0, len(packs), place.data_size):
        number = turn + place.data_rank
        yield packs[min(number, len(packs) - 1)], number < len(packs)


def _rows(path: Path, most: int) -> list[dict[str, str]]:
    if not path.is_file() or not path.stat().st_size:
        return []  # reported below, with the field that requires them
    return [row for row in read_strings(path) if "en" in row][:most]


def _both_ways(english: torch.Tensor, other: torch.Tensor) -> float:
    """Mean of both directions' P@1 of [P, H] vectors."""
    return (precision_at_1(other[None], english[None])[0] + precision_at_1(english[None], other[None])[0]) / 2
