"""Readers of evaluation sets in the formats in which XTREME and the original sets are distributed.

Compressed files are read directly. Any error inside a file is one UserError with file and line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dist_metaxlm.errors import UserError
from dist_metaxlm.evaluation.files.question_files import Question as Question
from dist_metaxlm.evaluation.files.question_files import read_questions as read_questions
from dist_metaxlm.evaluation.tasks.languages import canonical
from dist_metaxlm.preparation.readers import dispatch as readers
from dist_metaxlm.preparation.readers import records as readers_records
from dist_metaxlm.preparation.readers.files import kind, lines, shown
from dist_metaxlm.preparation.readers.token_lines import CONLLU, Layout, token_rows
from dist_metaxlm.recipe.data import ReadingConfig
from dist_metaxlm.text import pluralize

_ALIASES = {"contradictory": "contradiction"}
"""MultiNLI's spelling in the English training file of XNLI."""
_SORTED = 10
"""Different sentences in sorted order by which a file was sorted: by chance once in 10! files."""
_ALIKE = 20
"""Sentences or pairs from which a file with a single label is taken for one whose labels are hidden. Not tokens: most
tokens of entity sets have the label O, but few sentences have no other."""
_SPAN_TAG = re.compile(r"O|[BIESLU]-\S+")
_HEADERS = (("sentence1", "premise"), ("sentence2", "hypo", "hypothesis"), ("gold_label", "label"))


@dataclass(frozen=True)
class TaggedSentence:
    """Tokens and their tags, one per token."""

    tokens: list[str]
    tags: list[str]


@dataclass(frozen=True)
class LabelledPair:
    """Two sentences and their relation."""

    first: str
    second: str
    label: str


def read_pairs(
    path: Path, language: str, pivot: Path | None = None, pivot_column: int = 1, pair_columns: tuple[int, int] | None = None
) -> list[tuple[str, str]]:
    """(English, `language`) sentences of one file (any format of data.bitext), or of two files with a sentence a line.

    `pair_columns`: in a TSV file with more than two columns, the columns of the English and the other sentence, from 1.

    Errors: UserError if a line lacks these columns, the two files differ in length, or a side is empty.
    """
    reading = ReadingConfig()
    turned = pivot is None and pair_columns is None and pivot_column == 2
    if pivot is not None:
        sentences = list(readers.pairs([(pivot, path)], reading))
        _check_order(sentences, pivot, path)
    elif kind(path) == ".tsv":
        limit = reading.max_line_characters
        sentences = [
            (a, b) for _, (a, b) in readers_records.columns(path, pair_columns, "pair_columns of --tasks_file", limit)
        ]
    else:
        readers.check_formats([path], "bitext", "evaluation")
        sentences = list(readers.pairs([path], reading, (language, "en") if turned else ("en", language)))
    if not sentences:
        raise UserError(f"{shown(path)} holds no pairs; put some into it or take the file away")
    for number, pair in enumerate(sentences, start=1):
        if not all(pair):
            raise UserError(f"{shown(path)}, pair {number} has an empty side; fill it, or leave the pair out of both sides")
    if len(sentences) >= _SORTED and all(left == right for left, right in sentences):
        raise UserError(f"{shown(path)}: both sides of all {len(sentences)} pairs are the same text; give translations")
    return [(right, left) for left, right in sentences] if turned else sentences


def _check_order(sentences: Sequence[tuple[str, str]], pivot: Path, path: Path) -> None:
    """Refuse two files if the lines of exactly one of them are sorted: line n then does not translate line n.

    XTREME's preparation (utils_preprocess.py, tatoeba_preprocess) writes `{lang}-en.en` in sorted order to hide answers.
    """
    for side, file, other in ((0, pivot, path), (1, path, pivot)):
        texts, others = [row[side] for row in sentences], [row[1 - side] for row in sentences]
        if len(set(texts)) >= _SORTED and texts == sorted(texts) and others != sorted(others):
            raise UserError(
                f"{shown(file)} is in sorted order and {shown(other)} is not, so their lines do not belong together: "
                "XTREME's download sorts the English sentences of Tatoeba to hide the answers; use the original files "
                "(data/tatoeba/v1 of facebookresearch/LASER), or put true pairs into one TSV file"
            )


def read_tagged(
    path: Path,
    labels: Sequence[str] = (),
    token_column: int | None = None,
    label_column: int | None = None,
    comments: str = "",
) -> list[TaggedSentence]:
    """Sentences of a file with one token per line and a blank line between sentences (readers/token_lines.py).

    Two columns are token and tag (XTREME's TSV, MasakhaNER; the `en:` prefix of WikiANN is removed), three are
    number, token, tag, ten are CoNLL-U (form and UPOS). Other files (CoNLL-2003 has four columns) need `label_column`.

    Errors: UserError naming a line whose number of columns differs from the first line's, a file with another number of
    columns without `label_column`, a line whose tag is not among `labels` or, if none are given, does not fit the
    scheme (such as BIO) of the other lines, or a file in which all tags are the same.
    """
    sentences: list[TaggedSentence] = []
    tokens: list[str] = []
    tags: list[str] = []
    first_of: dict[str, str] = {}
    """Tag -> file and line of its first occurrence."""
    for row in token_rows(path, token_column, comments):
        if row is None:
            if tokens:
                sentences.append(TaggedSentence(tokens, tags))
                tokens, tags = [], []
            continue
        where, cells, layout = row
        token, tag = _token_and_tag(cells, layout, label_column, where)
        if labels and tag not in labels:
            raise _unknown_label(where, tag, labels)
        first_of.setdefault(tag, where)
        tokens.append(token)
        tags.append(tag)
    if not sentences:
        raise UserError(f"{shown(path)} holds no sentences; put text into it or take the file away")
    if not labels:
        _check_scheme(first_of)
    _check_hidden([tag for sentence in sentences for tag in sentence.tags], len(sentences), path)
    return _without_prefix(sentences)


def _check_hidden(labels: Sequence[str], examples: int, path: Path) -> None:
    """Refuse a file with one label throughout, which some sets have in place of the labels of their test data."""
    if examples >= _ALIKE and len(set(labels)) == 1:
        raise UserError(
            f"{shown(path)}: all {len(labels)} labels are {labels[0]!r}, so nothing can be learned or scored; use the file "
            "with its labels: some sets hide those of their test data"
        )


def _token_and_tag(cells: list[str], layout: Layout, label_column: int | None, where: str) -> tuple[str, str]:
    """Token and tag of a line."""
    if label_column is None and not (layout.width in (1, 2) or (layout.numbered and layout.width in (3, CONLLU))):
        raise UserError(
            f"{where} has {layout.width} columns, where 2 would be token and tag, 3 number, token and tag, and 10 "
            "CoNLL-U; say in --tasks_file which are the token_column and the label_column"
        )
    label = label_column or (4 if layout.width == CONLLU else layout.token + 1)
    if len(cells) < max(layout.token, label):
        raise UserError(
            f"{where} has {pluralize(len(cells), 'column')} and no column {max(layout.token, label)}, where "
            "the label is; use a file with labels, or name the columns in --tasks_file"
        )
    tag = cells[label - 1].strip()
    if not tag:
        raise UserError(f"{where} has no label in column {label}; correct the line, or use a file with labels")
    return cells[layout.token - 1], tag


def _check_scheme(first_of: dict[str, str]) -> None:
    """Raise UserError for a tag outside the scheme that most tags follow: B-, I-, E-, S-, L-, U- and a class, or O."""
    inside = [tag for tag in first_of if _SPAN_TAG.fullmatch(tag)]
    strange = [tag for tag in first_of if tag not in inside]
    if any(tag.startswith(("B-", "I-")) for tag in inside) and strange:
        raise UserError(
            f"{first_of[strange[0]]} has the label {strange[0]!r}, which is not B-, I- or O like the labels of the other "
            "lines; correct the line, or name the labels in --tasks_file"
        )


def _without_prefix(sentences: list[TaggedSentence]) -> list[TaggedSentence]:
    """Remove the `en:` prefix that WikiANN's original files put before every token."""
    first = re.match(r"[a-z]{2,3}(-[a-z]+)*:", sentences[0].tokens[0])
    if first is None or not all(token.startswith(first[0]) for s in sentences for token in s.tokens):
        return sentences
    return [TaggedSentence([token[first.end() :] for token in s.tokens], s.tags) for s in sentences]


def read_labelled(path: Path, labels: Sequence[str] = (), language: str | None = None) -> list[LabelledPair]:
    """Sentence pairs with a label: three columns (XTREME), or a header that names them (XNLI, MultiNLI, PAWS-X).

    If the header has a column `language` (XNLI's own files contain all languages), only the rows of `language` are read.

    Errors: UserError naming the line that lacks a column, or whose label is not among `labels` (if any are given), or a file
    in which all labels are the same.
    """
    rows: list[LabelledPair] = []
    columns, of, width = (0, 1, 2), None, 3
    for number, line in lines(path):
        cells = line.split("\t")
        if not line.strip():
            continue
        if number == 1 and (header := _header(cells)):
            columns, of, width = header, _language_column(cells), len(cells)
            continue
        where = f"{shown(path)}, line {number}"
        while len(cells) > width and not cells[-1].strip():
            cells.pop()
        if len(cells) > width:
            raise UserError(
                f"{where} has {pluralize(len(cells), 'tab-separated column')} where {width} belong; remove the tabs from "
                "its sentences, or use a file with a header"
            )
        if len(cells) <= max(*columns, of or 0):
            raise UserError(
                f"{where} has {pluralize(len(cells), 'tab-separated column')} where sentence, sentence and label "
                f"need {max(*columns, of or 0) + 1}; use a file with labels, or correct the line"
            )
        if of is not None and language is not None and canonical(cells[of].strip(), where) != language:
            continue
        label = _ALIASES.get(cells[columns[2]].strip(), cells[columns[2]].strip())
        if not label:
            raise UserError(f"{where} has no label; use a file with labels, or correct the line")
        if labels and label not in labels:
            raise _unknown_label(where, label, labels)
        rows.append(LabelledPair(cells[columns[0]].strip(), cells[columns[1]].strip(), label))
    if not rows:
        suffix = f" of language {language!r}" if of is not None and language else ""
        raise UserError(f"{shown(path)} holds no examples{suffix}; put some into it or take the file away")
    _check_hidden([row.label for row in rows], len(rows), path)
    return rows


def labelled_languages(path: Path) -> list[str]:
    """Languages of a file of labelled pairs by its column `language`; empty without such a column.

    Errors: UserError naming the line with an unknown language code.
    """
    rows = ((number, line.split("\t")) for number, line in lines(path) if line.strip())
    of = _language_column(next(rows, (0, []))[1])
    if of is None:
        return []
    codes = {cells[of].strip(): number for number, cells in rows if len(cells) > of}
    return sorted({canonical(code, f"{shown(path)}, line {number}") for code, number in codes.items()})


def _language_column(header: list[str]) -> int | None:
    names = [cell.strip() for cell in header]
    return names.index("language") if "language" in names else None


def _header(cells: list[str]) -> tuple[int, int, int] | None:
    names = [cell.strip() for cell in cells]
    first, second, label = (next((names.index(name) for name in known if name in names), None) for known in _HEADERS)
    return (first, second, label) if first is not None and second is not None and label is not None else None


def check_declared(labels: Sequence[str], counts: Mapping[str, int]) -> None:
    """Refuse a task that does not declare its labels: a label that only a malformed line has would become a class.

    counts: how often each label is in the training file.

    Errors: UserError with the line to put into --tasks_file, and all labels with their counts, the rarest last.
    """
    if labels:
        return
    rarest_last = ", ".join(
        f"{label} {count}" for label, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    )
    raise UserError(
        f"the task declares no labels; put `labels: {json.dumps(sorted(counts), ensure_ascii=False)}` into its entry of "
        f"--tasks_file, without those that only a malformed line has (the training file has {rarest_last})"
    )


def _unknown_label(where: str, label: str, labels: Sequence[str]) -> UserError:
    return UserError(
        f"{where} has the label {label!r}, which is none of {', '.join(labels)}; correct the line, or name the "
        "labels in --tasks_file"
    )
