"""Training throughput against Hugging Face's model with padded batches, side by side in one run.

Both sides start from the same weights and see the same documents with the same masks, so the loss of every step is
comparable; only the way of computing differs. Ours: packed windows, head over masked positions, DeepSpeed engine.
Theirs: `XLMRobertaForMaskedLM` with eager or SDPA attention as transformers chooses, rows padded to the longest of the
batch as `DataCollatorForLanguageModeling` does, logits at every position, torch AdamW.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.data.loader import PhaseData
from dist_metaxlm.data.store import TokenStore
from dist_metaxlm.data.tokenizer import PAD, Tokenizer
from dist_metaxlm.errors import UserError
from dist_metaxlm.interop.weights import huggingface_config, to_huggingface
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.objectives.model import PretrainingModel
from dist_metaxlm.recipe.schema import Recipe, TranslationLM
from dist_metaxlm.training.engine import build_engine, parameter_groups, resolve_precision, set_learning_rate


@dataclass(frozen=True)
class Setting:
    """What is measured."""

    recipe: Recipe
    steps: int
    """Timed steps of each side, alternating; two more before them are not timed."""
    batch_tokens: int
    """Tokens of a step."""
    rows: int
    """Rows of a padded batch of the baseline; it accumulates gradients over as many as a step needs."""
    learning_rate: float = 1e-4


def compare_with_huggingface(setting: Setting, device: torch.device) -> dict[str, Any]:
    """Alternate steps of both sides on the same batches and report real tokens per second, their ratio and both losses.

    Returns:
        JSON-ready figures; `ratio` is the median over steps of theirs seconds / ours seconds, for equal text.
    """
    recipe = setting.recipe
    batches = _batches(setting)
    encoder = Encoder(recipe.model, seed=recipe.seed)
    ours = _our_step(encoder, setting, device)
    theirs = _their_step(encoder, setting, device)
    rows = []
    for index, batch in enumerate(batches):
        batch = batch.to(device)
        seconds_theirs, loss_theirs = _timed(theirs, batch, device)
        seconds_ours, loss_ours = _timed(ours, batch, device)
        if index >= 2:
            rows.append((seconds_ours, seconds_theirs, loss_ours, loss_theirs, batch))
    # What no pair fills of our windows is padding too and does not count for either side.
    real = [int((row[4].tokens != PAD).sum()) for row in rows]
    padded = [_padded_tokens(row[4], setting.rows) for row in rows]
    return {
        "model": recipe.name, "parameters": sum(p.numel() for p in encoder.parameters()),
        "device": str(device), "threads": torch.get_num_threads(), "steps": len(rows),
        "tokens_per_step": statistics.median(real), "targets_per_step": int(rows[0][4].targets.numel()),
        "baseline_rows": setting.rows,
        "baseline_padding_share": 1.0 - sum(real) / sum(padded),
        "ours_tokens_per_second": statistics.median(n / row[0] for n, row in zip(real, rows, strict=True)),
        "huggingface_tokens_per_second": statistics.median(n / row[1] for n, row in zip(real, rows, strict=True)),
        "ratio": statistics.median(row[1] / row[0] for row in rows),
        "ratio_min": min(row[1] / row[0] for row in rows), "ratio_max": max(row[1] / row[0] for row in rows),
        "ours_losses": [row[2] for row in rows], "huggingface_losses": [row[3] for row in rows],
        "largest_loss_difference": max(abs(row[2] - row[3]) for row in rows)}


def _batches(setting: Setting) -> list[PackedBatch]:
    """Windows of translation pairs from the recipe's store, or from any other whose ids the model has."""
    directory = Path(setting.recipe.data.directory)
    if not (directory / "store" / "manifest.json").is_file():
        raise UserError(f"no token store in {directory}; run `python launch/prepare.py` first")
    tokenizer = Tokenizer.load(directory / "tokenizer.model")
    if tokenizer.vocab_size > setting.recipe.model.vocab_size:
        raise UserError(f"the store in {directory} has {tokenizer.vocab_size} token ids, the model only "
                        f"{setting.recipe.model.vocab_size}; give a data.directory made for this recipe")
    phase = setting.recipe.phases["cross"]
    objective = TranslationLM(batch_tokens=setting.batch_tokens)
    phase = phase.model_copy(update={"objectives": [objective], "languages": "all"})
    data = PhaseData(TokenStore.open(directory / "store"), tokenizer, "cross", phase, setting.recipe.seed)
    windows = setting.batch_tokens // phase.sequence_length
    return [data.batch(objective, step * windows, windows) for step in range(setting.steps + 2)]


def _our_step(encoder: Encoder, setting: Setting, device: torch.device) -> Callable[[PackedBatch], float]:
    engine = build_engine(PretrainingModel(encoder), setting.recipe, device, 1)
    objective = TranslationLM(batch_tokens=setting.batch_tokens)

    def step(batch: PackedBatch) -> float:
        loss, _, _ = engine(batch, objective, 0)
        mean = loss / batch.targets.numel()
        engine.backward(mean, scale_wrt_gas=False)
        set_learning_rate(engine, setting.learning_rate)
        engine.step()
        return float(mean.detach())

    return step


def _their_step(encoder: Encoder, setting: Setting, device: torch.device) -> Callable[[PackedBatch], float]:
    import transformers

    settings = dict(huggingface_config(setting.recipe.model))
    config = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
    model = transformers.AutoModelForMaskedLM.from_config(config)
    model.load_state_dict(to_huggingface(encoder.state_dict(), setting.recipe.model), strict=False)
    model.tie_weights()
    model.to(device).train()
    optimizer_config, half = setting.recipe.optimizer, resolve_precision(setting.recipe, device) == "bf16"
    optimizer = torch.optim.AdamW(parameter_groups(model, optimizer_config), lr=setting.learning_rate, fused=True,
                                  betas=(optimizer_config.beta1, optimizer_config.beta2), eps=optimizer_config.eps)

    def step(batch: PackedBatch) -> float:
        total = 0.0
        for tokens, attention, labels in padded_rows(batch, setting.rows):
            share = int((labels != -100).sum()) / batch.targets.numel()
            if share == 0:
                continue
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                loss = model(input_ids=tokens, attention_mask=attention, labels=labels).loss * share
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), optimizer_config.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        return total

    return step


def padded_rows(batch: PackedBatch, rows: int) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """The documents of a pack as padded batches of `rows` rows: (input ids, attention mask, labels), each [R, longest]."""
    labels = torch.full_like(batch.tokens, -100)
    labels[batch.targets] = batch.target_tokens
    starts = batch.cu_seqlens.tolist()
    # A window's unfilled rest is a document of padding in the pack; the baseline is not asked to compute it.
    spans = [(a, b) for a, b in zip(starts[:-1], starts[1:], strict=True) if int(batch.tokens[a]) != PAD]
    result = []
    for first in range(0, len(spans), rows):
        chosen = spans[first:first + rows]
        parts = [(batch.tokens[a:b], torch.ones(b - a, dtype=torch.int64, device=batch.tokens.device), labels[a:b])
                 for a, b in chosen]
        result.append(tuple(torch.nn.utils.rnn.pad_sequence(list(column), batch_first=True, padding_value=fill)
                            for column, fill in zip(zip(*parts, strict=True), (PAD, 0, -100), strict=True)))
    return result  # type: ignore[return-value]


def _padded_tokens(batch: PackedBatch, rows: int) -> int:
    return sum(tokens.numel() for tokens, _, _ in padded_rows(batch, rows))


def _timed(step: Callable[[PackedBatch], float], batch: PackedBatch, device: torch.device) -> tuple[float, float]:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    loss = step(batch)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, loss
