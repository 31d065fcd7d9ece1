"""Extractive question answering (XQuAD, MLQA, TyDiQA GoldP): start and end of the answer in windows of the paragraph.

Windows, candidates and limits are those of XTREME's run_squad.py: questions of at most 64 tokens, overlapping windows, the
best of 20 starts and 20 ends with an answer of at most 30 tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from dist_metaxlm.errors import UserError
from dist_metaxlm.evaluation.measures.answers import answer_scores
from dist_metaxlm.evaluation.tasks.files import Question, read_questions
from dist_metaxlm.evaluation.tasks.finetune import Collator, Feature, Scores, Settings
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
        """Questions of a file."""
        return read_questions(path)

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

        return AutoModelForQuestionAnswering.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_safetensors=True
        )

    def features(
        self, examples: Sequence[Question], tokenizer: PreTrainedTokenizerBase, settings: Settings
    ) -> list[Feature]:
        """Windows `<s> question </s> part of the paragraph </s>`; an answer outside a window is at its first token."""
        features = []
        length = settings.max_length
        for number, example in enumerate(examples):
            question, used = _shortened(example.question.lstrip(), tokenizer, min(QUESTION_TOKENS, length // 4))
            room = length - used - tokenizer.num_special_tokens_to_add(pair=True)
            encoded = tokenizer(
                question,
                example.context,
                truncation="only_second",
                max_length=length,
                stride=max(0, min(settings.stride, length // 4, room - 1)),
                return_overflowing_tokens=True,
                return_offsets_mapping=True,
            )
            for window, ids in enumerate(encoded["input_ids"]):
                inside = [side == 1 for side in encoded.sequence_ids(window)]
                spans = encoded["offset_mapping"][window]
                start, end = _answer_tokens(example, spans, inside)
                features.append(
                    {
                        "input_ids": ids,
                        "attention_mask": encoded["attention_mask"][window],
                        "start_positions": start,
                        "end_positions": end,
                        "_question": number,
                        "_spans": [span if is_inside else None for span, is_inside in zip(spans, inside, strict=True)],
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
        best: dict[int, tuple[float, str]] = {}
        for feature, starts, ends in zip(features, *predictions[:2], strict=True):
            number = feature["_question"]
            span = _best_span(feature["_spans"], starts, ends)
            if span and (number not in best or span[0] > best[number][0]):
                best[number] = (span[0], examples[number].context[span[1] : span[2]])
        answers = {str(number): example.answers for number, example in enumerate(examples)}
        said = {question: best[int(question)][1] if int(question) in best else "" for question in answers}
        return answer_scores(answers, said, self._rules, language)


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


def _best_span(
    spans: Sequence[tuple[int, int] | None], starts: np.ndarray, ends: np.ndarray
) -> tuple[float, int, int] | None:
    """(score, first character, end character) of the best span of a window."""
    tokens = np.array([place for place, span in enumerate(spans) if span is not None], np.int64)
    best = None
    for first in tokens[np.argsort(-starts[tokens], kind="stable")][:CANDIDATES].tolist():
        for last in tokens[np.argsort(-ends[tokens], kind="stable")][:CANDIDATES].tolist():
            score = float(starts[first] + ends[last])
            if first <= last < first + ANSWER_TOKENS and (best is None or score > best[0]):
                best = (score, spans[first][0], spans[last][1])
    return best
