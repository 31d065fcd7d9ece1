"""Damaged stores, from a seed alone: bytes changed, cut, doubled, swapped or replaced by telling values."""

from __future__ import annotations

import json
import random
import struct
from contextlib import suppress
from pathlib import Path

import numpy as np

from dist_metaxlm.data.tokens import manifest
from dist_metaxlm.data.tokens.store import Corpus, TokenStore
from dist_metaxlm.errors import UserError
from dist_metaxlm.preparation.store.writer import write_index

TELLING = (
    0,
    1,
    2,
    4,
    5,
    8,
    9,
    34,
    127,
    128,
    255,
    256,
    65499,
    65535,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 1,
)
TARGETS = ("en.idx", "en.bin", "en-de.idx", "en-de.bin", "manifest.json")
VOCABULARY = 400


def make_store(folder: Path) -> None:
    """A small whole store: 40 documents of English, 25 pairs."""
    rng = np.random.default_rng(3)
    for name, documents, sequences in (("en", 40, 1), ("en-de", 25, 2)):
        lengths = rng.integers(2, 9, documents * sequences).astype(np.int32)
        rng.integers(0, VOCABULARY, int(lengths.sum())).astype(np.uint16).tofile(folder / f"{name}.bin")
        write_index(folder / f"{name}.idx", [lengths], np.uint16, sequences)
    counts = {"tokens": 1, "bytes": 1, "dropped": {}, "source": []}
    manifest.write(
        folder,
        {
            "tokenizer_hash": "ab" * 32,
            "vocab_size": VOCABULARY,
            "dtype": "uint16",
            "settings": {},
            "text": {"en": {"documents": 40, **counts}},
            "bitext": {"en-de": {"pairs": 25, **counts}},
        },
    )


def damage(raw: bytes, rng: random.Random) -> bytes:
    """`raw` with one to four mutations."""
    data = bytearray(raw)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(data) + 1) if rng.random() < 0.5 else rng.randrange(min(len(data), 64) + 1)
        match rng.randrange(7):
            case 0 if data:
                data[min(at, len(data) - 1)] ^= 1 << rng.randrange(8)
            case 1:
                value = struct.pack("<Q", rng.choice(TELLING))[: rng.choice((1, 2, 4, 8))]
                data[at : at + len(value)] = value
            case 2:
                del data[at:]
            case 3:
                del data[at : at + rng.randrange(1, 40)]
            case 4:
                data[at:at] = rng.randbytes(rng.randrange(1, 40))
            case 5:
                size = rng.randrange(1, 40)
                data[at:at] = data[at : at + size]
            case _:
                data[at : at + 8] = rng.randbytes(8)
    return bytes(data)


def damage_manifest(raw: bytes, rng: random.Random) -> bytes:
    """A manifest with a field removed, renamed or replaced; still JSON, unless the bytes are mutated as well."""
    odd = (
        None,
        -1,
        0,
        1.5,
        10**30,
        "",
        "../x",
        "/etc/passwd",
        "en\x00",
        [],
        {},
        [[]],
        True,
        "en",
        {"size": 1, "sha256": [1]},
    )
    names = ("../en.bin", "/tmp/en.bin", "en..bin", "a/../../b", "", "fr", "en-fr", "de.idx")
    content = json.loads(raw)
    place = content
    while isinstance(place, dict) and place:
        name = rng.choice(list(place))
        if isinstance(place[name], dict) and place[name] and rng.random() < 0.75:
            place = place[name]
            continue
        match rng.randrange(4):
            case 0:
                del place[name]
            case 1:
                place[rng.choice(names)] = place.pop(name)
            case _:
                place[name] = rng.choice(odd)
        break
    out = json.dumps(content)
    if rng.random() < 0.2:
        name = rng.choice(("format", "files", "en.bin", "text"))
        out = out.replace(f'"{name}": ', f'"{name}": 2, "{name}": ', 1)
    return out.encode()


def mutate(folder: Path, seed: int) -> str:
    """Damage one file of the store in `folder`; returns its name. For every other seed the manifest is made to agree in
    sizes and checksums, as in a store from a stranger, so that the reader's own checks must hold."""
    rng = random.Random(seed)
    name = rng.choice(TARGETS)
    path = folder / name
    raw = path.read_bytes()
    changed = damage_manifest(raw, rng) if name == manifest.NAME and rng.random() < 0.7 else damage(raw, rng)
    path.write_bytes(changed)
    if name != manifest.NAME and seed % 2:
        content = json.loads((folder / manifest.NAME).read_bytes())
        content["files"][name] = manifest.describe_file(path)
        (folder / manifest.NAME).write_text(json.dumps(content))
    return name


def read_everything(folder: Path) -> str:
    """What opening, verifying and reading the store ends in: `whole` or the sentence of the UserError."""
    for prefix, sequences in (("en", 1), ("en-de", 2)):
        with suppress(UserError):
            _walk(Corpus(folder / prefix, sequences), sequences)
    try:
        store = TokenStore.open(folder)
        for name in store.languages:
            _walk(store.text(name), 1)
        for name in store.pairs:
            _walk(store.bitext(name), 2)
        store.verify()
    except UserError as error:
        return str(error)
    return "whole"


def _walk(corpus: Corpus, sequences: int) -> None:
    """Every document inside the tokens, in order; reading them all touches every page of the map."""
    starts = corpus.document_starts
    assert starts[0] == 0 if len(corpus) else True
    assert starts[-1] == corpus.tokens.size
    assert (np.diff(starts) >= 0).all()
    if sequences == 2:
        assert ((corpus.second_starts >= starts[:-1]) & (corpus.second_starts <= starts[1:])).all()
    assert int(corpus.tokens.astype(np.int64).sum()) < 2**63
