"""A tiny exported encoder, and task files that it can learn."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import sentencepiece
from tiny_tokenizer import train_tokenizer

from dist_metaxlm.interop.folders import export_folder
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.recipe.schema import ModelConfig

NOUNS = {
    "en": ["house", "dog", "river", "stone"],
    "de": ["Haus", "Hund", "Fluss", "Stein"],
    "th": ["บ้าน", "หมา", "แม่น้ำ", "หิน"],
}
VERBS = {"en": ["sees", "takes", "makes"], "de": ["sieht", "nimmt", "macht"], "th": ["เห็น", "เอา", "ทำ"]}


def sentence(language: str, rng: random.Random) -> tuple[list[str], list[str]]:
    words = [rng.choice(NOUNS[language]), rng.choice(VERBS[language]), rng.choice(NOUNS[language])]
    return words, ["NOUN", "VERB", "NOUN"]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained two-layer XLM-R with a tokenizer, as launch/convert.py exports it."""
    folder = tmp_path_factory.mktemp("encoder")
    lines = [" ".join(NOUNS[language] + VERBS[language]) for language in NOUNS]
    train_tokenizer(lines * 20, folder, 400)
    size = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).GetPieceSize() + 1
    config = ModelConfig(layers=2, hidden=32, heads=2, ffn=64, vocab_size=size, max_positions=64)
    export_folder(Encoder(config, 5).state_dict(), config, folder / "tokenizer.model", folder / "model")
    return folder / "model"


@pytest.fixture(scope="session")
def task_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """udpos, xnli (is the second sentence the first one?), xquad and tatoeba in en, de and th."""
    root, rng = tmp_path_factory.mktemp("tasks"), random.Random(2)
    for folder in ("udpos", "xnli", "tatoeba", "squad", "xquad"):
        (root / folder).mkdir()
    for split, language, count in (("train", "en", 80), ("dev", "en", 16), *(("test", code, 20) for code in NOUNS)):
        rows, pairs, asked = [], [], []
        for number in range(count):
            words, tags = sentence(language, rng)
            answer = {"text": words[1], "answer_start": len(words[0]) + 1}
            asked.append({"context": " ".join(words), "qas": [{"id": f"{number}", "question": "what", "answers": [answer]}]})
            rows.append("".join(f"{word}\t{tag}\n" for word, tag in zip(words, tags, strict=True)))
            same = number % 2
            other = words if same else [VERBS[language][0]] * 3
            pairs.append(f"{' '.join(words)}\t{' '.join(other)}\t{'entailment' if same else 'neutral'}\n")
        (root / "udpos" / f"{split}-{language}.tsv").write_text("\n".join(rows), encoding="utf-8")
        (root / "xnli" / f"{split}-{language}.tsv").write_text("".join(pairs), encoding="utf-8")
        name = f"xquad/xquad.{language}.json" if split == "test" else f"squad/{split}-v1.1.json"
        (root / name).write_text(json.dumps({"data": [{"title": "t", "paragraphs": asked}]}), encoding="utf-8")
    for code, name in (("deu", "de"), ("tha", "th")):
        lines = [
            f"{NOUNS['en'][a]} {VERBS['en'][b]} {NOUNS['en'][c]}\t{NOUNS[name][a]} {VERBS[name][b]} {NOUNS[name][c]}\n"
            for a in range(4)
            for b in range(3)
            for c in range(4)
        ]
        (root / "tatoeba" / f"{code}-eng.tsv").write_text("".join(lines), encoding="utf-8")
    return root
