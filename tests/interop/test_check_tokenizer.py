"""Tokenizers both ways on generated text in twelve scripts: one id like the other in a thousand sentences."""

from __future__ import annotations

import importlib.util
import lzma
import random
import unicodedata
from pathlib import Path

import pytest

PATH = Path(__file__).with_name("check_tokenizer.py")
LETTERS = {
    "LATIN": (0x61, 0x17E),
    "GREEK": (0x3B1, 0x3C9),
    "CYRILLIC": (0x430, 0x45F),
    "ARMENIAN": (0x561, 0x586),
    "HEBREW": (0x5D0, 0x5EA),
    "ARABIC": (0x620, 0x64A),
    "DEVANAGARI": (0x905, 0x94D),
    "THAI": (0xE01, 0xE4C),
    "GEORGIAN": (0x10D0, 0x10F0),
    "HANGUL": (0xAC00, 0xAC80),
    "HIRAGANA": (0x3042, 0x3093),
    "CJK": (0x4E00, 0x4E80),
}


@pytest.fixture(scope="module")
def check():
    spec = importlib.util.spec_from_file_location("check_tokenizer", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sentences() -> list[str]:
    """84 sentences of each script: a hundred words each, some capitals, digits, punctuation and double spaces."""
    rng = random.Random(4)
    made = []
    for first, last in LETTERS.values():
        letters = [chr(code) for code in range(first, last + 1) if unicodedata.category(chr(code))[0] in "LM"]
        words = ["".join(rng.choices(letters, k=rng.randrange(1, 8))) for _ in range(100)]
        for _ in range(84):
            text = " ".join(rng.choices(words, k=rng.randrange(3, 12)))
            variants = (text, text.title(), f"{text}, {rng.randrange(999)}!", text.replace(" ", "  ", 1), f"({text})")
            made.append(rng.choice(variants))
    return made


def test_same_ids_in_a_thousand_sentences_of_twelve_scripts(check, tmp_path):
    texts = sentences()
    assert len(texts) > 1000
    result = check.compare({"all": texts}, check.folders(texts, 2400, tmp_path))
    assert result["other_ids"] == {"all": {"sentences": len(texts)} | dict.fromkeys(check.DIRECTIONS, 0)}, result


def test_sentences_are_found_by_script(check, tmp_path):
    with lzma.open(tmp_path / "a.tsv.xz", "wt", encoding="utf-8") as stream:
        stream.write("Good evening.\tこんばんは、皆さん。\nGood evening.\tДобрый вечер.\n")
    (tmp_path / "b.txt").write_text("晚上好。\n12 + 3\n", encoding="utf-8")
    (tmp_path / "c.bin").write_bytes(b"\xff")
    assert check.sentences_by_script([tmp_path], 10) == {
        "CJK": ["晚上好。"],
        "CYRILLIC": ["Добрый вечер."],
        "KANA": ["こんばんは、皆さん。"],
        "LATIN": ["Good evening."],
    }
