"""Rows 6 and 7: files of evaluation tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from case import BREAKS, WORDS, Case, put, refused

from dist_metaxlm.evaluation.tasks.alignment_files import GoldSettings, read_gold
from dist_metaxlm.evaluation.tasks.files import read_labelled, read_pairs, read_questions, read_tagged
from dist_metaxlm.evaluation.tasks.questions import Questions
from dist_metaxlm.evaluation.tasks.spec import BUILT_IN, TaskSpec, files_by_language
from dist_metaxlm.evaluation.tasks.tagging import Tagging
from dist_metaxlm.preparation.readers.evaluation import evaluation_texts
from dist_metaxlm.recipe.data import EvaluationFiles

TEXT = "a" + "b".join(BREAKS) + "c"


def tags(folder: Path) -> Any:
    return read_tagged(put(folder / "t.tsv", f"x{TEXT}x\tO\ny\tO\n"))[0].tokens == [f"x{TEXT}x", "y"]


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


def bracketed_task(folder: Path) -> list[str]:
    put(folder / "ner [v1]/de.txt", "x O\n")
    return list(files_by_language(folder, ["ner [v1]/{lang}.txt"], "task"))


PAIRS = [("a b c", "d e f"), ("g h", "i j")]


def gold(folder: Path, text: str) -> Any:
    return read_gold(PAIRS, put(folder / "g.txt", text), GoldSettings(english_first=True)).sure


BIO = ["B-PER", "O"]
CASES = [
    Case(1, "tag files", tags, True),
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
    Case(10, "brackets in a task", bracketed_task, ["de"]),
    Case(7, "an answer_start that is true", lambda f: learned(f, ("h", True)), refused("'answer_start'")),
    Case(7, "hidden tags", lambda f: tagged(f, "Mary O\n\n" * 30), refused("all 30 labels are 'O'")),
    Case(7, "a sentence without entities", lambda f: len(tagged(f, "Mary O\n" * 30)), 1),
    Case(
        7,
        "hidden classes",
        lambda f: read_labelled(put(f / "c.tsv", "a\tb\tneutral\n" * 30)),
        refused("all 30 labels are 'neutral'"),
    ),
    Case(7, "gold alignments without a link", lambda f: gold(f, "\n\n"), refused("holds no link")),
    Case(7, "gold alignments with an empty line", lambda f: gold(f, "0-0\n\n"), [{(0, 0)}, set()]),
    Case(
        7,
        "English on both sides",
        lambda f: read_pairs(put(f / "p.tsv", "".join(f"x {n}\tx {n}\n" for n in range(12))), "de"),
        refused("both sides of all 12 pairs"),
    ),
]
