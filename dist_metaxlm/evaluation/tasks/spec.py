"""Specification of a task: kind, files by split and language, labels and metric.

A pattern is a path below the folder of task data in which `{lang}` stands for a language code and `*` for anything but a
slash; it also matches compressed files (`.xz`, `.gz`, `.zst`). A split has several patterns; the first one that matches
any file is used, so one task reads XTREME's folders and the original ones.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, PositiveInt, ValidationError

from dist_metaxlm.errors import UserError
from dist_metaxlm.evaluation.heldout import TASKS as HELDOUT
from dist_metaxlm.evaluation.tasks.files import labelled_languages
from dist_metaxlm.evaluation.tasks.languages import canonical, without_script
from dist_metaxlm.preparation.readers.files import PACKED
from dist_metaxlm.recipe.section import Section
from dist_metaxlm.recipe.yaml_text import read_yaml
from dist_metaxlm.text import did_you_mean

PLACE = "{lang}"
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


def _entities(*kinds: str) -> list[str]:
    """Labels of these kinds of entities in BIO, sorted."""
    return [*(f"{part}-{kind}" for part in "BI" for kind in kinds), "O"]


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
        train=["udpos/train-{lang}.tsv", "udpos/{lang}_*-ud-train.conllu"],
        dev=["udpos/dev-{lang}.tsv", "udpos/{lang}_*-ud-dev.conllu"],
        test=["udpos/test-{lang}.tsv", "udpos/{lang}_*-ud-test.conllu"],
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
        train=["masakhaner/{lang}/train.txt"],
        dev=["masakhaner/{lang}/dev.txt"],
        test=["masakhaner/{lang}/test.txt"],
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
        test=["mlqa/test-context-{lang}-question-{lang}.json", "mlqa/mlqa.{lang}.test.json"],
        metric="mlqa",
    ),
    "tydiqa": TaskSpec(
        kind="questions",
        train=["tydiqa/{lang}.train.json", "tydiqa/tydiqa.{lang}.train.json"],
        dev=["tydiqa/{lang}.dev.json", "tydiqa/tydiqa.{lang}.dev.json"],
        test=["tydiqa/{lang}.dev.json", "tydiqa/tydiqa.{lang}.dev.json"],
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


def files_by_language(root: Path, patterns: list[str], what: str) -> dict[str, tuple[Path, str]]:
    """Canonical language -> (file, code as spelled in its name), sorted, from the first pattern that names any file.

    A pattern without `{lang}` names one file of labelled pairs for all languages in its column `language`.

    Errors: UserError if no pattern matches, a name has an unknown language code, or two files have the same language.
    """
    for pattern in patterns:
        files: dict[str, tuple[Path, str]] = {}
        for path, code in _matches(root, pattern):
            language = canonical(code, f"{what}: {path}")
            if language in files:
                raise UserError(f"{what}: {files[language][0]} and {path} are both of language {language!r}; keep one")
            files[language] = (path, code)
        files = _without_scripts(files)
        if PLACE not in pattern:
            files = {
                language: (path, language) for path in _packed(root, pattern)[:1] for language in labelled_languages(path)
            }
        if files:
            return dict(sorted(files.items()))
    raise nothing_there(root, patterns, what)


def nothing_there(root: Path, patterns: list[str], what: str) -> UserError:
    """The error for a task without any file."""
    if not root.is_dir():
        return UserError(f"{what}: there is no folder {root}; name the one that has the task's files with --task_data")
    return UserError(
        f"{what}: no file {' or '.join(str(root / pattern) for pattern in patterns) or 'is named'}; give the "
        "folder of the task's files with --task_data, or say in --tasks_file where they are"
    )


def _without_scripts(files: dict[str, tuple[Path, str]]) -> dict[str, tuple[Path, str]]:
    """Shorten `ja-Jpan` to `ja` if the language has no file in another script."""
    scripts = Counter(map(without_script, files))
    return {plain if scripts[plain := without_script(language)] == 1 else language: of for language, of in files.items()}


def pivot_files(root: Path, patterns: list[str], languages: Iterable[str], what: str) -> dict[str, Path]:
    """Language -> file with the English sentences: one of its own, or one that serves all `languages`.

    Errors: UserError as `files_by_language`.
    """
    for pattern in patterns:
        if PLACE not in pattern and (shared := _packed(root, pattern)):
            return dict.fromkeys(languages, shared[0])
        if _matches(root, pattern):
            break
    by_language = [pattern for pattern in patterns if PLACE in pattern]
    return {language: path for language, (path, _) in files_by_language(root, by_language or patterns, what).items()}


def files_of_all_patterns(root: Path, patterns: list[str], what: str) -> dict[str, tuple[Path, str]]:
    """Canonical language -> (file, pattern that names it), sorted; if two patterns match a language, the first wins.

    Errors: UserError if a name has an unknown language code, or two files of one pattern have the same language.
    """
    files: dict[str, tuple[Path, str]] = {}
    for pattern in patterns:
        for path, code in _matches(root, pattern):
            language = canonical(code, f"{what}: {path}")
            if files.setdefault(language, (path, pattern)) != (path, pattern) and files[language][1] == pattern:
                raise UserError(f"{what}: {files[language][0]} and {path} are both of language {language!r}; keep one")
    return dict(sorted(files.items()))


def file_of(root: Path, patterns: list[str], language: str, what: str) -> Path:
    """The file of one language, from the first pattern that matches; a pattern without `{lang}` serves any language."""
    for pattern in patterns:
        if PLACE not in pattern:
            for path in _packed(root, pattern):
                return path
            continue
        for path, code in _matches(root, pattern):
            if _same(code, language):
                return path
    raise nothing_there(root, [pattern.replace(PLACE, language) for pattern in patterns], what)


def _same(code: str, language: str) -> bool:
    try:
        return language in (canonical(code, ""), without_script(canonical(code, "")))
    except UserError:
        return False


def _matches(root: Path, pattern: str) -> list[tuple[Path, str]]:
    """(file, code) of all files of a pattern; the code is the match of the first `{lang}`, the others must equal it."""
    if PLACE not in pattern:
        return []
    head, *rest = (re.escape(part).replace(r"\*", "[^/]*") for part in pattern.split(PLACE))
    expression = head + "(?P<lang>[A-Za-z]+(?:-[A-Za-z]+|_[A-Z][a-z]{3})?)" + "(?P=lang)".join(rest)
    # Only * and {lang} are wildcards of a pattern; brackets and ? are escaped for glob.
    matcher = re.compile(expression + f"({'|'.join(map(re.escape, PACKED))})?")
    codes = {}
    for path in sorted(
        path
        for pathname in {pattern, *(pattern + suffix for suffix in PACKED)}
        for path in root.glob(re.sub(r"[\[?]", r"[\g<0>]", pathname).replace(PLACE, "*"))
    ):
        match = matcher.fullmatch(path.relative_to(root).as_posix())
        if match and path.is_file():
            codes[path] = match["lang"]
    return list(codes.items())


def _packed(root: Path, name: str) -> list[Path]:
    return [path for suffix in ("", *PACKED) if (path := root / f"{name}{suffix}").is_file()]
