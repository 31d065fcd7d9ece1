"""Training throughput against Hugging Face's model with padded batches, interleaved in one run.

Both sides start from the same weights and train on the same documents with the same masks, so the loss of every step is
comparable; only the implementation differs. Ours: packed windows, head over masked positions, DeepSpeed engine.
Theirs: `XLMRobertaForMaskedLM` with eager or SDPA attention as transformers chooses, rows padded to the longest of the
batch as `DataCollatorForLanguageModeling` does, logits at every position, torch AdamW; on a GPU under `torch.compile`
(benchmarking/training/baseline.py).

If DeepSpeed is not installed, our side uses torch AdamW and autocast like theirs, and the result says so.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypedDict

import torch

from dist_metaxlm.benchmarking.training.baseline import Baseline, padded_rows, torch_update
from dist_metaxlm.benchmarking.training.documents import generated_batches, stored_batches
from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.data.special_tokens import PAD
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.objectives.model import PretrainingModel
from dist_metaxlm.planning.flops import training_flops
from dist_metaxlm.planning.hardware import model_flops_utilisation
from dist_metaxlm.recipe.schema import Recipe, TranslationLM
from dist_metaxlm.training.engine.engine import build_engine, resolve_precision, set_learning_rate

WARM_UP = 2
"""Steps that are not timed."""

Row = tuple[float, float, float, float, PackedBatch]
"""A timed step: our seconds, theirs, our loss, theirs, the batch."""


class About(TypedDict):
    """What ran."""

    model: str
    parameters: int
    device: str
    engine: str
    threads: int
    documents: str


class Speed(TypedDict):
    """Rates of our side."""

    ours_tokens_per_second: float
    ours_flops_per_second: float
    ours_mfu: float | None
    """Model FLOPs utilisation; None on a CPU and on an unknown GPU."""


class Figures(Speed):
    """Of the timed steps: tokens without padding, seconds of theirs / seconds of ours, losses."""

    steps: int
    tokens_per_step: float
    targets_per_step: int
    baseline_rows: int
    baseline_padding_share: float
    huggingface_tokens_per_second: float
    ratio: float
    ratio_min: float
    ratio_max: float
    ours_losses: list[float]
    huggingface_losses: list[float]
    largest_loss_difference: float
    wrong: list[str]
    slower: list[str]


class Comparison(About, Figures):
    """The result of `compare_with_huggingface`."""

    baseline_compiled: bool
    baseline_problem: str | None


@dataclass(frozen=True)
class Setting:
    """What is measured."""

    recipe: Recipe
    steps: int
    """Timed steps of each side, alternating, after some steps of warm-up."""
    batch_tokens: int
    """Tokens of a step."""
    rows: int
    """Rows of a padded batch of the baseline; it accumulates gradients over as many as a step needs."""
    documents: str = "store"
    """"store": of the recipe's token store; "generated": random ids in documents of lognormal lengths."""
    seconds: float | None = None
    """Time limit for starting a step; the first timed one always runs."""
    learning_rate: float = 1e-4


def with_adamw(recipe: Recipe) -> Recipe:
    """The recipe with the baseline's optimiser, so that both sides make the same updates."""
    return recipe.model_copy(update={"optimizer": recipe.optimizer.model_copy(update={"name": "adamw"})})


def compare_with_huggingface(
    setting: Setting, device: torch.device, keep: Callable[[Mapping[str, object]], None] = lambda so_far: None
) -> Comparison:
    """Alternate steps of both sides on the same batches and report real tokens per second, their ratio and both losses.

    The first steps are not timed; ours come first, and `keep` receives their speed before the baseline is compiled.

    Returns:
        JSON-ready result; `ratio` is the median over steps of their seconds / our seconds for the same text.
    """
    setting = replace(setting, recipe=with_adamw(setting.recipe))
    recipe = setting.recipe
    begun, source = time.perf_counter(), generated_batches if setting.documents == "generated" else stored_batches
    batches = source(recipe, setting.batch_tokens, setting.steps + WARM_UP)
    encoder = Encoder(recipe.model, seed=recipe.seed)
    with_engine = importlib.util.find_spec("deepspeed") is not None
    ours = (_our_step if with_engine else _our_plain_step)(encoder, setting, device)
    baseline = Baseline(encoder, recipe, setting.rows, setting.learning_rate, device)
    about: About = {
        "model": recipe.name,
        "parameters": sum(p.numel() for p in encoder.parameters()),
        "device": str(device),
        "engine": "DeepSpeed" if with_engine else "torch AdamW",
        "threads": torch.get_num_threads(),
        "documents": setting.documents,
    }
    for batch in batches[:WARM_UP]:
        seconds, loss = _timed(ours, batch.to(device), device)
    keep(
        {
            **about,
            **_speed(setting, device, [(seconds, batch)]),
            "ours_losses": [loss],
            "steps": 0,
            "unfinished": ["the baseline was not reached"],
        }
    )
    for batch in batches[:WARM_UP]:
        baseline.load(batch)
        baseline.step()
    rows: list[Row] = []
    for batch in batches[WARM_UP:]:
        if len(rows) and setting.seconds is not None and time.perf_counter() - begun > setting.seconds:
            break
        baseline.load(batch)
        seconds_theirs, loss_theirs = _timed(lambda _: baseline.step(), batch, device)
        seconds_ours, loss_ours = _timed(ours, batch.to(device), device)
        rows.append((seconds_ours, seconds_theirs - baseline.lost, loss_ours, loss_theirs, batch))
    return {
        **about,
        **figures(rows, replace(setting, rows=baseline.rows), device),
        "baseline_compiled": baseline.compiled,
        "baseline_problem": baseline.problem,
    }


def figures(rows: list[Row], setting: Setting, device: torch.device) -> Figures:
    """The result of timed steps, and whether it is wrong or slower.

    `wrong`: a loss differs by more than 2 % (bf16) or 1e-3 (fp32). `slower`: than the baseline (GPU only).
    """
    # The unfilled rest of our windows is padding and does not count for either side.
    real = [_real_tokens(row[4]) for row in rows]
    padded = [_padded_tokens(row[4], setting.rows) for row in rows]
    ratios = [row[1] / row[0] for row in rows]
    half = resolve_precision(setting.recipe, device) != "fp32"
    difference = max(abs(row[2] - row[3]) for row in rows)
    wrong = not difference <= (0.02 * max(row[3] for row in rows) if half else 1e-3)
    return {
        "steps": len(rows),
        "tokens_per_step": statistics.median(real),
        "targets_per_step": int(rows[0][4].targets.numel()),
        "baseline_rows": setting.rows,
        "baseline_padding_share": 1.0 - sum(real) / sum(padded),
        **_speed(setting, device, [(row[0], row[4]) for row in rows]),
        "huggingface_tokens_per_second": statistics.median(n / row[1] for n, row in zip(real, rows, strict=True)),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "ours_losses": [row[2] for row in rows],
        "huggingface_losses": [row[3] for row in rows],
        "largest_loss_difference": difference,
        "wrong": [setting.recipe.name] if wrong else [],
        "slower": [setting.recipe.name] if device.type == "cuda" and statistics.median(ratios) < 1 else [],
    }


def _speed(setting: Setting, device: torch.device, steps: list[tuple[float, PackedBatch]]) -> Speed:
    """Rates of our side from (seconds, batch) of steps."""
    flops = statistics.median(_flops(setting, batch) / seconds for seconds, batch in steps)
    utilisation = model_flops_utilisation(flops, torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return {
        "ours_tokens_per_second": statistics.median(_real_tokens(batch) / seconds for seconds, batch in steps),
        "ours_flops_per_second": flops,
        "ours_mfu": utilisation,
    }


def _real_tokens(batch: PackedBatch) -> int:
    return int((batch.tokens != PAD).sum())


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
    update = torch_update(model, setting.recipe.optimizer, setting.learning_rate)
    half = resolve_precision(setting.recipe, device) == "bf16"

    def step(batch: PackedBatch) -> float:
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss = model(batch, objective, 0)[0] / batch.targets.numel()
        loss.backward()
        update()
        return float(loss.detach())

    return step


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
