"""Design choices of the CPU path against their alternatives, interleaved in one run: `metaxlm benchmark cpu`.

Three choices: short documents on short rows or in their windows (`short_rows`), dropout masks hashed part by part or at
once (kernels/pointwise/dropout.py), and the AdamW that updates the weights (`updates`). All on real documents.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import TypedDict

import torch
import torch.nn.functional as F

from dist_metaxlm.benchmarking.training.phase_steps import phase_steps, stored_phase
from dist_metaxlm.benchmarking.training.turns import WARM_UP, Spread, interleaved_timings, ratio, spread
from dist_metaxlm.benchmarking.training.updates import Updates, measure_updates
from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.data.steps import StepPlan
from dist_metaxlm.kernels.attention import short_rows
from dist_metaxlm.kernels.attention.dispatch import attention_pattern, packed_attention
from dist_metaxlm.kernels.attention.short_rows import row_table
from dist_metaxlm.kernels.pointwise import dropout
from dist_metaxlm.kernels.pointwise.dropout import DropoutMask
from dist_metaxlm.parallel.process_group import process_group
from dist_metaxlm.parallel.topology import detect_topology
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.recipe.schema import Recipe
from dist_metaxlm.reporting.records import Environment
from dist_metaxlm.training.run.environment import environment

PARTS = ("rows", "dropout", "update")
LONG = 512
"""Tokens of the longer windows, as in `xlmr-base`."""
RATE = 0.1


class RowTimes(TypedDict):
    """Attention over a micro-batch. `chosen`: as the package chooses; ratios are of times."""

    tokens: int
    documents: int
    median_length: float
    moved: bool
    """Whether the package chooses short rows."""
    slots_per_token: float
    windows_to_chosen: Spread
    windows_to_rows: Spread
    chosen_milliseconds: float


class AttentionRow(RowTimes):
    """The same with the micro-batch."""

    objective: str
    window: int


class Rows(TypedDict):
    """The result of `measure_rows`."""

    attention: list[AttentionRow]
    step_windows_to_chosen: Spread


class Dropout(TypedDict):
    """The result of `measure_dropout`; ratios are of times."""

    rate: float
    mask_shape: list[int]
    mask_milliseconds: float
    mask_at_once_to_parts: Spread
    dropout_to_torch_dropout: Spread
    step_with_dropout_to_without: Spread
    step_at_once_to_parts: Spread
    share_of_step: Spread


class Choices(TypedDict, total=False):
    """The result of `measure_cpu`: the parts that were asked for, and what they were measured with."""

    model: str
    phase: str
    ranks: int
    threads: int
    repeats: int
    rows: Rows
    dropout: Dropout
    update: Updates
    environment: Environment


def measure_cpu(recipe_name: str, overrides: list[str], phase: str, repeats: int, parts: list[str]) -> Choices:
    """Ratios of the choices in `parts` for a recipe's phase; under a launcher on all its ranks.

    Args:
        recipe_name: shipped recipe or file; `overrides` as on the command line.
        phase: meta, cross or joint.
        repeats: timed repeats of each side of a comparison, after two of warm-up.
        parts: some of `PARTS`.

    Returns:
        JSON-ready. Every ratio is of times for the same work: median, least and greatest over the repeats.

    Raises:
        UserError: for a phase that the recipe does not have, or without a token store.
    """
    recipe, topology, device = load_recipe(recipe_name, overrides), detect_topology(), torch.device("cpu")
    recipe.phase(phase)
    with process_group(topology, device):
        result: Choices = {
            "model": recipe.name,
            "phase": phase,
            "ranks": topology.world_size,
            "threads": torch.get_num_threads(),
            "repeats": repeats,
        }
        if "rows" in parts:
            result["rows"] = measure_rows(recipe, phase, repeats)
        if "dropout" in parts:
            result["dropout"] = measure_dropout(recipe, phase, repeats)
        if "update" in parts:
            result["update"] = measure_updates(recipe, phase, repeats)
        result["environment"] = environment()
        return result


def measure_rows(recipe: Recipe, phase_name: str, repeats: int) -> Rows:
    """Time whole steps, and the attention of a micro-batch through all layers including its mask or table.

    Attention by objective and window: the recipe's, and `LONG`.
    """
    given = recipe.phase(phase_name)
    rows: list[AttentionRow] = []
    for window in sorted({given.sequence_length, LONG}):
        phase = given.model_copy(update={"sequence_length": window})
        data = stored_phase(recipe, phase_name, phase)
        for micro in StepPlan(phase, phase_name, recipe.seed, 0, 1, None).at(0):
            rows.append(
                {
                    "objective": micro.objective.name,
                    "window": window,
                    **compare_rows(data.batch(micro.objective, micro.first, micro.count), recipe, repeats),
                }
            )
    windows = changed(short_rows, "MOVING_COST", math.inf, taking(recipe, phase_name, repeats))
    steps = interleaved_timings({"chosen": taking(recipe, phase_name, repeats), "windows": windows}, repeats)
    return {"attention": rows, "step_windows_to_chosen": ratio(steps, "windows", "chosen")}


def compare_rows(batch: PackedBatch, recipe: Recipe, repeats: int) -> RowTimes:
    """Attention over a micro-batch as the package chooses, in whole windows, and always on short rows."""
    ids, model = batch.document_ids, recipe.model
    fused = torch.randn(ids.numel(), model.heads, 3, model.hidden // model.heads, requires_grad=True)

    def run(way: str) -> None:
        pattern = attention_pattern(ids, batch.cu_seqlens, batch.window, None, fused.dtype)
        if way == "windows":
            pattern.__dict__["rows"] = None
        elif way == "rows":
            pattern.__dict__["rows"] = row_table(ids, batch.cu_seqlens, batch.window, None, fused.dtype, always=True)
        for _ in range(model.layers):
            queries, keys, values = fused.unbind(2)
            packed_attention(queries, keys, values, pattern).sum().backward()
        fused.grad = None

    seconds = interleaved_timings({way: partial(run, way) for way in ("chosen", "windows", "rows")}, repeats)
    lengths = batch.cu_seqlens.diff()
    chosen, moved = (
        row_table(ids, batch.cu_seqlens, batch.window, None, fused.dtype, always=always) for always in (False, True)
    )
    assert moved is not None
    return {
        "tokens": ids.numel(),
        "documents": lengths.numel(),
        "median_length": float(lengths.double().median()),
        "moved": chosen is not None,
        "slots_per_token": moved.source.numel() / ids.numel(),
        "windows_to_chosen": ratio(seconds, "windows", "chosen"),
        "windows_to_rows": ratio(seconds, "windows", "rows"),
        "chosen_milliseconds": 1e3 * statistics.median(seconds["chosen"]),
    }


def measure_dropout(recipe: Recipe, phase_name: str, repeats: int) -> Dropout:
    """Whole steps without dropout, with masks hashed part by part, and at once; and one mask by itself."""
    rows, channels = 8192, recipe.model.hidden
    mask, states = DropoutMask(torch.arange(rows), 2**40 + 77, RATE), torch.randn(rows, channels)

    def hashed() -> None:
        mask.stays(channels)

    masks = interleaved_timings(
        {
            "parts": hashed,
            "at once": changed(dropout, "PART_WORDS", 2**62, hashed),
            "apply": lambda: mask.apply(states),
            "torch": lambda: F.dropout(states, RATE),
        },
        3 * repeats,
    )
    dropping = recipe.model_copy(update={"model": recipe.model.model_copy(update={"dropout": RATE})})
    steps = interleaved_timings(
        {
            "none": taking(recipe, phase_name, repeats),
            "parts": taking(dropping, phase_name, repeats),
            "at once": changed(dropout, "PART_WORDS", 2**62, taking(dropping, phase_name, repeats)),
        },
        repeats,
    )
    share = [1 - plain / dropped for plain, dropped in zip(steps["none"], steps["parts"], strict=True)]
    return {
        "rate": RATE,
        "mask_shape": [rows, channels],
        "mask_milliseconds": 1e3 * statistics.median(masks["parts"]),
        "mask_at_once_to_parts": ratio(masks, "at once", "parts"),
        "dropout_to_torch_dropout": ratio(masks, "apply", "torch"),
        "step_with_dropout_to_without": ratio(steps, "parts", "none"),
        "step_at_once_to_parts": ratio(steps, "at once", "parts"),
        "share_of_step": spread(share),
    }


def taking(recipe: Recipe, phase_name: str, repeats: int) -> Callable[[], None]:
    """A function with its own engine; each call takes the next step of the phase."""
    loop = phase_steps(recipe, phase_name, torch.device("cpu"), WARM_UP + repeats)
    learning_rate, numbers = recipe.phase(phase_name).learning_rate.peak, iter(range(WARM_UP + repeats))
    return lambda: loop.steps.run(next(numbers), learning_rate)


def changed(module: ModuleType, name: str, value: float, call: Callable[[], object]) -> Callable[[], None]:
    """`call` with another value of a module constant."""

    def run() -> None:
        before = getattr(module, name)
        setattr(module, name, value)
        try:
            call()
        finally:
            setattr(module, name, before)

    return run


def table(result: Choices) -> str:
    """The ratios as sentences."""
    lines = []
    for row in result["rows"]["attention"] if "rows" in result else ():
        lines.append(
            f"{row['objective']}, windows of {row['window']}, documents of {row['median_length']:.0f} tokens: "
            f"attention in windows takes {_times(row['windows_to_rows'])} the time of short rows, which are "
            f"{'taken' if row['moved'] else 'not taken'}"
        )
    if "rows" in result:
        lines.append(f"a step in windows takes {_times(result['rows']['step_windows_to_chosen'])} the time")
    if "dropout" in result:
        measured = result["dropout"]
        lines.append(
            f"dropout {measured['rate']}: {_times(measured['share_of_step'])} of a step; hashed at once a mask takes "
            f"{_times(measured['mask_at_once_to_parts'])}, a step {_times(measured['step_at_once_to_parts'])} the time"
        )
    for name, kind in result["update"]["kinds"].items() if "update" in result else ():
        lines.append(
            f"AdamW, {name}: {kind['milliseconds']:.2f} ms, {_times(kind['to_torch_fused'])} the time of torch's "
            f"fused one, {kind['share_of_step']:.1%} of a step"
        )
    return "\n".join(lines)


def _times(ratios: Spread) -> str:
    return f"{ratios['median']:.3g} ({ratios['least']:.3g} to {ratios['greatest']:.3g})"
