"""Our AdamW against others, interleaved inside one DeepSpeed engine on real gradients.

Under ZeRO-1 and 2 DeepSpeed passes AdamW the flat fp32 shards of two groups. Each implementation takes whole steps with
its own moments; their results for equal weights and gradients are compared separately.
"""

from __future__ import annotations

import contextlib
import io
import statistics
import sys
import time
from collections.abc import Callable
from typing import TypedDict

import torch

from dist_metaxlm.benchmarking.training.phase_steps import phase_steps
from dist_metaxlm.benchmarking.training.turns import WARM_UP, Spread, spread
from dist_metaxlm.deepspeed_adapter.gradient_norm import use_exact_norms
from dist_metaxlm.errors import UserError
from dist_metaxlm.recipe.schema import OptimizerConfig, Recipe

OURS, DEEPSPEED = "torch fused", "DeepSpeedCPUAdam"


class Settings(TypedDict):
    """What every kind of AdamW is made with."""

    lr: float
    betas: tuple[float, float]
    eps: float


class KindFigures(TypedDict):
    """Times of one kind of AdamW, CPU seconds."""

    milliseconds: float
    """Of AdamW alone."""
    update_milliseconds: float
    """Of DeepSpeed's whole update around it."""
    to_torch_fused: Spread
    share_of_step: float
    gain_of_step: Spread


class Updates(TypedDict):
    """The result of `measure_updates`."""

    shards: list[int]
    """Elements of each tensor that AdamW updates."""
    missing: dict[str, str]
    """Kind that could not be made -> reason."""
    kinds: dict[str, KindFigures]
    differences_from_torch_fused: dict[str, float]


Make = Callable[[list[dict[str, object]], Settings], torch.optim.Optimizer]


def deepspeed_adam(groups: list[dict[str, object]], settings: Settings) -> torch.optim.Optimizer:
    """DeepSpeed's operator in C++, built at first use (needs ninja and a compiler)."""
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    with contextlib.redirect_stdout(io.StringIO()):
        optimizer: torch.optim.Optimizer = DeepSpeedCPUAdam(groups, adamw_mode=True, **settings)
        return optimizer


KINDS: dict[str, Make] = {
    OURS: lambda groups, settings: torch.optim.AdamW(groups, fused=True, **settings),
    "torch foreach": lambda groups, settings: torch.optim.AdamW(groups, foreach=True, **settings),
    "torch, one at a time": lambda groups, settings: torch.optim.AdamW(groups, foreach=False, **settings),
    DEEPSPEED: deepspeed_adam,
}


def measure_updates(recipe: Recipe, phase_name: str, repeats: int) -> Updates:
    """CPU seconds of AdamW alone, of DeepSpeed's whole update around it and of the step, by kind of AdamW.

    Raises:
        UserError: for ZeRO-3, whose groups are empty between updates.
    """
    if recipe.parallel.zero_stage == 3:
        raise UserError("parallel.zero_stage=3: updates are compared under ZeRO-0, 1 and 2; give 1")
    turns = WARM_UP + repeats
    loop = phase_steps(recipe, phase_name, torch.device("cpu"), turns * len(KINDS))
    engine, learning_rate = loop.engine, recipe.phase(phase_name).learning_rate.peak
    holder = engine.optimizer if hasattr(engine.optimizer, "optimizer") else engine  # without ZeRO there is no wrapper
    own = holder.optimizer
    kinds, missing = _made(own, recipe.optimizer)
    seconds: dict[str, list[tuple[float, float, float]]] = {name: [] for name in kinds}
    inside: list[float] = []
    for kind in kinds.values():
        _watch(kind, "step", inside)
        if holder is engine:
            engine.optimizer = kind
            use_exact_norms(engine)
    update: list[float] = []
    _watch(engine, "step", update)
    for turn in range(turns):
        for place, (name, kind) in enumerate(kinds.items()):
            holder.optimizer = kind
            inside.clear()
            start = time.process_time()
            loop.steps.run(turn * len(kinds) + place, learning_rate)
            if turn >= WARM_UP:
                seconds[name].append((sum(inside), update[-1], time.process_time() - start))
    holder.optimizer = own
    shards = [param.numel() for group in holder.optimizer.param_groups for param in group["params"]]
    return {
        "shards": shards,
        "missing": missing,
        "kinds": _figures(seconds),
        "differences_from_torch_fused": differences(shards, recipe.optimizer, learning_rate, list(kinds)),
    }


def _figures(seconds: dict[str, list[tuple[float, float, float]]]) -> dict[str, KindFigures]:
    figures: dict[str, KindFigures] = {}
    for name, rows in seconds.items():
        step = statistics.median(row[2] for row in seconds[OURS])
        pairs = list(zip(rows, seconds[OURS], strict=True))
        figures[name] = {
            "milliseconds": 1e3 * statistics.median(row[0] for row in rows),
            "update_milliseconds": 1e3 * statistics.median(row[1] for row in rows),
            "to_torch_fused": spread([row[0] / ours[0] for row, ours in pairs]),
            "share_of_step": statistics.median(row[0] for row in rows) / step,
            "gain_of_step": spread([(ours[0] - row[0]) / step for row, ours in pairs]),
        }
    return figures


def _settings(config: OptimizerConfig, learning_rate: float) -> Settings:
    return {"lr": learning_rate, "betas": (config.beta1, config.beta2), "eps": config.eps}


def _made(inner: torch.optim.Optimizer, config: OptimizerConfig) -> tuple[dict[str, torch.optim.Optimizer], dict[str, str]]:
    """Every kind of AdamW over the groups of `inner`, and why a kind is unavailable."""
    kinds: dict[str, torch.optim.Optimizer] = {}
    missing: dict[str, str] = {}
    for name, make in KINDS.items():
        groups: list[dict[str, object]] = [
            {"params": group["params"], "weight_decay": group["weight_decay"]} for group in inner.param_groups
        ]
        try:
            kinds[name] = make(groups, _settings(config, 0.0))
        except Exception as error:  # without a compiler or ninja its operator cannot be built
            missing[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            print(f"{name}: {missing[name]}", file=sys.stderr)
    return kinds, missing


def differences(
    shards: list[int], config: OptimizerConfig, learning_rate: float, names: list[str], updates: int = 3
) -> dict[str, float]:
    """Largest difference of any weight after `updates` of the same gradients, relative to the largest change of any."""
    weights: dict[str, torch.Tensor] = {}
    for name in names:
        generator = torch.Generator().manual_seed(3)
        params = [torch.nn.Parameter(torch.randn(size, generator=generator) * 0.02) for size in shards]
        start = torch.cat([param.detach().clone() for param in params])
        optimizer = KINDS[name]([{"params": params, "weight_decay": config.weight_decay}], _settings(config, learning_rate))
        for _ in range(updates):
            for param in params:
                param.grad = torch.randn(param.shape, generator=generator) * 1e-3
            optimizer.step()
        weights[name] = torch.cat([param.detach() for param in params])
    change = (weights[OURS] - start).abs().max()
    return {name: float((weights[name] - weights[OURS]).abs().max() / change) for name in names if name != OURS}


def _watch(owner: object, method: str, seconds: list[float]) -> None:
    """Append to `seconds` the CPU time of each call of a method."""
    call = getattr(owner, method)

    def timed(*arguments: object, **named: object) -> object:
        start = time.process_time()
        result = call(*arguments, **named)
        seconds.append(time.process_time() - start)
        return result

    setattr(owner, method, timed)
