"""Reader of question files in SQuAD's JSON: XQuAD, MLQA, TyDiQA GoldP."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from dist_metaxlm.errors import UserError
from dist_metaxlm.evaluation.tasks.languages import NAMES
from dist_metaxlm.preparation.readers.files import decoded, shown, whole
from dist_metaxlm.text import pluralize

Value = TypeVar("Value")


@dataclass(frozen=True)
class Question:
    """A question about a paragraph, and the answers that count as right."""

    identity: str
    question: str
    context: str
    answers: list[str]
    starts: list[int]
    """Character at which each answer begins in the context."""
    file: str = ""
    """File of the question, for messages."""

    def misplaced(self) -> bool:
        """Whether the first answer, the training target, is not at its `answer_start`."""
        start, answer = self.starts[0], self.answers[0]
        inside = self.context[start : start + len(answer)] if start >= 0 else ""
        return inside.split() != answer.split()


def read_questions(path: Path) -> list[Question]:
    """Questions of a file in SQuAD's JSON (XQuAD, MLQA, TyDiQA GoldP), in its order; answers without text are left out.

    Errors: UserError naming the file and a missing or malformed field; counting the questions without an answer with text;
    or saying that no answer of the file is in its context.
    """
    try:
        tree = json.loads(decoded(whole(path), shown(path)))
    except json.JSONDecodeError as error:
        raise UserError(
            f"{shown(path)}, line {error.lineno}, column {error.colno} is not JSON ({error.msg}); correct it"
        ) from None
    except (ValueError, RecursionError):
        raise UserError(f"{shown(path)} has a number or a nesting that is too large to read; correct it") from None
    questions = list(_questions(tree, path))
    if not questions:
        raise UserError(f"{shown(path)} holds no questions; put some into it or take the file away")
    blank = [question for question in questions if not question.answers]
    if blank:
        raise UserError(
            f"{shown(path)}: {len(blank)} of {pluralize(len(questions), 'question')} have no answer with text (the first: "
            f"{blank[0].identity!r}), so nothing can be scored; use the file with its answers: some download scripts "
            "remove them"
        )
    if not any(answer in question.context for question in questions for answer in question.answers):
        raise UserError(
            f"{shown(path)}: no answer of its {pluralize(len(questions), 'question')} is in the question's context; use a "
            "file whose contexts, questions and answers belong together"
        )
    return questions


def question_languages(path: Path) -> list[str]:
    """Languages of a file with questions of several languages, by the names before their identities; else empty.

    TyDiQA's own training file has identities such as `arabic-2387335860751143628-1`. Errors: UserError as `read_questions`.
    """
    return sorted({language for question in read_questions(path) if (language := _language(question)) is not None})


def of_language(questions: Sequence[Question], language: str, path: Path) -> list[Question]:
    """The questions in this language if all identities name one, else all questions.

    Errors: UserError if none is in this language.
    """
    languages = [_language(question) for question in questions]
    if None in languages:
        return list(questions)
    chosen = [question for question, of in zip(questions, languages, strict=True) if of == language]
    if not chosen:
        known = ", ".join(sorted({str(of) for of in languages}))
        raise UserError(f"{shown(path)} has no questions in {language!r}, only in {known}; give the file of that language")
    return chosen


def _language(question: Question) -> str | None:
    return NAMES.get(question.identity.partition("-")[0])


def _questions(tree: object, path: Path) -> Iterator[Question]:
    for article in _get(tree, "data", list, path):
        for paragraph in _get(article, "paragraphs", list, path):
            context = _get(paragraph, "context", str, path)
            for entry in _get(paragraph, "qas", list, path):
                answers = _get(entry, "answers", list, path)
                given = [(_get(answer, "text", str, path), _get(answer, "answer_start", int, path)) for answer in answers]
                if not given:
                    raise UserError(f"{shown(path)}: question {entry.get('id')!r} has no answers; use a file with answers")
                yield Question(
                    _identity(entry, path),
                    _get(entry, "question", str, path),
                    context,
                    [text for text, _ in given if text.strip()],
                    [start for text, start in given if text.strip()],
                    shown(path),
                )


def _identity(entry: object, path: Path) -> str:
    """The id of a question, which some files have as a number."""
    given = entry.get("id") if isinstance(entry, dict) else None
    return str(given) if isinstance(given, int) else _get(entry, "id", str, path)


def _get(node: object, name: str, kind: type[Value], path: Path) -> Value:
    value = node.get(name) if isinstance(node, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UserError(f"{shown(path)} is not in SQuAD's form: it lacks a field {name!r}; correct the file")
    return value
