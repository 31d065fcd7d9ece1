"""Tagging: a label on the first piece of every word, as in XTREME; scored by spans."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from dist_metaxlm.evaluation.measures.span_f1 import tagging_scores
from dist_metaxlm.evaluation.tasks.encoders import open_with_head
from dist_metaxlm.evaluation.tasks.files import TaggedSentence, check_declared, read_tagged
from dist_metaxlm.evaluation.tasks.finetune import Collator, Feature, Row, Scores, Settings, model_inputs
from dist_metaxlm.evaluation.tasks.spec import TaskSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

IGNORED = -100


class Tagging:
    """Token classification."""

    def __init__(self, spec: TaskSpec) -> None:
        self.metric = {"accuracy": "token_accuracy"}.get(spec.metric or "", "span_f1")
        self._spec, self.labels = spec, list(spec.labels)

    def read(self, path: Path, language: str) -> list[TaggedSentence]:
        """Sentences of a file; its tags must be among the task's labels, if it declares any."""
        spec = self._spec
        return read_tagged(path, self.labels, spec.token_column, spec.label_column, spec.comments)

    def text(self, example: TaggedSentence) -> str:
        """The sentence's words."""
        return " ".join(example.tokens)

    def observe(self, train: list[TaggedSentence]) -> None:
        """Check that the task declares its labels; errors: UserError with those of the training file."""
        check_declared(self.labels, Counter(tag for sentence in train for tag in sentence.tags))

    def model(self, folder: str) -> PreTrainedModel:
        """The encoder with a linear layer on every token."""
        from transformers import AutoModelForTokenClassification

        return open_with_head(AutoModelForTokenClassification, folder, num_labels=len(self.labels))

    def features(
        self, examples: Sequence[TaggedSentence], tokenizer: PreTrainedTokenizerBase, settings: Settings
    ) -> list[Feature]:
        """Sentences as inputs; one that is too long continues in a further input, so every word is scored."""
        features = []
        for number, sentence in enumerate(examples):
            tokens, sizes = _with_pieces(sentence.tokens, tokenizer, settings.max_length)
            for words in _chunks(sizes, settings.max_length - tokenizer.num_special_tokens_to_add()):
                encoded = tokenizer(
                    [tokens[word] for word in words],
                    is_split_into_words=True,
                    truncation=True,
                    max_length=settings.max_length,
                )
                labels, before = [], None
                for word in encoded.word_ids():
                    first = word is not None and word != before
                    labels.append(self.labels.index(sentence.tags[words[word]]) if first else IGNORED)
                    before = word
                features.append({**model_inputs(encoded), "labels": labels, "_sentence": number})
        return features

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Collator:
        """Pads inputs and labels."""
        from transformers import DataCollatorForTokenClassification

        collator: Collator = DataCollatorForTokenClassification(tokenizer)
        return collator

    def shrink(self, logits: torch.Tensor) -> torch.Tensor:
        """[B, L, labels] -> [B, L] labels."""
        return logits.argmax(-1)

    def scores(
        self, examples: Sequence[TaggedSentence], features: Sequence[Feature], predictions: np.ndarray, language: str
    ) -> Scores:
        """Span F1, precision, recall and token accuracy over whole sentences."""
        gold, tags = self._tags(examples, features, predictions)
        return tagging_scores(gold, tags)

    def rows(
        self, examples: Sequence[TaggedSentence], features: Sequence[Feature], predictions: np.ndarray, language: str
    ) -> list[Row]:
        """Tokens, tags and predicted tags of every sentence."""
        _, tags = self._tags(examples, features, predictions)
        return [
            {"tokens": sentence.tokens, "gold": sentence.tags, "predicted": predicted}
            for sentence, predicted in zip(examples, tags, strict=True)
        ]

    def _tags(
        self, examples: Sequence[TaggedSentence], features: Sequence[Feature], predictions: np.ndarray
    ) -> tuple[list[list[str]], list[list[str]]]:
        """(tags, predicted tags) of every sentence, from the first pieces of its words."""
        gold: list[list[str]] = [[] for _ in examples]
        tags: list[list[str]] = [[] for _ in examples]
        for feature, row in zip(features, predictions, strict=True):
            for label, predicted in zip(feature["labels"], row.tolist(), strict=False):
                if label != IGNORED:
                    gold[feature["_sentence"]].append(self.labels[label])
                    tags[feature["_sentence"]].append(self.labels[predicted])
        return gold, tags


def _with_pieces(words: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int) -> tuple[list[str], list[int]]:
    """The words as they are given to the encoder, and the number of pieces of each.

    As in XTREME (utils_preprocess.py, udpos_tokenize_preprocess and panx_tokenize_preprocess), a word without any piece,
    such as a zero-width space, and one that does not fit into an input become the unknown token, and are scored like others.
    """
    room = max_length - tokenizer.num_special_tokens_to_add()
    encoded = tokenizer(list(words), is_split_into_words=True, add_special_tokens=False)
    sizes = [0] * len(words)
    for word in encoded.word_ids():
        sizes[word] += 1
    unknown = tokenizer.unk_token or tokenizer.mask_token or tokenizer.pad_token
    shown = [word if 0 < size <= room else str(unknown) for word, size in zip(words, sizes, strict=True)]
    return shown, [size if 0 < size <= room else 1 for size in sizes]


def _chunks(sizes: Sequence[int], room: int) -> Iterator[list[int]]:
    """Numbers of the words of each input. sizes: pieces of each word; room: pieces that an input has place for."""
    chunk: list[int] = []
    used = 0
    for word, size in enumerate(sizes):
        if chunk and used + size > room:
            yield chunk
            chunk, used = [], 0
        chunk.append(word)
        used += size
    if chunk:
        yield chunk
