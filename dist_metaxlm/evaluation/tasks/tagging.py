"""Tagging: a label on the first piece of every word, as in XTREME; scored by spans."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from dist_metaxlm.evaluation.measures.span_f1 import tagging_scores
from dist_metaxlm.evaluation.tasks.files import TaggedSentence, check_declared, read_tagged
from dist_metaxlm.evaluation.tasks.finetune import Collator, Feature, Scores, Settings
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

        return AutoModelForTokenClassification.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, num_labels=len(self.labels)
        )

    def features(
        self, examples: Sequence[TaggedSentence], tokenizer: PreTrainedTokenizerBase, settings: Settings
    ) -> list[Feature]:
        """Sentences as inputs; one that is too long continues in a further input, so every word is scored."""
        features = []
        for number, sentence in enumerate(examples):
            for words in _chunks(sentence, tokenizer, settings.max_length):
                encoded = tokenizer(
                    [sentence.tokens[word] for word in words],
                    is_split_into_words=True,
                    truncation=True,
                    max_length=settings.max_length,
                )
                labels, before = [], None
                for word in encoded.word_ids():
                    first = word is not None and word != before
                    labels.append(self.labels.index(sentence.tags[words[word]]) if first else IGNORED)
                    before = word
                features.append(
                    {
                        "input_ids": encoded["input_ids"],
                        "attention_mask": encoded["attention_mask"],
                        "labels": labels,
                        "_sentence": number,
                    }
                )
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
        gold: list[list[str]] = [[] for _ in examples]
        tags: list[list[str]] = [[] for _ in examples]
        for feature, row in zip(features, predictions, strict=True):
            for label, predicted in zip(feature["labels"], row.tolist(), strict=False):
                if label != IGNORED:
                    gold[feature["_sentence"]].append(self.labels[label])
                    tags[feature["_sentence"]].append(self.labels[predicted])
        return tagging_scores(gold, tags)


def _chunks(sentence: TaggedSentence, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Iterator[list[int]]:
    """Numbers of the words of each input. Words without any piece are left out, as XTREME's preprocessing does."""
    room = max_length - tokenizer.num_special_tokens_to_add()
    encoded = tokenizer(sentence.tokens, is_split_into_words=True, add_special_tokens=False)
    sizes = [0] * len(sentence.tokens)
    for word in encoded.word_ids():
        sizes[word] += 1
    chunk: list[int] = []
    used = 0
    for word, size in enumerate(sizes):
        if chunk and used + size > room:
            yield chunk
            chunk, used = [], 0
        if size:
            chunk.append(word)
            used += size
    if chunk:
        yield chunk
