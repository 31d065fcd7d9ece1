"""Fill-mask accuracy: how often a model finds a hidden word of held-out text, first or among its first five guesses.

A hash of each text chooses one of its whole words, which `<mask>` replaces. A whole word is one token that begins a word,
has letters only and is followed by another word, by punctuation or by nothing: one `<mask>` cannot hide a word of several
tokens. So rare words are left out, and scripts without spaces have few texts with such a word. A language with held-out
prose is tested on its paragraphs, the others on their held-out strings.

A guess is right if it is the hidden token; of equal probabilities the other token counts as the better guess.

Shapes: T tokens, M hidden words, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from dist_metaxlm.data.tokenizer import WORD_START, Tokenizer
from dist_metaxlm.evaluation.heldout import read_strings
from dist_metaxlm.evaluation.measures.bits import FrequencyTable
from dist_metaxlm.evaluation.measures.embed import SPECIALS, inference, pack_sentences
from dist_metaxlm.evaluation.measures.perplexity import MaskedSentence, hidden_targets, hide
from dist_metaxlm.reporting.results import Accuracy, FilledMask, FillMask, FillMaskResult

if TYPE_CHECKING:
    from dist_metaxlm.modeling.encoder import Encoder

ENGLISH = "en"
WORDS = 600
"""Hidden words of English, and of all other languages together."""
TOP = 5
EXAMPLE_CHARACTERS = range(25, 161)
"""Length of a text that is shown as an example."""
_ROWS = 128


@dataclass(frozen=True)
class Guess:
    """What a model says for a hidden word."""

    rank: int
    """How many other tokens are at least as probable."""
    probability: float
    """Of the hidden word."""
    tokens: list[tuple[int, float]]
    """The most probable tokens and their probabilities."""


HiddenWords = dict[str, list[MaskedSentence]]
"""Language -> texts with one hidden word each."""


def hide_words(heldout: Path, tokenizer: Tokenizer, window: int, count: int = WORDS) -> HiddenWords:
    """`count` hidden words of English, and `count` of all other languages together, evenly spaced over the texts.

    Fewer where there are not as many texts with a whole word; languages without any are left out.
    """
    texts = _texts(heldout)
    whole = _whole_words(tokenizer)
    others = max(1, sum(code != ENGLISH for code in texts))
    words = {}
    for code, of in texts.items():
        hidden = [sentence for text in of if (sentence := _hide_one(text, tokenizer, whole, window)) is not None]
        most = min(len(hidden), count if code == ENGLISH else -(-count // others))
        if most:
            words[code] = [hidden[number * len(hidden) // most] for number in range(most)]
    return words


def _texts(heldout: Path) -> dict[str, list[str]]:
    """Distinct held-out texts by language: paragraphs of prose, else strings."""
    strings = heldout / "strings.jsonl"
    rows = read_strings(strings, english=False) if strings.is_file() and strings.stat().st_size else []
    texts = {code: [row[code] for row in rows if code in row] for code in sorted({code for row in rows for code in row})}
    for path in sorted((heldout / "text").glob("*.txt")):
        lines = path.read_bytes().decode("utf-8").split("\n")
        texts[path.stem] = [line for line in (line.strip() for line in lines) if line]
    return {code: list(dict.fromkeys(of)) for code, of in texts.items()}


def _whole_words(tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """[V] bool each: the token is a word if a word ends after it; a word ends before the token."""
    pieces = tokenizer.pieces()
    begins = np.array([piece.startswith(WORD_START) and piece[1:].isalpha() for piece in pieces])
    ends = np.array(
        [piece.startswith(WORD_START) or (not piece.startswith("<") and not piece[:1].isalnum()) for piece in pieces]
    )
    return begins & ~tokenizer.special, ends & ~tokenizer.special


def _hide_one(text: str, tokenizer: Tokenizer, whole: tuple[np.ndarray, np.ndarray], window: int) -> MaskedSentence | None:
    """`text` with one of its whole words hidden; None if it has none, or nothing but one word."""
    begins, ends = whole
    ids = tokenizer.encode(text)[: window - SPECIALS]
    places = [n for n, token in enumerate(ids) if begins[token] and (n + 1 == len(ids) or ends[ids[n + 1]])]
    if not places or len(ids) < 3:
        return None
    key = hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest()
    return MaskedSentence(ids, [places[int.from_bytes(key, "big") % len(places)]])


def guess_words(
    encoder: Encoder, sentences: Sequence[MaskedSentence], mask_id: int, window: int, max_tokens: int = 8192
) -> list[Guess]:
    """The model's guess for the hidden word of each sentence."""
    device = next(encoder.parameters()).device
    guesses: dict[int, Guess] = {}
    with inference(encoder):
        for pack in pack_sentences([hide(sentence, mask_id) for sentence in sentences], window, max_tokens):
            places, answers = hidden_targets(pack, sentences, window)
            states = encoder(pack.batch.to(device))
            numbers = [number for number in pack.index.tolist() if number >= 0]
            for first in range(0, len(numbers), _ROWS):
                part = slice(first, first + _ROWS)
                logits = encoder.logits(states.index_select(0, places[part].to(device))).float()
                guesses.update(zip(numbers[part], _guesses(logits, answers[part].to(device)), strict=True))
    return [guesses[number] for number in range(len(sentences))]


def _guesses(logits_MV: torch.Tensor, answers_M: torch.Tensor) -> Iterator[Guess]:
    own = logits_MV.gather(1, answers_M[:, None])
    ranks = (logits_MV >= own).sum(1) - 1
    probabilities = logits_MV.softmax(1)
    values, tokens = probabilities.topk(TOP, dim=1)
    right = probabilities.gather(1, answers_M[:, None])[:, 0]
    for row in range(len(answers_M)):
        best = list(zip(tokens[row].tolist(), values[row].tolist(), strict=True))
        yield Guess(int(ranks[row]), float(right[row]), best)


def score(ranks: Mapping[str, Sequence[int]]) -> FillMask:
    """Accuracy from the rank of each hidden word, by language.

    Returns:
        `en` and `others` (all other languages' words together), each {words, top1, top5} or None without words, and
        `languages`, the same by language.
    """
    return {
        "en": _accuracy(ranks.get(ENGLISH, [])),
        "others": _accuracy([rank for code, of in ranks.items() if code != ENGLISH for rank in of]),
        "languages": {code: _accuracy(of) for code, of in ranks.items()},
    }


def _accuracy(ranks: Sequence[int]) -> Accuracy | None:
    if not ranks:
        return None
    first, five = (sum(rank < most for rank in ranks) / len(ranks) for most in (1, TOP))
    return {"words": len(ranks), "top1": first, "top5": five}


def fill_mask_accuracy(encoder: Encoder, tokenizer: Tokenizer, words: HiddenWords, window: int) -> FillMaskResult:
    """`score` of a model on hidden words, and `examples`; see `choose_examples`."""
    guesses = {code: guess_words(encoder, of, tokenizer.mask_id, window) for code, of in words.items()}
    result = score({code: [guess.rank for guess in of] for code, of in guesses.items()})
    return {**result, "examples": choose_examples(words, guesses, tokenizer)}


def table_accuracy(tables: Mapping[str, FrequencyTable], words: HiddenWords) -> FillMask:
    """`score` of always guessing the language's most frequent words; languages without a table count as never right."""
    best = {code: tables[code].most_frequent(TOP) if code in tables else [] for code in words}
    ranks = {}
    for code, of in words.items():
        hidden = [sentence.ids[sentence.hidden[0]] for sentence in of]
        ranks[code] = [best[code].index(token) if token in best[code] else TOP for token in hidden]
    return score(ranks)


def choose_examples(
    words: HiddenWords, guesses: Mapping[str, Sequence[Guess]], tokenizer: Tokenizer, best: int = 2
) -> list[FilledMask]:
    """Texts of 25 to 160 characters: those with the highest probability of the hidden word, and two chosen by a hash.

    Of English the `best` best, of other languages the `best` best in different languages, never the same word twice; then
    one of English and one of the others whose hash of the text is lowest, whatever the model says.

    Returns:
        [{language, text (with `<mask>`), expected, probability, rank, predictions: [{token, score}], chosen}]; `chosen` is
        `highest probability` or `random`.
    """
    shown = []
    for english in (True, False):
        rows = [
            (code, sentence, guess)
            for code, of in words.items()
            if (code == ENGLISH) == english
            for sentence, guess in zip(of, guesses[code], strict=True)
            if len(tokenizer.decode(sentence.ids)) in EXAMPLE_CHARACTERS
        ]
        shown += _best(rows, best, english)
        rest = [row for row in rows if not any(row[1] is other[1] for other in shown)]
        shown += [(*row, "random") for row in sorted(rest, key=lambda row: _hash(row[1]))[:1]]
    order = {"highest probability": 0, "random": 1}
    return [_example(*row, tokenizer) for row in sorted(shown, key=lambda row: order[row[3]])]


def _best(
    rows: Sequence[tuple[str, MaskedSentence, Guess]], count: int, english: bool
) -> list[tuple[str, MaskedSentence, Guess, str]]:
    chosen: list[tuple[str, MaskedSentence, Guess, str]] = []
    for code, sentence, guess in sorted(rows, key=lambda row: -row[2].probability):
        word = sentence.ids[sentence.hidden[0]]
        known = any(word == other.ids[other.hidden[0]] or (not english and code == name) for name, other, *_ in chosen)
        if len(chosen) < count and not known:
            chosen.append((code, sentence, guess, "highest probability"))
    return chosen


def _hash(sentence: MaskedSentence) -> bytes:
    return hashlib.blake2b(np.array(sentence.ids, np.int64).tobytes(), digest_size=8).digest()


def _example(code: str, sentence: MaskedSentence, guess: Guess, chosen: str, tokenizer: Tokenizer) -> FilledMask:
    pieces, place = tokenizer.pieces(), sentence.hidden[0]
    before, after = tokenizer.decode(sentence.ids[:place]), "".join(pieces[token] for token in sentence.ids[place + 1 :])
    joined = after.startswith(WORD_START)
    rest = tokenizer.decode(sentence.ids[place + 1 :])
    return {
        "language": code,
        "text": f"{before}{' ' * bool(before)}<mask>{' ' * joined}{rest}",
        "expected": pieces[sentence.ids[place]].removeprefix(WORD_START),
        "probability": guess.probability,
        "rank": guess.rank,
        "predictions": [{"token": pieces[token].replace(WORD_START, " "), "score": value} for token, value in guess.tokens],
        "chosen": chosen,
    }
