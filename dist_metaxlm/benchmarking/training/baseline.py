"""Baseline of `metaxlm benchmark throughput`: Hugging Face's model with SDPA, padded batches and torch AdamW.

Padding is not timed, as if a data loader's worker did it. On a GPU the model runs under `torch.compile`; if that fails it
runs uncompiled, and if a padded batch does not fit into memory the number of rows is halved; both are reported.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from dist_metaxlm.benchmarking.kernels.peers import why_not
from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.data.special_tokens import PAD
from dist_metaxlm.interop.weights import huggingface_config, to_huggingface
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.recipe.schema import OptimizerConfig, Recipe
from dist_metaxlm.training.engine.engine import parameter_groups, resolve_precision

PaddedRows = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Input ids, attention mask and labels, each [R, longest]."""


class Baseline:
    """A transformers model with the weights of `encoder`, and its training step."""

    def __init__(self, encoder: Encoder, recipe: Recipe, rows: int, learning_rate: float, device: torch.device) -> None:
        import transformers

        settings = dict(huggingface_config(recipe.model))
        config = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
        model = transformers.AutoModelForMaskedLM.from_config(config, trust_remote_code=False)
        model.load_state_dict(to_huggingface(encoder.state_dict(), recipe.model), strict=False)
        model.tie_weights()
        self.model = model.to(device).train()
        self.rows = rows
        """Rows of a padded batch."""
        self.compiled = device.type == "cuda"
        self.problem: str | None = None
        """Why it is not compiled on a GPU."""
        self.lost = 0.0
        """Seconds of the latest step spent on failed attempts."""
        # Rows and their length differ from batch to batch: one graph for all of them.
        self._forward = torch.compile(model, dynamic=True) if self.compiled else model
        self._update = torch_update(self.model, recipe.optimizer, learning_rate)
        self._half = resolve_precision(recipe, device) == "bf16"
        self._device = device

    def load(self, batch: PackedBatch) -> None:
        """Pad the documents of `batch` (on the CPU) for the next step."""
        self._batch = batch
        padded = padded_rows(batch, self.rows)
        self._shares = [int((labels != -100).sum()) / batch.targets.numel() for _, _, labels in padded]
        self._padded = [tuple(part.to(self._device) for part in parts) for parts in padded]

    def step(self) -> float:
        """One training step on the loaded batch; returns the mean loss over the targets."""
        self.lost = 0.0
        while True:
            start = time.perf_counter()
            try:
                total = self._gradients()
                break
            except torch.OutOfMemoryError:
                if self.rows == 1:
                    raise
                self.rows //= 2
            except Exception as error:
                if not self.compiled:
                    raise
                self.compiled, self.problem, self._forward = False, why_not(error), self.model
            self._try_again()
            self.lost += time.perf_counter() - start
        self._update()
        return total

    def _try_again(self) -> None:
        self.model.zero_grad()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        self.load(self._batch)

    def _gradients(self) -> float:
        total = 0.0
        for (tokens, attention, labels), share in zip(self._padded, self._shares, strict=True):
            if share == 0:
                continue
            with torch.autocast(self._device.type, torch.bfloat16, enabled=self._half):
                loss = self._forward(input_ids=tokens, attention_mask=attention, labels=labels).loss * share
            loss.backward()
            total += float(loss.detach())
        return total


def torch_update(model: torch.nn.Module, config: OptimizerConfig, learning_rate: float) -> Callable[[], None]:
    """Clipping and fused AdamW of torch."""
    optimizer = torch.optim.AdamW(
        parameter_groups(model, config), lr=learning_rate, fused=True, betas=(config.beta1, config.beta2), eps=config.eps
    )

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimizer.step()
        optimizer.zero_grad()

    return update


def padded_rows(batch: PackedBatch, rows: int) -> list[PaddedRows]:
    """The documents of a pack as padded batches of `rows` rows: (input ids, attention mask, labels), each [R, longest]."""
    labels = torch.full_like(batch.tokens, -100)
    labels[batch.targets] = batch.target_tokens
    starts = batch.cu_seqlens.tolist()
    # The unfilled rest of a window is a document of padding in the pack; the baseline skips it.
    spans = [(a, b) for a, b in zip(starts[:-1], starts[1:], strict=True) if int(batch.tokens[a]) != PAD]
    result = []
    for first in range(0, len(spans), rows):
        chosen = spans[first : first + rows]
        parts = [
            (batch.tokens[a:b], torch.ones(b - a, dtype=torch.int64, device=batch.tokens.device), labels[a:b])
            for a, b in chosen
        ]
        result.append(
            tuple(
                torch.nn.utils.rnn.pad_sequence(list(column), batch_first=True, padding_value=fill)
                for column, fill in zip(zip(*parts, strict=True), (PAD, 0, -100), strict=True)
            )
        )
    return result  # type: ignore[return-value]
