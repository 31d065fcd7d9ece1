"""Fill-mask predictions of an exported model on held-out words, loaded as a transformers user would load it."""

from __future__ import annotations

from pathlib import Path

from dist_metaxlm.data.tokenizer import Tokenizer
from dist_metaxlm.errors import UserError
from dist_metaxlm.evaluation.heldout import read_strings
from dist_metaxlm.interop.folders import fill_mask
from dist_metaxlm.reporting.metrics import write_json
from dist_metaxlm.reporting.results import FilledMask

WORDS = range(4, 10)
"""Words of a string that gives enough context and still fits a table."""
PIECES = range(6, 25)
"""The same in pieces, for strings without spaces."""


Questions = dict[str, tuple[str, str]]
"""Language -> text with `<mask>`, and the hidden word."""


def hide_heldout_words(heldout: str | Path, tokenizer: Tokenizer, languages: list[str]) -> Questions:
    """Hide one word of a held-out string in each language.

    Raises:
        UserError: without held-out strings, or for a language without a fitting one.
    """
    strings = read_strings(Path(heldout) / "strings.jsonl", english=False)
    available = sorted({language for string in strings for language in string})
    missing = [language for language in languages if language not in available]
    if missing:
        raise UserError(
            f"--fill_mask {missing[0]}: there are no held-out strings in that language (they come from "
            f"translations of English); choose from {', '.join(available)}"
        )
    return {
        language: hide_word([s[language] for s in strings if language in s], language, tokenizer) for language in languages
    }


def fill_words(directory: str | Path, questions: Questions, top: int = 5) -> list[FilledMask]:
    """Predict the hidden words with an exported model and write the result to its fill_mask.json.

    Returns:
        [{language, text (with `<mask>`), expected, predictions: [{token, score}]}]
    """
    answers = fill_mask(directory, {language: text for language, (text, _) in questions.items()}, top)
    rows: list[FilledMask] = [
        {
            "language": language,
            "text": text,
            "expected": expected,
            "predictions": [{"token": token, "score": score} for token, score in answers[language]],
        }
        for language, (text, expected) in questions.items()
    ]
    write_json(Path(directory) / "fill_mask.json", rows)
    return rows


def hide_word(strings: list[str], language: str, tokenizer: Tokenizer) -> tuple[str, str]:
    """(text with `<mask>`, hidden word) of the first string with a longer word that is a single token.

    If no string has one, as in scripts without spaces: the first string with an inner piece of two letters or more.
    """
    for text in strings:
        words = text.split()
        if len(words) not in WORDS:
            continue
        for index in range(1, len(words)):
            word = words[index]
            if len(word) >= 4 and word.isalpha() and len(tokenizer.encode(word)) == 1:
                return " ".join([*words[:index], "<mask>", *words[index + 1 :]]), word
    names = tokenizer.pieces()
    for text in strings:
        pieces = [names[token] for token in tokenizer.encode(text)]
        for piece in pieces[2:-1] if len(pieces) in PIECES else []:
            if len(piece) >= 2 and piece.isalpha() and text.count(piece) == 1:
                return text.replace(piece, "<mask>"), piece
    raise UserError(
        f"no held-out string in {language!r} has {WORDS[0]} to {WORDS[-1]} words, one of them a single token, "
        f"or {PIECES[0]} to {PIECES[-1]} pieces, one of them two letters that occur once; choose another "
        "language"
    )
