"""An exported model filling in held-out words, opened the way a user of transformers opens it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dist_metaxlm.data.tokenizer import Tokenizer
from dist_metaxlm.errors import UserError
from dist_metaxlm.evaluation.heldout import read_strings
from dist_metaxlm.interop.folders import fill_mask
from dist_metaxlm.reporting.metrics import write_json

WORDS = range(4, 10)
"""Words of a string that gives enough context and still fits a table."""


Questions = dict[str, tuple[str, str]]
"""Language -> text with `<mask>`, and the hidden word."""


def hide_heldout_words(heldout: str | Path, tokenizer: Tokenizer, languages: list[str]) -> Questions:
    """Hide one word of a held-out string in each language.

    Raises:
        UserError: without held-out strings, or for a language without a fitting one.
    """
    strings = read_strings(Path(heldout) / "strings.jsonl", english=False)
    return {language: hide_word([s[language] for s in strings if language in s], language, tokenizer)
            for language in languages}


def fill_words(directory: str | Path, questions: Questions, top: int = 5) -> list[dict[str, Any]]:
    """Let an exported folder guess the hidden words; written to its fill_mask.json.

    Returns:
        [{language, text (with `<mask>`), expected, predictions: [{token, score}]}]
    """
    answers = fill_mask(directory, {language: text for language, (text, _) in questions.items()}, top)
    rows = [{"language": language, "text": text, "expected": expected,
             "predictions": [{"token": token, "score": score} for token, score in answers[language]]}
            for language, (text, expected) in questions.items()]
    write_json(Path(directory) / "fill_mask.json", rows)
    return rows


def hide_word(strings: list[str], language: str, tokenizer: Tokenizer) -> tuple[str, str]:
    """(text with `<mask>`, hidden word) of the first string with a longer word that is a single token."""
    for text in strings:
        words = text.split()
        if len(words) not in WORDS:
            continue
        for index in range(1, len(words)):
            word = words[index]
            if len(word) >= 4 and word.isalpha() and len(tokenizer.encode(word)) == 1:
                return " ".join([*words[:index], "<mask>", *words[index + 1:]]), word
    raise UserError(f"no held-out string in {language!r} has {WORDS[0]} to {WORDS[-1]} words, one of them a single token; "
                    "choose another language")
