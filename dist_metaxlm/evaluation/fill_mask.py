"""An exported model filling in held-out words, opened the way a user of transformers opens it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dist_metaxlm.data.tokenizer import Tokenizer
from dist_metaxlm.errors import UserError
from dist_metaxlm.interop.folders import fill_mask
from dist_metaxlm.reporting.metrics import write_json

WORDS = range(4, 10)
"""Words of a string that gives enough context and still fits a table."""


def fill_heldout_words(directory: str | Path, heldout: str | Path, tokenizer: Tokenizer, languages: list[str],
                       top: int = 5) -> list[dict[str, Any]]:
    """Hide one word of a held-out string per language and let the exported folder guess; written to fill_mask.json.

    Returns:
        [{language, text (with `<mask>`), expected, predictions: [{token, score}]}]

    Raises:
        UserError: for a language without a fitting held-out string.
    """
    lines = (Path(heldout) / "strings.jsonl").read_text(encoding="utf-8").splitlines()
    strings = [json.loads(line) for line in lines]
    questions = {language: hide_word([s[language] for s in strings if language in s], language, tokenizer)
                 for language in languages}
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
