"""Fake English: a second language with the sentences of English and none of its tokens.

Every ordinary token id is shifted by a constant; `<s>`, `</s>`, `<pad>`, `<unk>` and `<mask>` are shared (K et al., arXiv
1912.07840; Dufter and Schütze, arXiv 2005.00396, whose ids are shifted after tokenisation as ours are). A model can discover
that the two are the same language only from token co-occurrence, so any trainer that can align languages aligns these.

The shift is made in the tokenizer: a SentencePiece model gets a copy of each ordinary piece, spelled in private characters
with the same score. Text in these characters is then segmented at the same places into the shifted ids, so the fake language
is prepared, stored, trained on and evaluated like any other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dist_metaxlm.data.special_tokens import UNK
from dist_metaxlm.preparation.readers import dispatch as readers

PLANE = 0xF0000
"""Supplementary private use area A: U+F0000 + c stands for the character U+c."""
WORD_GAP = "\u2581"
LANGUAGE, FAKE = "en", "fake"
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_PLAIN = re.compile(r"[a-z]+(?:[ ,'-]+[a-z]+)*")


def fake(text: str) -> str:
    """`text` in private characters, including the gap between words. Errors: ValueError beyond U+FFFD."""
    if text and max(text) > "\ufffd":
        raise ValueError(f"{max(text)!r} has no place in the private plane; leave such sentences out")
    return "".join(chr(PLANE + ord(character)) for character in text.replace(" ", WORD_GAP))


def doubled(model: bytes) -> bytes:
    """A SentencePiece model with private copies of all ordinary pieces appended in the same order.

    No gap is added before a text, because a fake text has none either. The id of a copy is the id of its original plus the
    number of ordinary pieces.
    """
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model)
    ordinary = [(piece.piece, piece.score) for piece in proto.pieces[UNK + 1 :]]
    for piece, score in ordinary:
        proto.pieces.add(piece=fake(piece), score=score)
    proto.normalizer_spec.add_dummy_prefix = False
    proto.trainer_spec.vocab_size = len(proto.pieces)
    return bytes(proto.SerializeToString(deterministic=True))


def plain_sentences(paths: Iterable[Path], least: int, most: int) -> Iterator[str]:
    """Distinct sentences of `least` to `most` words, in lower case, of Latin letters, commas, hyphens and apostrophes."""
    seen: set[str] = set()
    for document in readers.documents(list(paths)):
        for text in document:
            for part in _SENTENCE.split(text):
                sentence = " ".join(part.lower().rstrip(".!?").split())
                if least <= sentence.count(" ") + 1 <= most and _PLAIN.fullmatch(sentence) and sentence not in seen:
                    seen.add(sentence)
                    yield sentence


def write_corpus(folder: Path, sentences: list[str], pairs: int, parallel: bool) -> None:
    """Write `en.txt` and `fake.txt`, one sentence per document, and `en-fake.tsv` with the first `pairs` sentences in both.

    Held-out strings are chosen from the pairs. Without `parallel` the first half of the sentences is only in English and
    the second half only in the fake language.
    """
    half = len(sentences) // 2
    english, shifted = (sentences, sentences) if parallel else (sentences[:half], sentences[half:])
    for name, lines in ((LANGUAGE, english), (FAKE, map(fake, shifted))):
        (folder / f"{name}.txt").write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    rows = (f"{sentence}\t{fake(sentence)}\n" for sentence in sentences[:pairs])
    (folder / f"{LANGUAGE}-{FAKE}.tsv").write_text("".join(rows), encoding="utf-8")
