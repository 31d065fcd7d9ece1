"""Rows 3 and 10: corpora of many files; paths and formats."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from case import WORDS, Case, put, refused

from dist_metaxlm.errors import UserError
from dist_metaxlm.preparation.corpus import corpus
from dist_metaxlm.preparation.readers import dispatch as readers
from dist_metaxlm.preparation.readers.paths import expand
from dist_metaxlm.preparation.settings import check_settings, write_settings
from dist_metaxlm.recipe.data import DataConfig, ReadingConfig
from dist_metaxlm.recipe.load import load_recipe

READING = ReadingConfig()


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


# Row 10: paths and formats as people have them.
def bracketed(folder: Path) -> list[str]:
    for name in ("data [v1]/a.txt", "data [v1]/b[2].txt", "datav/c.txt"):
        put(folder / name, "text\n")
    found = readers.expand([f"{folder}/data [v1]/*.txt", f"{folder}/data [v1]/b[2].txt", f"{folder}/data?/[c].txt"], "f")
    return [Path(str(place)).name for place in found]


def bracketed_url(folder: Path) -> list[str]:
    put(folder / "data [v1]/a.txt", "text\n")
    return [str(place).rpartition("/")[2] for place in readers.expand([f"file://{folder}/data [v1]/*.txt"], "f")]


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


def globs(folder: Path) -> Any:
    """Brackets in several components, and beside wildcards: each pattern names the file of its own number."""
    for name in ("a[1]/q/b[2]/1.txt", "a[1]/q/b2/wrong.txt", "q/c[3]/2.txt", "d[4]_3.txt", "d4_wrong.txt", "r/s/e[5].txt"):
        put(folder / name, "text\n")
    patterns = ("a[1]/*/b[2]/*.txt", "*/c[3]/*.txt", "d[4]_*.txt", "**/e[5].txt")
    return [[Path(str(place)).name for place in expand([f"{folder}/{pattern}"], "f")] for pattern in patterns]


def home(folder: Path) -> Any:
    put(folder / "text" / "a.txt", "text\n")
    before = os.environ.get("HOME")
    os.environ["HOME"] = str(folder)
    try:
        return [Path(str(place)).name for place in expand(["~/text/*.txt"], "f")]
    finally:
        os.environ.pop("HOME") if before is None else os.environ.update(HOME=before)


def sides(folder: Path, name: str, content: str) -> Any:
    return list(readers.pairs([put(folder / name, content)], READING, ("en", "de")))


def document(folder: Path, name: str, content: str | bytes) -> Any:
    return list(readers.documents([put(folder / name, content)], READING))


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


CASES = [
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
    Case(10, "brackets", bracketed, ["a.txt", "b[2].txt", "c.txt"]),
    Case(10, "brackets in a URL", bracketed_url, ["a.txt"]),
    Case(10, "TMX 1.4b's namespace", tmx, [("a x", "b x")]),
    Case(10, "TMX without a namespace", lambda f: tmx(f, ""), [("a x", "b x")]),
    Case(
        10,
        "format and fields of a source",
        own_fields,
        {"en-de.tsv": "a b c\td e f", "en.tsv.txt": "three", "en.web.txt": "two", "en.wiki.txt": "one"},
    ),
    Case(10, "brackets in several folders, and with wildcards", globs, [["1.txt"], ["2.txt"], ["d[4]_3.txt"], ["e[5].txt"]]),
    Case(10, "the home folder", home, ["a.txt"]),
    Case(10, "UTF-16", lambda f: document(f, "a.txt", "a\n".encode("utf-16")), refused("begins UTF-16", "iconv -f utf-16")),
    Case(10, "CSV, quoted separators in the header", lambda f: document(f, "a.csv", '"a;b;c","text"\n1,x\n'), [["x"]]),
    Case(10, "CSV whose first line names the separator", lambda f: document(f, "a.csv", "sep=;\ntext;b\nx;1\n"), [["x"]]),
    Case(10, "TSV with tabs at the end", lambda f: sides(f, "a.tsv", "x\ty\t\nv\tw\t\t\n"), [("x", "y"), ("v", "w")]),
    Case(10, "CSV after a blank line", lambda f: document(f, "a.csv", "\ntext,b\nx,1\n"), [["x"]]),
    Case(10, "CSV with carriage returns alone", lambda f: document(f, "a.csv", "text\rx\r"), refused("carriage return")),
    Case(
        10, "two JSON arrays", lambda f: document(f, "a.json", '[{"text": "x"}]\n[{"text": "y"}]'), refused("goes on after")
    ),
    Case(
        10,
        "JSON array, a comma missing",
        lambda f: document(f, "a.json", '[{"text": "x"} {"text": "y"}]'),
        refused("after a comma"),
    ),
]
