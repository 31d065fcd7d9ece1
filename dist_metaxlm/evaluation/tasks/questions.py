"""Extractive question answering (XQuAD, MLQA, TyDiQA GoldP): start and end of the answer in windows of the paragraph.

Windows, candidates and limits are those of XTREME (third_party/processors/squad.py and squad_metrics.py): questions of at
most 64 tokens; windows that begin every `stride` tokens; the best of the 20 starts and 20 ends with the highest scores among
all tokens of a window, if both are in the paragraph, the answer has at most 30 tokens, and no other window has more context
around its start.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from dist_metaxlm.errors import UserError
from dist_metaxlm.evaluation.files.question_files import Question, of_language, read_questions
from dist_metaxlm.evaluation.measures.answers import answer_scores
from dist_metaxlm.evaluation.tasks.encoders import open_with_head
from dist_metaxlm.evaluation.tasks.finetune import Collator, Feature, Row, Scores, Settings, model_inputs
from dist_metaxlm.evaluation.tasks.spec import TaskSpec
from dist_metaxlm.text import pluralize

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

QUESTION_TOKENS, CANDIDATES, ANSWER_TOKENS = 64, 20, 30


class Questions:
    """Question answering by spans."""

    metric = "f1"

    def __init__(self, spec: TaskSpec) -> None:
        self._rules = spec.metric if spec.metric in ("squad", "mlqa") else "squad"

    def read(self, path: Path, language: str) -> list[Question]:
        """Questions of a file that are in this language."""
        return of_language(read_questions(path), language, path)

    def text(self, example: Question) -> str:
        """The paragraph."""
        return example.context

    def observe(self, train: list[Question]) -> None:
        """Check that the training answers are at their `answer_start`; nothing else is read from them.

        Errors: UserError counting the questions whose `answer_start` points at other text, which would be learned.
        """
        wrong = [question for question in train if question.misplaced()]
        if wrong:
            first = wrong[0]
            start, answer = first.starts[0], first.answers[0]
            actual = first.context[start : start + len(answer)] if start >= 0 else ""
            raise UserError(
                f"{first.file}: answer_start of {len(wrong)} of {pluralize(len(train), 'question')} does not point at the "
                f"answer (the first: {first.identity!r}, where {actual[:40]!r} is at {start} instead of {answer[:40]!r}); "
                "correct it, in characters of the context from 0, not bytes, or leave these questions out"
            )

    def model(self, folder: str) -> PreTrainedModel:
        """The encoder with a start and an end score on every token."""
        from transformers import AutoModelForQuestionAnswering

        return open_with_head(AutoModelForQuestionAnswering, folder)

    def features(
        self, examples: Sequence[Question], tokenizer: PreTrainedTokenizerBase, settings: Settings
    ) -> list[Feature]:
        """Windows `<s> question </s> part of the paragraph </s>`; an answer outside a window is at its first token."""
        features: list[Feature] = []
        length = settings.max_length
        for number, example in enumerate(examples):
            question, used = _shortened(example.question.lstrip(), tokenizer, min(QUESTION_TOKENS, length // 4))
            room = length - used - tokenizer.num_special_tokens_to_add(pair=True)
            step = max(1, min(settings.stride, room - min(length // 4, room - 1)))
            encoded = tokenizer(
                question,
                example.context,
                truncation="only_second",
                max_length=length,
                stride=room - step,
                return_overflowing_tokens=True,
                return_offsets_mapping=True,
            )
            insides = [[side == 1 for side in encoded.sequence_ids(window)] for window in range(len(encoded["input_ids"]))]
            most = most_context([sum(inside) for inside in insides], step)
            for window, inside in enumerate(insides):
                spans = encoded["offset_mapping"][window]
                start, end = _answer_tokens(example, spans, inside)
                may_begin = iter(most[window])
                features.append(
                    {
                        **model_inputs(encoded, window),
                        "start_positions": start,
                        "end_positions": end,
                        "_question": number,
                        "_spans": [span if is_inside else None for span, is_inside in zip(spans, inside, strict=True)],
                        "_may_begin": [is_inside and next(may_begin) for is_inside in inside],
                    }
                )
        return features

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Collator:
        """Pads inputs."""
        from transformers import DataCollatorWithPadding

        collator: Collator = DataCollatorWithPadding(tokenizer)
        return collator

    def shrink(self, logits: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """(start, end) logits, all of them."""
        return logits[0], logits[1]

    def scores(
        self, examples: Sequence[Question], features: Sequence[Feature], predictions: tuple[np.ndarray, ...], language: str
    ) -> Scores:
        """F1 and exact match."""
        answers = {str(number): example.answers for number, example in enumerate(examples)}
        return answer_scores(answers, self._said(examples, features, predictions), self._rules, language)

    def rows(
        self, examples: Sequence[Question], features: Sequence[Feature], predictions: tuple[np.ndarray, ...], language: str
    ) -> list[Row]:
        """Identity, answers and predicted answer of every question; SQuAD's scripts read {id: predicted}."""
        said = self._said(examples, features, predictions)
        return [
            {"id": example.identity, "gold": example.answers, "predicted": said[str(number)]}
            for number, example in enumerate(examples)
        ]

    def _said(
        self, examples: Sequence[Question], features: Sequence[Feature], predictions: tuple[np.ndarray, ...]
    ) -> dict[str, str]:
        """Number of a question -> predicted answer; empty if no window has a span that may be one."""
        best: dict[int, tuple[float, str]] = {}
        for feature, starts, ends in zip(features, *predictions[:2], strict=True):
            number = feature["_question"]
            span = best_span(feature["_spans"], feature["_may_begin"], starts, ends)
            if span and (number not in best or span[0] > best[number][0]):
                best[number] = (span[0], examples[number].context[span[1] : span[2]])
        return {str(number): best[number][1] if number in best else "" for number in range(len(examples))}


def most_context(lengths: Sequence[int], step: int) -> list[list[bool]]:
    """Whether each token of each window has more context there than in any other window of the paragraph.

    The context of a token is the number of tokens on its shorter side plus a hundredth of the window's length; of equal ones
    the first window wins (XTREME, third_party/processors/squad.py, _new_check_is_max_context).

    Args:
        lengths: paragraph tokens of each window.
        step: tokens between the beginnings of two windows.
    """
    best: dict[int, tuple[float, int]] = {}
    for window, length in enumerate(lengths):
        for place in range(length):
            score = min(place, length - 1 - place) + 0.01 * length
            if (token := window * step + place) not in best or score > best[token][0]:
                best[token] = (score, window)
    return [[best[window * step + place][1] == window for place in range(length)] for window, length in enumerate(lengths)]


def _shortened(question: str, tokenizer: PreTrainedTokenizerBase, most: int) -> tuple[str, int]:
    """The question, cut to at most `most` tokens, and its number of tokens.

    The cut is searched by characters: characters spelled in bytes have the offsets of their whole run.
    """
    while (used := len(tokenizer(question, add_special_tokens=False)["input_ids"])) > most and question:
        question = question[: min(len(question) - 1, len(question) * most // used)]
    return question, used


def _answer_tokens(example: Question, spans: Sequence[tuple[int, int]], inside: Sequence[bool]) -> tuple[int, int]:
    """First and last token of the first answer; 0, 0 if the window does not contain all of it."""
    begin, end = example.starts[0], example.starts[0] + len(example.answers[0])
    tokens = [position for position, is_inside in enumerate(inside) if is_inside]
    if not tokens or spans[tokens[0]][0] > begin or spans[tokens[-1]][1] < end:
        return 0, 0
    covered = [place for place in tokens if spans[place][1] > begin and spans[place][0] < end]
    return (covered[0], covered[-1]) if covered else (0, 0)


def best_span(
    spans: Sequence[tuple[int, int] | None], may_begin: Sequence[bool], starts: np.ndarray, ends: np.ndarray
) -> tuple[float, int, int] | None:
    """(score, first character, end character) of the best span of a window; None if no candidate is one.

    Args:
        spans: characters of each token; None outside the paragraph.
        may_begin: whether an answer may begin at each token (`most_context`).
        starts: [L] scores, L tokens of the window and possibly padding.
        ends: the same.
    """
    firsts, lasts = (np.argsort(-scores[: len(spans)], kind="stable")[:CANDIDATES].tolist() for scores in (starts, ends))
    best = None
    for first in firsts:
        for last in lasts:
            if not may_begin[first] or not first <= last < first + ANSWER_TOKENS:
                continue
            begin, end = spans[first], spans[last]
            score = float(starts[first]) + float(ends[last])
            if begin is not None and end is not None and (best is None or score > best[0]):
                best = (score, begin[0], end[1])
    return best
