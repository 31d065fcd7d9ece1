"""Training throughput against Hugging Face's model with padded batches, side by side in one run.

Both sides start from the same weights and see the same documents with the same masks, so the loss of every step is
comparable; only the way of computing differs. Ours: packed windows, head over masked positions, DeepSpeed engine.
Theirs: `XLMRobertaForMaskedLM` with eager or SDPA attention as transformers chooses, rows padded to the longest of the
batch as `DataCollatorForLanguageModeling` does, logits at every position, torch AdamW; on a GPU under `torch.compile`.

Where DeepSpeed is not installed our side runs with torch AdamW and autocast, as theirs does, and the figures say so.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from dist_metaxlm.benchmarking.documents import generated_batches, stored_batches
from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.data.special_tokens import PAD
from dist_metaxlm.interop.weights import huggingface_config, to_huggingface
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.objectives.model import PretrainingModel
from dist_metaxlm.planning.flops import training_flops
from dist_metaxlm.planning.hardware import model_flops_utilisation
from dist_metaxlm.recipe.schema import Recipe, TranslationLM
from dist_metaxlm.training.engine import build_engine, parameter_groups, resolve_precision, set_learning_rate

WARM_UP = 2
"""Steps that are not timed."""


@dataclass(frozen=True)
class Setting:
    """What is measured."""

    recipe: Recipe
    steps: int
    """Timed steps of each side, alternating; some before them are not timed."""
    batch_tokens: int
    """Tokens of a step."""
    rows: int
    """Rows of a padded batch of the baseline; it accumulates gradients over as many as a step needs."""
    documents: str = "store"
    """"store": of the recipe's token store; "generated": random ids in documents of lognormal lengths."""
    seconds: float | None = None
    """No new step is begun after so many; the first timed one always is."""
    learning_rate: float = 1e-4


def compare_with_huggingface(setting: Setting, device: torch.device) -> dict[str, Any]:
    """Alternate steps of both sides on the same batches and report real tokens per second, their ratio and both losses.

    Returns:
        JSON-ready figures; `ratio` is the median over steps of theirs seconds / ours seconds, for equal text.
    """
    recipe = setting.recipe
    begun, source = time.perf_counter(), generated_batches if setting.documents == "generated" else stored_batches
    batches = source(recipe, setting.batch_tokens, setting.steps + WARM_UP)
    encoder = Encoder(recipe.model, seed=recipe.seed)
    with_engine = importlib.util.find_spec("deepspeed") is not None
    ours = (_our_step if with_engine else _our_plain_step)(encoder, setting, device)
    theirs = _their_step(encoder, setting, device)
    rows: list[tuple[float, float, float, float, PackedBatch]] = []
    for index, batch in enumerate(batches):
        if len(rows) and setting.seconds is not None and time.perf_counter() - begun > setting.seconds:
            break
        batch = batch.to(device)
        seconds_theirs, loss_theirs = _timed(theirs, batch, device)
        seconds_ours, loss_ours = _timed(ours, batch, device)
        if index >= WARM_UP:
            rows.append((seconds_ours, seconds_theirs, loss_ours, loss_theirs, batch))
    return {"model": recipe.name, "parameters": sum(p.numel() for p in encoder.parameters()), "device": str(device),
            "engine": "DeepSpeed" if with_engine else "torch AdamW", "threads": torch.get_num_threads(),
            "documents": setting.documents, **figures(rows, setting, device)}


def figures(rows: list[tuple[float, float, float, float, PackedBatch]], setting: Setting, device: torch.device
            ) -> dict[str, Any]:
    """The result of timed steps (our seconds, theirs, our loss, theirs, batch), and whether it is wrong or slower.

    `wrong`: a loss differs by more than 2 % (bf16) or 1e-3 (fp32). `slower`: than the baseline, on a GPU, where speed is
    the point.
    """
    # What no pair fills of our windows is padding too and does not count for either side.
    real = [int((row[4].tokens != PAD).sum()) for row in rows]
    padded = [_padded_tokens(row[4], setting.rows) for row in rows]
    speed = statistics.median(n / row[0] for n, row in zip(real, rows, strict=True))
    flops = statistics.median(_flops(setting, row[4]) / row[0] for row in rows)
    ratios = [row[1] / row[0] for row in rows]
    half = resolve_precision(setting.recipe, device) != "fp32"
    difference = max(abs(row[2] - row[3]) for row in rows)
    wrong = not difference <= (0.02 * max(row[3] for row in rows) if half else 1e-3)
    utilisation = model_flops_utilisation(flops, torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return {
        "steps": len(rows), "tokens_per_step": statistics.median(real), "targets_per_step": int(rows[0][4].targets.numel()),
        "baseline_rows": setting.rows, "baseline_compiled": device.type == "cuda",
        "baseline_padding_share": 1.0 - sum(real) / sum(padded),
        "ours_tokens_per_second": speed, "ours_flops_per_second": flops, "ours_mfu": utilisation,
        "huggingface_tokens_per_second": statistics.median(n / row[1] for n, row in zip(real, rows, strict=True)),
        "ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios),
        "ours_losses": [row[2] for row in rows], "huggingface_losses": [row[3] for row in rows],
        "largest_loss_difference": difference, "wrong": [setting.recipe.name] if wrong else [],
        "slower": [setting.recipe.name] if device.type == "cuda" and statistics.median(ratios) < 1 else []}


def _flops(setting: Setting, batch: PackedBatch) -> float:
    lengths = batch.cu_seqlens.diff().double()
    return training_flops(setting.recipe.model, batch.tokens.numel(), float(lengths.square().sum()), batch.targets.numel())


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


def _our_plain_step(encoder: Encoder, setting: Setting, device: torch.device) -> Callable[[PackedBatch], float]:
    model, objective = PretrainingModel(encoder).to(device).train(), TranslationLM(batch_tokens=setting.batch_tokens)
    update, half = _torch_update(model, setting), resolve_precision(setting.recipe, device) == "bf16"

    def step(batch: PackedBatch) -> float:
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss = model(batch, objective, 0)[0] / batch.targets.numel()
        loss.backward()
        update()
        return float(loss.detach())

    return step


def _torch_update(model: torch.nn.Module, setting: Setting) -> Callable[[], None]:
    """Clipping and fused AdamW of torch."""
    config = setting.recipe.optimizer
    optimizer = torch.optim.AdamW(parameter_groups(model, config), lr=setting.learning_rate, fused=True,
                                  betas=(config.beta1, config.beta2), eps=config.eps)

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimizer.step()
        optimizer.zero_grad()

    return update


def _their_step(encoder: Encoder, setting: Setting, device: torch.device) -> Callable[[PackedBatch], float]:
    import transformers

    settings = dict(huggingface_config(setting.recipe.model))
    config = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
    model = transformers.AutoModelForMaskedLM.from_config(config)
    model.load_state_dict(to_huggingface(encoder.state_dict(), setting.recipe.model), strict=False)
    model.tie_weights()
    model.to(device).train()
    update, half = _torch_update(model, setting), resolve_precision(setting.recipe, device) == "bf16"
    # Rows and their length differ from batch to batch: one graph for all of them.
    forward = torch.compile(model, dynamic=True) if device.type == "cuda" else model

    def step(batch: PackedBatch) -> float:
        total = 0.0
        for tokens, attention, labels in padded_rows(batch, setting.rows):
            share = int((labels != -100).sum()) / batch.targets.numel()
            if share == 0:
                continue
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                loss = forward(input_ids=tokens, attention_mask=attention, labels=labels).loss * share
            loss.backward()
            total += float(loss.detach())
        update()
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
