"""Damaged text files, from a seed alone, for every reader of the user's files: each is read or refused in a sentence."""

from __future__ import annotations

import gzip
import io
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polib
import pyarrow
import pyarrow.parquet

sys.path.insert(0, str(Path(__file__).parent))
from damaged_settings import samples as further_samples

from dist_metaxlm.errors import UserError
from dist_metaxlm.evaluation.heldout import read_strings
from dist_metaxlm.evaluation.tasks.alignment_files import GoldSettings, read_dictionary, read_gold
from dist_metaxlm.evaluation.tasks.files import read_labelled, read_questions, read_tagged
from dist_metaxlm.evaluation.tasks.questions import Questions
from dist_metaxlm.evaluation.tasks.spec import TaskSpec, load_tasks
from dist_metaxlm.preparation.readers import dispatch as readers
from dist_metaxlm.preparation.readers.evaluation import evaluation_texts
from dist_metaxlm.preparation.readers.problems import Problems
from dist_metaxlm.recipe.data import EvaluationFiles, ReadingConfig
from dist_metaxlm.reporting.metrics import read_metrics

TELLING = (
    *(character.encode() for character in '\u2028\u2029\x85\x0b\x0c\x1c\x1e\ufeff\0\r\n\t #"\\{}[]<>&,:-'),
    b"\xff\xfe",
    b"\xe9",
    b"\\ud800",
    b"\\u0000",
    b"null",
    b"true",
    b"1e999",
    b"-1",
    b"9" * 5000,
    b"[" * 3000,
    b"charset=ISO-8859-1\\n",
    b"charset=utf-16\\n",
    b"charset=unicode_escape\\n",
    b"charset=rot13\\n",
    b'msgid ""\n',
    b"msgstr[9]",
    b"#~ ",
    b"#| ",
    b"-DOCSTART-",
    b'<!ENTITY a "b">',
    b'xmlns="x"',
    b"0-999 9p9",
    b"<s snum=2>",
    b"1e400",
    b"**/",
    b"[!",
    b"x" * 300,
)
READING = ReadingConfig(max_line_characters=20_000)
Read = Callable[[Path], Any]


def _catalogue() -> polib.POFile:
    catalogue = polib.POFile()
    catalogue.metadata = {"Content-Type": "text/plain; charset=UTF-8"}
    catalogue += [
        polib.POEntry(msgid="Open the door", msgstr="Öffne die Türe", comment="c", occurrences=[("a.c", "1")]),
        polib.POEntry(
            msgid="%d page", msgid_plural="%d pages", msgstr_plural={0: "%d Seite", 1: "%d Seiten"}, flags=["fuzzy"]
        ),
        polib.POEntry(msgid="Old", msgstr="Alt", obsolete=True, msgctxt="x"),
    ]
    return catalogue


def _parquet() -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": ["one", "two"], "en": ["a", "b"], "de": ["c", None]}), file)
    return file.getvalue()


def _question() -> bytes:
    answer = {"text": "lamp", "answer_start": 4}
    asked = [{"id": n, "question": "what?", "answers": [answer]} for n in range(3)]
    return json.dumps({"data": [{"paragraphs": [{"context": "the lamp is on", "qas": asked}]}]}).encode()


TMX = (
    '<?xml version="1.0"?><!DOCTYPE tmx SYSTEM "tmx14.dtd"><tmx version="1.4" xmlns="http://www.lisa.org/tmx14"><body>'
    + '<tu><tuv xml:lang="en-US"><seg>a <ph>b</ph></seg></tuv><tuv xml:lang="de"><seg>c</seg></tuv></tu>' * 3
    + "</body></tmx>"
).encode()
LINES = "".join(json.dumps({"text": f"a\n{n}", "en": "b", "de": "c", "step": n}) + "\n" for n in range(4)).encode()
CONLLU = ("# text = a\n" + "".join(f"{n}\tw{n}\tw\tNOUN{chr(9)}_\t_\t_\t_\t_\t_\n" for n in range(1, 4)) + "\n").encode() * 2
PAIRS = [("a b c", "d e f"), ("g h", "i j")]


def _documents(path: Path) -> None:
    list(readers.documents([path], READING))


def _pairs(path: Path) -> None:
    list(readers.pairs([path], READING, ("en", "de")))


def _moses(path: Path) -> None:
    list(readers.pairs([(path, path)], READING, ("en", "de")))


def _decontaminate(path: Path) -> None:
    list(evaluation_texts([str(path)], 20_000))


def _decontaminate_tokens(path: Path) -> None:
    list(evaluation_texts([EvaluationFiles(files=[str(path)], token_column=2)], 20_000))


def _questions(path: Path) -> None:
    head = Questions(TaskSpec(kind="questions", test=["x"]))
    head.observe(read_questions(path))
    read_questions(path)


def _gold(path: Path) -> None:
    read_gold(PAIRS, path, GoldSettings(english_first=True))


SAMPLES: list[tuple[str, bytes, Read]] = [
    ("a.txt", "one\ntwo\n\nthree\u2028four\n".encode(), _documents),
    ("a.tsv", b"one\ttwo\nthree\tfour\n", _pairs),
    ("a.jsonl", LINES, _documents),
    ("b.jsonl", LINES, _pairs),
    ("a.txt.gz", gzip.compress(b"one\ntwo\n\n" * 40), _documents),
    ("a.parquet", _parquet(), _documents),
    ("b.parquet", _parquet(), _pairs),
    ("a.po", str(_catalogue()).encode(), _pairs),
    ("b.po", str(_catalogue()).replace("UTF-8", "ISO-8859-1").encode("latin-1"), _documents),
    ("a.mo", _catalogue().to_binary(), _pairs),
    ("a.tmx", TMX, _pairs),
    ("moses", b"one\ntwo\n", _moses),
    ("eval.json", _question(), _decontaminate),
    ("eval.tsv", b"a\tb\n", _decontaminate),
    ("eval.conllu", CONLLU, _decontaminate_tokens),
    ("strings.jsonl", b'{"en": "a", "de": "b"}\n' * 3, read_strings),
    ("metrics.jsonl", LINES, read_metrics),
    ("tags.txt", b"Mary B-PER\n#x O\n\n# O\n", read_tagged),
    ("tags.tsv", b"Mary\tB-PER\n#x\tO\n", lambda path: read_tagged(path, ["B-PER", "O"])),
    ("tags.conllu", CONLLU, read_tagged),
    ("conll.txt", b"-DOCSTART- -X- -X- O\n\nMary N N B-PER\n", lambda path: read_tagged(path, (), 1, 4)),
    (
        "labels.tsv",
        b"language\tgold_label\tsentence1\tsentence2\nde\tneutral\ta\tb\n",
        lambda path: read_labelled(path, (), "de"),
    ),
    ("squad.json", _question(), _questions),
    ("gold.txt", b"0-0 1-1\n0p1\n", _gold),
    ("naacl.txt", b"0001 1 1 S\n0002 2 1 P\n", _gold),
    ("dictionary.txt", b"a\td\ng i\n", lambda path: read_dictionary(PAIRS, path)),
    ("tasks.yaml", b"news: {kind: retrieval, test: [a.tsv]}\n", lambda path: load_tasks(["tatoeba"], path)),
    *further_samples(_documents, _pairs),
]


def damaged(raw: bytes, rng: random.Random) -> bytes:
    """The content with one to four changes: bytes changed, cut, doubled, lines moved, or something telling put in."""
    data = bytearray(raw)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(7):
            case 0 if data:
                data[min(at, len(data) - 1)] ^= 1 << rng.randrange(8)
            case 1:
                del data[at:]
            case 2:
                del data[at : at + rng.randrange(1, 30)]
            case 3:
                size = rng.randrange(1, 60)
                data[at:at] = data[at : at + size]
            case 4:
                lines = bytes(data).split(b"\n")
                rng.shuffle(lines)
                data = bytearray(b"\n".join(lines))
            case _:
                data[at:at] = rng.choice(TELLING)
    return bytes(data)


def read_damaged(folder: Path, seed: int) -> str:
    """`NAME: read` or `NAME: refused`; raises what no reader may raise.

    Every other file is read again with problems collected, where a corpus reader may raise nothing at all.
    """
    rng = random.Random(seed)
    name, content, read = rng.choice(SAMPLES)
    path = folder / name
    path.write_bytes(damaged(content, rng))
    try:
        read(path)
        outcome = "read"
    except UserError as error:
        str(error).encode()  # a sentence that no terminal and no file could take would be as bad
        outcome = "refused"
    if read in (_documents, _pairs):
        problems = Problems()
        if read is _documents:
            list(readers.documents([path], READING, problems))
        else:
            list(readers.pairs([path], READING, ("en", "de"), problems))
        assert bool(problems) == (outcome == "refused"), f"{name}: {outcome}, and collected {problems}"
    path.unlink()
    return f"{name}: {outcome}"
