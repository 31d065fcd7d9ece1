"""Classification of sentence pairs (XNLI, PAWS-X), scored by accuracy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from dist_metaxlm.evaluation.measures.transfer import accuracy
from dist_metaxlm.evaluation.tasks.files import LabelledPair, check_declared, read_labelled
from dist_metaxlm.evaluation.tasks.finetune import Collator, Feature, Scores, Settings
from dist_metaxlm.evaluation.tasks.spec import TaskSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Classification:
    """Sequence classification of `<s> first </s> second </s>`, as the tokenizer puts pairs together."""

    metric = "accuracy"

    def __init__(self, spec: TaskSpec) -> None:
        self.labels = list(spec.labels)

    def read(self, path: Path, language: str) -> list[LabelledPair]:
        """Pairs of a file; its labels must be among the task's, if it declares any."""
        return read_labelled(path, self.labels, language)

    def text(self, example: LabelledPair) -> str:
        """Both sentences."""
        return f"{example.first} {example.second}"

    def observe(self, train: list[LabelledPair]) -> None:
        """Check that the task declares its labels; errors: UserError with those of the training file."""
        check_declared(self.labels, Counter(pair.label for pair in train))

    def model(self, folder: str) -> PreTrainedModel:
        """The encoder with transformers' classification head."""
        from transformers import AutoModelForSequenceClassification

        return AutoModelForSequenceClassification.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, num_labels=len(self.labels)
        )

    def features(
        self, examples: Sequence[LabelledPair], tokenizer: PreTrainedTokenizerBase, settings: Settings
    ) -> list[Feature]:
        """Pairs as inputs, the longer sentence cut first."""
        encoded = tokenizer(
            [pair.first for pair in examples],
            [pair.second for pair in examples],
            truncation=True,
            max_length=settings.max_length,
        )
        return [
            {"input_ids": ids, "attention_mask": mask, "labels": self.labels.index(pair.label)}
            for ids, mask, pair in zip(encoded["input_ids"], encoded["attention_mask"], examples, strict=True)
        ]

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Collator:
        """Pads inputs."""
        from transformers import DataCollatorWithPadding

        collator: Collator = DataCollatorWithPadding(tokenizer)
        return collator

    def shrink(self, logits: torch.Tensor) -> torch.Tensor:
        """[B, labels] -> [B] labels."""
        return logits.argmax(-1)

    def scores(
        self, examples: Sequence[LabelledPair], features: Sequence[Feature], predictions: np.ndarray, language: str
    ) -> Scores:
        """Accuracy."""
        predicted = [self.labels[label] for label in predictions.tolist()]
        return {"accuracy": accuracy([pair.label for pair in examples], predicted)}
