"""Generate token stores of any size in seconds: a real index over random documents, with random tokens or sparse files."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np

from dist_metaxlm.data.special_tokens import BOS, EOS
from dist_metaxlm.data.tokens import manifest

VOCAB = 60_000
DOCUMENT = 400
"""Mean tokens of a document."""
_HASH = "0" * 64
_BLOCK = 16 << 20
"""Bytes under one checksum."""


class SyntheticTokenizer:
    """The tokenizer attributes that the loader needs, for random ids; every second id begins a word."""

    hash = _HASH
    path = Path("synthetic.model")
    vocab_size = VOCAB
    mask_id = VOCAB - 1
    special = np.isin(np.arange(VOCAB), [0, 1, 2, 3, VOCAB - 1])
    word_begin = np.arange(VOCAB) % 2 == 0


def write_store(folder: Path, languages: int, tokens: int, holes: bool) -> None:
    """A store of about `tokens` uint16 tokens; language n has a share proportional to 1 / (n + 1).

    With `holes` the `.bin` files are sparse and read as zeros. The checksums in the manifest are fake: opening
    compares sizes only.
    """
    folder.mkdir(parents=True)
    shares = 1.0 / np.arange(1, languages + 1)
    files, text = {}, {}
    for number, share in enumerate(shares / shares.sum()):
        name, generator = f"l{number:03d}", np.random.default_rng(number)
        count = max(2, int(tokens * share) // DOCUMENT)
        lengths = generator.integers(DOCUMENT // 4, 2 * DOCUMENT - DOCUMENT // 4, count, dtype=np.int32)
        starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        _write_index(folder / f"{name}.idx", lengths, starts)
        with (folder / f"{name}.bin").open("wb") as file:
            if holes:
                file.truncate(2 * int(starts[-1]))
            else:
                ids = generator.integers(4, VOCAB - 1, int(starts[-1]), dtype=np.uint16)
                ids[starts[:-1]], ids[starts[1:] - 1] = BOS, EOS
                ids.tofile(file)
        for end in ("bin", "idx"):
            size = (folder / f"{name}.{end}").stat().st_size
            files[f"{name}.{end}"] = {"size": size, "sha256": [_HASH] * -(-size // _BLOCK)}
        text[name] = {"documents": count, "tokens": int(starts[-1])}
    content = {
        "format": manifest.FORMAT,
        "tokenizer_hash": _HASH,
        "vocab_size": VOCAB,
        "text": text,
        "bitext": {},
        "files": files,
    }
    (folder / manifest.NAME).write_text(json.dumps(content), encoding="utf-8")


def _write_index(path: Path, lengths: np.ndarray, starts: np.ndarray) -> None:
    """Megatron's index of documents of one uint16 sequence each."""
    with path.open("wb") as file:
        file.write(struct.pack("<9sQBQQ", b"MMIDIDX\x00\x00", 1, 8, len(lengths), len(lengths) + 1))
        lengths.tofile(file)
        (2 * starts[:-1]).tofile(file)
        np.arange(len(lengths) + 1, dtype=np.int64).tofile(file)
