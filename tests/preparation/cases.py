"""Files as people have them, and what the readers must make of them: `python tests/preparation/cases.py [FOLDER]`.

Prints row (of docs/data.md and docs/evaluation.md's kinds of trouble), case, observed and expected, and ends with 1 where
they differ. With FOLDER, the corpus step of every recipe below it is tried as well, and what comes of it is printed.
`test_cases.py` runs the same cases.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polib

from dist_metaxlm.errors import UserError
from dist_metaxlm.evaluation.heldout import read_strings
from dist_metaxlm.evaluation.measures.perplexity import read_prose
from dist_metaxlm.evaluation.tasks.files import read_labelled, read_questions, read_tagged
from dist_metaxlm.evaluation.tasks.questions import Questions
from dist_metaxlm.evaluation.tasks.spec import BUILT_IN, TaskSpec, files_by_language
from dist_metaxlm.evaluation.tasks.tagging import Tagging
from dist_metaxlm.preparation.corpus import corpus
from dist_metaxlm.preparation.readers import dispatch as readers
from dist_metaxlm.preparation.readers.evaluation import evaluation_texts
from dist_metaxlm.preparation.settings import check_settings, write_settings
from dist_metaxlm.recipe.data import DataConfig, EvaluationFiles, ReadingConfig
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.reporting.metrics import read_metrics

BREAKS = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e"
"""What Python takes for ends of lines beside \\n and \\r, and no format of ours does."""
READING = ReadingConfig()
WORDS = "the lamp in the harbour is green and the boat is small"


@dataclass(frozen=True)
class Case:
    """One situation."""

    row: int
    name: str
    run: Callable[[Path], Any]
    expected: Any

    def observe(self, folder: Path) -> Any:
        """What comes of it: a value, or of a UserError `refused` where its sentence has all expected words, else it."""
        try:
            return self.run(folder)
        except UserError as error:
            words = self.expected[1:] if isinstance(self.expected, tuple) and self.expected[:1] == ("refused",) else ()
            return self.expected if words and all(word in str(error) for word in words) else f"refused: {error}"


def refused(*words: str) -> tuple[str, ...]:
    """An expected UserError whose sentence has these words."""
    return ("refused", *words)


def put(path: Path, content: str | bytes) -> Path:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# Row 1: text split at what Python calls a line and the format does not.
TEXT = "a" + "b".join(BREAKS) + "c"


def held_out_strings(folder: Path) -> Any:
    rows = [{"en": TEXT, "de": "x"}, {"en": "plain"}]
    put(folder / "s.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return read_strings(folder / "s.jsonl") == rows


class _Words:
    """A tokenizer with an id a word."""

    special = [False] * 9

    def encode(self, text: str) -> list[int]:
        return [1] * len(text.split())


def held_out_prose(folder: Path) -> int:
    put(folder / "p.txt", "one\r\rtwo three\n\nfour\n\n")
    return len([s for s in read_prose(folder / "p.txt", _Words(), 32) if s.ids])  # type: ignore[arg-type]


def metrics(folder: Path) -> int:
    put(folder / "m.jsonl", "".join(json.dumps({"step": n, "note": TEXT}, ensure_ascii=False) + "\n" for n in (1, 2)))
    return len(read_metrics(folder / "m.jsonl"))


def decontaminated(folder: Path) -> Any:
    put(folder / "e.json", json.dumps({"data": [{"context": TEXT}, {"context": "two\nlines"}]}, ensure_ascii=False))
    return [text for _, text in evaluation_texts([str(folder / "e.json")], 1000)] == [TEXT, "two", "lines"]


def all_formats(folder: Path) -> Any:
    line = json.dumps({"en": f"x{TEXT}x", "de": "y"}, ensure_ascii=False)
    files = [put(folder / "a.tsv", f"x{TEXT}x\ty\n"), put(folder / "a.jsonl", line + "\n")]
    moses = (put(folder / "m.en", f"x{TEXT}x\n"), put(folder / "m.de", "y\n"))
    return set(readers.pairs([*files, moses], READING, ("en", "de"))) == {(f"x{TEXT}x", "y")}


def tags(folder: Path) -> Any:
    return read_tagged(put(folder / "t.tsv", f"x{TEXT}x\tO\ny\tO\n"))[0].tokens == [f"x{TEXT}x", "y"]


def po(
    *messages: tuple[str, str], header: str = "Content-Type: text/plain; charset=UTF-8\\n", encoding: str = "utf-8"
) -> bytes:
    """A catalogue."""
    head = f'msgid ""\nmsgstr "{header}"\n\n' if header else ""
    return (head + "".join(f'msgid "{a}"\nmsgstr "{b}"\n\n' for a, b in messages)).encode(encoding)


def translations(folder: Path, content: bytes, name: str = "a.po") -> list[str]:
    return [right for _, right in readers.pairs([put(folder / name, content)], READING, ("en", "de"))]


def po_breaks(folder: Path) -> list[str]:
    return translations(folder, b"\x0c\n# a\xe2\x80\xa8b\n" + po((f"Open{BREAKS}it", f"Öffne{BREAKS}es"), ("Close", "Zu")))


def mo(encoding: str, charset: str) -> bytes:
    """A compiled catalogue."""
    catalogue = polib.POFile(encoding=encoding)
    catalogue.metadata = {"Content-Type": f"text/plain; charset={charset}"}
    catalogue.append(polib.POEntry(msgid="Open the door", msgstr="Türe öffnen"))
    return bytes(catalogue.to_binary())


# Row 3: a corpus of thousands of files is never perfect.
def made(folder: Path, **reading: Any) -> dict[str, Any]:
    """The corpus step on a folder of shards as a Spark job leaves it, with every kind of trouble."""
    good = "".join(json.dumps({"text": f"{WORDS} {n}"}) + "\n" for n in range(300))
    for name, content in {
        "_SUCCESS": b"",
        "part-0.jsonl": (json.dumps({"text": ""}) + "\n" + good).encode(),
        "part-1.jsonl": b"",
        "part-2.jsonl.gz": gzip.compress(b""),
        "part-3.jsonl": b'{"text": ""}\n{"text": null}\n',
        **reading.pop("more", {}),
    }.items():
        put(folder / "spark" / name, content)
    config = DataConfig.model_validate(
        {"directory": "data", "text": {"en": [f"{folder}/spark/*"]}, "reading": reading, "cleaning": {"deduplicate": []}}
    )
    put(folder / "out" / "log", "")
    corpus.sources(config)
    log: list[str] = []
    about: dict[str, Any] = corpus.make(folder / "out", config, log.append)["text"]["en"]
    return {"kept": about["kept"]["documents"], "left_out": about.get("left_out"), "log": log}


def skipped(folder: Path) -> Any:
    bad = b'{"text": "cut off\n[1]\n{"body": "x"}\n' + b'{"text": "a\xff"}\n'
    found = made(folder, on_error="skip", max_skipped=0.05, more={"part-4.jsonl": bad})
    numbers = {name: found["left_out"][name] for name in ("empty_files", "unreadable_files", "unreadable_records")}
    return (
        found["kept"],
        numbers,
        any("left out 3 files without text, 4 unreadable records" in line for line in found["log"]),
    )


def short_languages(folder: Path) -> Any:
    from dist_metaxlm.data.packing.windows import Windows

    class Tokens:
        def __init__(self, count: int) -> None:
            import numpy as np

            self.tokens, self.document_starts = np.zeros(count, np.uint16), np.array([0, count])

    return Windows([Tokens(3), Tokens(90), Tokens(5)], ["language aa", "language bb", "language cc"], 64, ("k",))  # type: ignore[list-item]


def policy_of_made_data(folder: Path) -> list[str]:
    """What prepared data say of a recipe with another policy: nothing, unless files may have been left out of them."""
    (folder / "corpus").mkdir()

    def recipe(policy: str, most: float) -> Any:
        fields = [f"data.directory={folder}", f"data.reading.on_error={policy}", f"data.reading.max_skipped={most}"]
        return load_recipe("quickstart", fields)

    said = []
    for before, now in (("refuse", "skip"), ("skip", "skip"), ("skip", "refuse")):
        write_settings(recipe(before, 0.01))
        try:
            check_settings(recipe(now, 0.2))
            said.append("taken")
        except UserError as error:
            said.append("refused" if "data.reading.on_error='skip'" in str(error) else str(error))
    return said


# Row 6: comments exist in one format only; a label set is declared.
MULTI = "_\t_\t_\t_\t_\t_"


def tagged(folder: Path, text: str, name: str = "t.txt", **how: Any) -> list[tuple[list[str], list[str]]]:
    return [(sentence.tokens, sentence.tags) for sentence in read_tagged(put(folder / name, text), **how)]


def decontaminated_tags(folder: Path) -> list[str]:
    put(folder / "d.txt", "#one B-X\n# O\n10\u00a0000 O\n")
    return [text for _, text in evaluation_texts([EvaluationFiles(files=[str(folder / "d.txt")], token_column=1)], 1000)]


# Row 7: a file in the right shape without the truth in it.
def squad(folder: Path, *answers: tuple[str, int]) -> Path:
    """A file with a question for each answer; the context is WORDS."""
    asked = [
        {"id": f"q{n}", "question": "?", "answers": [{"text": text, "answer_start": start}]}
        for n, (text, start) in enumerate(answers)
    ]
    return put(folder / "q.json", json.dumps({"data": [{"paragraphs": [{"context": WORDS, "qas": asked}]}]}))


def learned(folder: Path, *answers: tuple[str, int]) -> int:
    head = Questions(TaskSpec(kind="questions", test=["x"]))
    train = head.read(squad(folder, *answers), "en")
    head.observe(train)
    return len(train)


# Row 8: printing never undoes work.
def printed(encoding: str) -> Callable[[Path], str]:
    def run(folder: Path) -> str:
        code = "from dist_metaxlm.errors import run_command\nrun_command(lambda: print('\\u6c49 \\xe9 \\u2501'))"
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=False)
        return f"{done.returncode} {done.stdout.decode('ascii', 'replace').strip()}"

    return run


# Row 10: paths and formats as people have them.
def bracketed(folder: Path) -> list[str]:
    for name in ("data [v1]/a.txt", "data [v1]/b[2].txt", "datav/c.txt"):
        put(folder / name, "text\n")
    found = readers.expand([f"{folder}/data [v1]/*.txt", f"{folder}/data [v1]/b[2].txt", f"{folder}/data?/[c].txt"], "f")
    return [Path(str(place)).name for place in found]


def bracketed_url(folder: Path) -> list[str]:
    put(folder / "data [v1]/a.txt", "text\n")
    return [str(place).rpartition("/")[2] for place in readers.expand([f"file://{folder}/data [v1]/*.txt"], "f")]


def bracketed_task(folder: Path) -> list[str]:
    put(folder / "ner [v1]/de.txt", "x O\n")
    return list(files_by_language(folder, ["ner [v1]/{lang}.txt"], "task"))


def tmx(folder: Path, namespace: str = ' xmlns="http://www.lisa.org/tmx14"') -> list[tuple[str, str]]:
    sides = "".join(
        f'<tuv xml:lang="{code}"><seg>{text} <hi>x</hi><ph>no</ph></seg></tuv>' for code, text in (("en", "a"), ("de", "b"))
    )
    text = f'<?xml version="1.0"?><tmx version="1.4"{namespace}><header/><body><!-- c --><tu>{sides}</tu></body></tmx>'
    return list(readers.pairs([put(folder / "a.tmx", text)], READING, ("en", "de")))


def own_fields(folder: Path) -> Any:
    put(folder / "wiki", '{"body": "one"}\n')
    put(folder / "web.jsonl", '{"text": "two"}\n')
    put(folder / "part-0", "x\tthree\n")
    put(folder / "pairs.dump", "1\ta b c\td e f\n")
    config = DataConfig.model_validate(
        {
            "directory": "data",
            "text": {
                "en": {
                    "wiki": {"files": [f"{folder}/wiki"], "format": "jsonl", "text_field": "body"},
                    "web": {"files": [f"{folder}/web.jsonl"]},
                    "tsv": {"files": [f"{folder}/part-*"], "format": "tsv", "text_column": 2},
                }
            },
            "bitext": {"en-de": {"x": {"files": [f"{folder}/pairs.dump"], "format": "tsv", "pair_columns": [2, 3]}}},
        }
    )
    (folder / "out").mkdir()
    corpus.make(folder / "out", config, lambda line: None)
    return {path.name: path.read_text(encoding="utf-8").strip() for path in sorted((folder / "out").glob("*/*.*"))}


BIO = ["B-PER", "O"]
CASES = [
    Case(1, "held-out strings", held_out_strings, True),
    Case(1, "held-out prose with carriage returns", held_out_prose, 2),
    Case(1, "metrics", metrics, 2),
    Case(1, "decontamination by .json", decontaminated, True),
    Case(1, ".tsv, .jsonl and Moses", all_formats, True),
    Case(1, "tag files", tags, True),
    Case(1, ".po", po_breaks, ["Öffne es", "Zu"]),
    Case(
        2,
        ".po in ISO-8859-1",
        lambda f: translations(f, po(("Go on", "Fährt"), header=latin, encoding="latin-1")),
        ["Fährt"],
    ),
    Case(2, ".po in KOI8-R", lambda f: translations(f, po(("Go", "Да да"), header=koi, encoding="koi8-r")), ["Да да"]),
    Case(
        2,
        ".po in Shift_JIS",
        lambda f: translations(f, po(("Go", "表示する"), header=sjis, encoding="shift_jis")),
        ["表示する"],
    ),
    Case(2, ".mo in ISO-8859-1", lambda f: translations(f, mo("latin-1", "ISO-8859-1"), "a.mo"), ["Türe öffnen"]),
    Case(2, "placeholder CHARSET", lambda f: translations(f, po(("Go", "Fährt"), header=placeholder)), ["Fährt"]),
    Case(2, "unknown charset, in UTF-8", lambda f: translations(f, po(("Go", "Fährt"), header=unknown)), ["Fährt"]),
    Case(
        2,
        "unknown charset, not in UTF-8",
        lambda f: translations(f, po(("Go", "Fährt"), header=unknown, encoding="latin-1")),
        refused("a.po", "0xE4", "is not x-mine, as its header says"),
    ),
    Case(
        2,
        "a message that looks like a header",
        lambda f: translations(f, po(("Content-Type: text/plain; charset=koi8-r", "Fährt es"), header="")),
        ["Fährt es"],
    ),
    Case(2, "byte order mark", lambda f: translations(f, b"\xef\xbb\xbf" + po(("Go", "Fährt"), header=latin)), ["Fährt"]),
    Case(2, "CRLF", lambda f: translations(f, po(("Go", "Fährt")).replace(b"\n", b"\r\n")), ["Fährt"]),
    Case(
        3,
        "everything at once",
        lambda f: made(f, more={"part-4.jsonl": b"{\n[1]\n", "README.md": b"hello"}),
        refused(
            "part-1.jsonl is empty",
            "part-2.jsonl.gz holds no text",
            "part-3.jsonl holds no text",
            "part-4.jsonl, line 1",
            "part-4.jsonl, line 2",
            "README.md",
            "on_error: skip",
        ),
    ),
    Case(3, "markers of Spark are no data", lambda f: [str(p)[-8:] for p in spark(f)], ["t-0.json"]),
    Case(3, "skip and count", skipped, (300, {"empty_files": 3, "unreadable_files": 0, "unreadable_records": 4}, True)),
    Case(
        3,
        "skip within a bound",
        lambda f: made(f, on_error="skip", more={"part-4.jsonl": b"{\n" * 9}),
        refused("9 of 309 records", "max_skipped 0.01", "part-4.jsonl, line 1"),
    ),
    Case(3, "policy of made data", policy_of_made_data, ["taken", "taken", "refused"]),
    Case(3, "short languages", short_languages, refused("language aa has 3 tokens, language cc has 5 tokens")),
    Case(3, "a folder", lambda f: readers.expand([str(f)], "data.text.en"), refused("is a folder", "/*.txt")),
    Case(
        6,
        "two columns",
        lambda f: tagged(f, "Mary B-PER\n#Harbour O\n# O\n"),
        [(["Mary", "#Harbour", "#"], ["B-PER", "O", "O"])],
    ),
    Case(
        6,
        "four columns",
        lambda f: tagged(f, "-DOCSTART- -X- -X- O\n\n#Mary N N B-PER\n# N N O\n", token_column=1, label_column=4),
        [(["#Mary", "#"], BIO)],
    ),
    Case(
        6,
        "CoNLL-U",
        lambda f: tagged(f, f"# text = #a\n1-2\tx\t_\t_\t{MULTI}\n1\t#a\ta\tX\t{MULTI}\n# late\n2\tb\tb\tX\t{MULTI}\n"),
        [(["#a", "b"], ["X", "X"])],
    ),
    Case(6, "declared comments", lambda f: tagged(f, "# id 7\n#a O\n", comments="# id"), [(["#a"], ["O"])]),
    Case(
        6, "undeclared comment", lambda f: tagged(f, "# id = 7\nMary B-PER\n"), refused("line 1 has 4 columns", "comments")
    ),
    Case(6, "line without a label", lambda f: tagged(f, "Mary B-PER\nwent\n"), refused("line 2 has 1 column")),
    Case(6, "line with a column more", lambda f: tagged(f, "Mary B-PER\nnew port O\n"), refused("line 2 has 3 columns")),
    Case(6, "tabs lost in one line", lambda f: tagged(f, "Mary\tB-PER\n10 000\n"), refused("line 2 has 1 column")),
    Case(6, "columns changed round", lambda f: tagged(f, "Mary B-PER\nO went\n"), refused("line 2 has the label 'went'")),
    Case(
        6,
        "a misspelled label of a built-in task",
        lambda f: Tagging(BUILT_IN["masakhaner"]).read(put(f / "t.txt", "Mary B-PERS\n"), "sw"),
        refused("line 1 has the label 'B-PERS'", "B-DATE"),
    ),
    Case(6, "decontamination", decontaminated_tags, ["#one # 10\u00a0000"]),
    Case(6, "classification", lambda f: read_labelled(put(f / "c.tsv", "a\tb\tc\tneutral\n")), refused("line 1 has 4 tab")),
    Case(7, "right answers", lambda f: learned(f, ("lamp", 4), ("green", 27)), 2),
    Case(
        7,
        "blanked answers",
        lambda f: read_questions(squad(f, ("", 0), (" ", 0))),
        refused("2 of 2 questions", "no answer with text"),
    ),
    Case(7, "some blanked", lambda f: read_questions(squad(f, ("lamp", 4), ("", 0))), refused("1 of 2 questions", "'q1'")),
    Case(7, "shifted", lambda f: learned(f, ("lamp", 4), ("green", 26)), refused("1 of 2 questions", "'q1'", "at 26")),
    Case(7, "beyond the end", lambda f: learned(f, ("lamp", 4000)), refused("1 of 1 question ", "4000")),
    Case(7, "negative", lambda f: learned(f, ("small", -5)), refused("1 of 1 question ", "at -5")),
    Case(
        7,
        "answers of another file",
        lambda f: read_questions(squad(f, ("Berlin", 0))),
        refused("no answer of its 1 question"),
    ),
    Case(8, "ASCII", printed("ascii"), "0 \\u6c49 \\xe9 \\u2501"),
    Case(8, "Latin-1", printed("latin-1"), "0 \\u6c49 \ufffd \\u2501"),
    Case(10, "brackets", bracketed, ["a.txt", "b[2].txt", "c.txt"]),
    Case(10, "brackets in a URL", bracketed_url, ["a.txt"]),
    Case(10, "brackets in a task", bracketed_task, ["de"]),
    Case(10, "TMX 1.4b's namespace", tmx, [("a x", "b x")]),
    Case(10, "TMX without a namespace", lambda f: tmx(f, ""), [("a x", "b x")]),
    Case(
        10,
        "format and fields of a source",
        own_fields,
        {"en-de.tsv": "a b c\td e f", "en.tsv.txt": "three", "en.web.txt": "two", "en.wiki.txt": "one"},
    ),
]
latin, koi, sjis, placeholder, unknown = (
    f'MIME-Version: 1.0\\n"\n"Content-Type: text/plain; "\n"charset={name}\\n'
    for name in ("ISO-8859-1", "KOI8-R", "Shift_JIS", "CHARSET", "x-mine")
)


def spark(folder: Path) -> list[Any]:
    for name in ("_SUCCESS", "_committed_17", "part-0.json"):
        put(folder / name, "" if name == "_SUCCESS" else "{}\n")
    return readers.expand([f"{folder}/*"], "f")


def recipes(folder: Path) -> None:
    """Print what the corpus step makes of every recipe below a folder, under both policies."""
    for path in sorted(folder.rglob("*.yaml")):
        for policy in ("refuse", "skip"):
            with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(path.parent):
                try:
                    recipe = load_recipe(str(path), [f"data.reading.on_error={policy}"])
                    about = corpus.make(Path(scratch), recipe.data, lambda line: None)
                    what = {name: of["kept"] for part in ("text", "bitext") for name, of in about[part].items()}
                    outcome = json.dumps(what)
                except UserError as error:
                    outcome = f"refused: {error}"
            print(f"{path}, {policy}: {outcome}")


def main() -> int:
    wrong = 0
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            seen = case.observe(Path(folder))
        wrong += seen != case.expected
        print(
            f"{'' if seen == case.expected else 'WRONG '}row {case.row}, {case.name}: {seen!r}; expected {case.expected!r}"
        )
    for name in sys.argv[1:]:
        recipes(Path(name))
    print(f"{len(CASES) - wrong} of {len(CASES)} as expected")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
