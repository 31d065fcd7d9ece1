"""Specification of a task: kind, files by split and language, labels and metric.

A pattern is a path below the folder of task data in which `{lang}` stands for a language code and `*` for anything but a
slash; it also matches compressed files (`.xz`, `.gz`, `.zst`). A split has several patterns; the first one that matches
any file is used, so one task reads XTREME's folders and the original ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, PositiveInt, ValidationError

from dist_metaxlm.errors import UserError
from dist_metaxlm.evaluation.files.locate import file_of as file_of
from dist_metaxlm.evaluation.files.locate import files_by_language as files_by_language
from dist_metaxlm.evaluation.heldout import TASKS as HELDOUT
from dist_metaxlm.recipe.section import Section
from dist_metaxlm.recipe.yaml_text import read_yaml
from dist_metaxlm.text import did_you_mean

UPOS = [
    "ADJ",
    "ADP",
    "ADV",
    "AUX",
    "CCONJ",
    "DET",
    "INTJ",
    "NOUN",
    "NUM",
    "PART",
    "PRON",
    "PROPN",
    "PUNCT",
    "SCONJ",
    "SYM",
    "VERB",
    "X",
]
"""Universal part-of-speech tags (universaldependencies.org/u/pos), XTREME's label set."""
FLORES = ("flores", "flores200_dataset", "flores101_dataset")
"""Folders of FLORES: our name and the names of its archives."""


MASAKHANER = (
    "masakhaner",
    "masakhaner/data",
    "masakhaner/MasakhaNER2.0/data",
    "masakhane-ner/data",
    "masakhane-ner/MasakhaNER2.0/data",
)
"""Folders of MasakhaNER: our name, and those of a checkout of masakhane-io/masakhane-ner (version 1 and 2)."""


class TaskSpec(Section):
    """One evaluation task."""

    kind: Literal["retrieval", "alignment", "tagging", "classification", "questions"]
    """What is done with the files."""
    train: list[str] = []
    """Training text in the training language (not for retrieval and alignment)."""
    dev: list[str] = []
    """Text in the training language on which the best epoch is chosen."""
    test: list[str] = Field(min_length=1)
    """Text that is scored, by language; for retrieval and alignment: pairs in one file, or the other sentences."""
    pivot: list[str] = []
    """Retrieval and alignment from two files a language: the English sentences, line n translating line n of `test`. For
    retrieval, one file without `{lang}` can serve all languages."""
    pivot_column: Literal[1, 2] = 1
    """Retrieval and alignment from one file a language: the column with the English sentence, or word of a dictionary."""
    pair_columns: tuple[PositiveInt, PositiveInt] | None = None
    """Retrieval and alignment from TSV files of more columns than two: those of the English and the other sentence."""
    gold: list[str] = []
    """Alignment: word links made by annotators; docs/evaluation.md describes the formats."""
    gold_format: Literal["pharaoh", "naacl"] | None = None
    """Alignment: format of `gold`; empty: detected from its first line."""
    gold_base: Literal[0, 1] | None = None
    """Alignment: number of a sentence's first word in `gold`; empty: 0 in pharaoh, 1 in naacl."""
    gold_first: Literal["pivot", "test"] | None = None
    """Alignment: whose word a link of `gold` names first; empty: the pivot's if its path has `en-{lang}`, else test's."""
    dictionary: list[str] = []
    """Alignment: dictionary with two words per line, used for languages without `gold`."""
    extraction: Literal["argmax", "itermax", "sinkhorn"] = "argmax"
    """Alignment: how links are extracted from similarities (objectives/word_alignment.py)."""
    words: Literal["mean", "first", "pieces"] = "mean"
    """Alignment: a word's state is the mean or the first of its pieces', or words are linked if any of their pieces are."""
    labels: list[str] = []
    """Tagging and classification: all labels; a line with another one is an error. They are required: the error names those
    of the training file."""
    token_column: int | None = Field(None, ge=1)
    """Tagging: column of the token, from 1; empty: by the number of columns (2: 1, 3: 2, CoNLL-U: 2)."""
    label_column: int | None = Field(None, ge=1)
    """Tagging: column of the label, from 1; empty: the one after the token (CoNLL-U: 4)."""
    comments: str = ""
    """Tagging: prefix of comment lines, such as "# id"; empty: `#` if lines are numbered (CoNLL-U), else none."""
    metric: Literal["accuracy", "span_f1", "squad", "mlqa"] | None = None
    """Score of the task; empty: accuracy for classification, span F1 for tagging, SQuAD's for questions."""
    train_language: str = "en"
    """Language of `train` and `dev`."""
    train_rows: tuple[int, int] | None = None
    """Half-open range of examples of the training file, from 0; empty: all."""
    dev_rows: tuple[int, int] | None = None
    """The same for `dev`, so that one parallel file can serve as several splits."""
    test_rows: tuple[int, int] | None = None
    """The same for `test`."""


TYDIQA_DEV = [
    "tydiqa/{lang}.dev.json",
    "tydiqa/tydiqa.{lang}.dev.json",
    "tydiqa/tydiqa-goldp-v1.1-dev/tydiqa.goldp.{lang}.dev.json",
    "tydiqa/tydiqa-goldp-v1.1-dev/tydiqa-goldp-dev-{lang}.json",
    "tydiqa-goldp-v1.1-dev/tydiqa-goldp-dev-{lang}.json",
    "tydiqa/tydiqa-goldp-v1.1-dev.json",
    "tydiqa-goldp-v1.1-dev.json",
]
"""Files of TyDiQA GoldP: our names, XTREME's, those of its archive (with names of languages), and one file of all."""


def _entities(*kinds: str) -> list[str]:
    """Labels of these kinds of entities in BIO, sorted."""
    return [*(f"{part}-{kind}" for part in "BI" for kind in kinds), "O"]


def _treebanks(split: str) -> list[str]:
    """Files of Universal Dependencies, in one folder or as in its archive; several treebanks of a language are joined."""
    file = f"{{lang}}_*-ud-{split}.conllu"
    return [f"udpos/{file}", f"udpos/UD_*/{file}", f"udpos/ud-treebanks-v*/UD_*/{file}", f"ud-treebanks-v*/UD_*/{file}"]


BUILT_IN: dict[str, TaskSpec] = {
    "tatoeba": TaskSpec(
        kind="retrieval",
        test=["tatoeba/{lang}-eng.tsv", "tatoeba/{lang}-en.{lang}", "tatoeba/tatoeba.{lang}-eng.{lang}"],
        pivot=["tatoeba/{lang}-en.en", "tatoeba/tatoeba.{lang}-eng.eng"],
    ),
    "parallel": TaskSpec(kind="retrieval", test=["parallel/en-{lang}.tsv"]),
    "flores": TaskSpec(
        kind="retrieval",
        test=[f"{folder}/devtest/{{lang}}.devtest" for folder in FLORES],
        pivot=[f"{folder}/devtest/{name}.devtest" for folder in FLORES for name in ("eng_Latn", "eng")],
    ),
    "alignment": TaskSpec(
        kind="alignment",
        test=["alignment/{lang}-en/test.{lang}", "alignment/en-{lang}/test.{lang}"],
        pivot=["alignment/{lang}-en/test.en", "alignment/en-{lang}/test.en"],
        gold=[
            "alignment/{lang}-en/alignv2.txt",
            "alignment/en-{lang}/alignv2.txt",
            "alignment/{lang}-en/test.gold",
            "alignment/en-{lang}/test.gold",
        ],
        dictionary=["alignment/{lang}-en/dictionary.txt", "alignment/en-{lang}/dictionary.txt"],
    ),
    "udpos": TaskSpec(
        kind="tagging",
        train=["udpos/train-{lang}.tsv", *_treebanks("train")],
        dev=["udpos/dev-{lang}.tsv", *_treebanks("dev")],
        test=["udpos/test-{lang}.tsv", *_treebanks("test")],
        labels=UPOS,
    ),
    "wikiann": TaskSpec(
        kind="tagging",
        train=["panx/train-{lang}.tsv", "wikiann/{lang}/train"],
        dev=["panx/dev-{lang}.tsv", "wikiann/{lang}/dev"],
        test=["panx/test-{lang}.tsv", "wikiann/{lang}/test"],
        labels=_entities("LOC", "ORG", "PER"),
    ),
    "masakhaner": TaskSpec(
        kind="tagging",
        train=[f"{folder}/{{lang}}/train.txt" for folder in MASAKHANER],
        dev=[f"{folder}/{{lang}}/dev.txt" for folder in MASAKHANER],
        test=[f"{folder}/{{lang}}/test.txt" for folder in MASAKHANER],
        labels=_entities("DATE", "LOC", "ORG", "PER"),
    ),
    "xnli": TaskSpec(
        kind="classification",
        train=["xnli/train-{lang}.tsv", "xnli/multinli.train.{lang}.tsv"],
        dev=["xnli/dev-{lang}.tsv", "xnli/xnli.dev.tsv"],
        test=["xnli/test-{lang}.tsv", "xnli/xnli.test.tsv"],
        labels=["contradiction", "entailment", "neutral"],
    ),
    "pawsx": TaskSpec(
        kind="classification",
        train=["pawsx/train-{lang}.tsv", "pawsx/{lang}/train.tsv"],
        dev=["pawsx/dev-{lang}.tsv", "pawsx/{lang}/dev_2k.tsv"],
        test=["pawsx/test-{lang}.tsv", "pawsx/{lang}/test_2k.tsv"],
        labels=["0", "1"],
    ),
    "xquad": TaskSpec(
        kind="questions",
        train=["squad/train-v1.1.json"],
        dev=["squad/dev-v1.1.json"],
        test=["xquad/xquad.{lang}.json"],
        metric="squad",
    ),
    "mlqa": TaskSpec(
        kind="questions",
        train=["squad/train-v1.1.json"],
        dev=["squad/dev-v1.1.json"],
        test=[
            "mlqa/test-context-{lang}-question-{lang}.json",
            "mlqa/mlqa.{lang}.test.json",
            "mlqa/MLQA_V1/test/test-context-{lang}-question-{lang}.json",
            "MLQA_V1/test/test-context-{lang}-question-{lang}.json",
        ],
        metric="mlqa",
    ),
    "tydiqa": TaskSpec(
        kind="questions",
        train=[
            "tydiqa/{lang}.train.json",
            "tydiqa/tydiqa.{lang}.train.json",
            "tydiqa/tydiqa-goldp-v1.1-train/tydiqa.goldp.{lang}.train.json",
            "tydiqa/tydiqa-goldp-v1.1-train.json",
            "tydiqa-goldp-v1.1-train.json",
        ],
        dev=TYDIQA_DEV,
        test=TYDIQA_DEV,
        metric="squad",
    ),
}
"""XTREME's tasks at the paths of its download scripts and of the original archives."""


def load_tasks(names: list[str], file: str | Path | None = None) -> dict[str, TaskSpec]:
    """The named tasks from a YAML file of `name: {kind: ..., ...}`, else from the built-in ones.

    A file's entry for a built-in name changes only the fields it gives. Errors: UserError naming the task or field.
    """
    known = {**BUILT_IN, **(_read(Path(file)) if file is not None else {})}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(
            f"unknown task {unknown[0]!r}{did_you_mean(unknown[0], [*known, *HELDOUT])} choose from "
            f"{', '.join((*HELDOUT, *known))}, or describe it in --tasks_file"
        )
    return {name: known[name] for name in names}


def _read(path: Path) -> dict[str, TaskSpec]:
    if not path.is_file():
        raise UserError(f"--tasks_file {path} does not exist; correct the path")
    try:
        tree = read_yaml(path.read_text(encoding="utf-8"), str(path))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--tasks_file {path} is not YAML: {' '.join(str(error).split())}; correct that line") from None
    if not isinstance(tree, dict) or not all(isinstance(value, dict) for value in tree.values()):
        raise UserError(f"--tasks_file {path} holds no tasks; write `name: {{kind: tagging, train: [...], ...}}`")
    return {str(name): _spec(path, str(name), value) for name, value in tree.items()}


def _spec(path: Path, name: str, fields: Mapping[str, object]) -> TaskSpec:
    base = BUILT_IN[name].model_dump() if name in BUILT_IN else {}
    try:
        return TaskSpec.model_validate({**base, **fields})
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise UserError(
            f"--tasks_file {path}, task {name}: {problems}; known fields are {', '.join(TaskSpec.model_fields)}"
        ) from None
