"""Times every configuration in the kernels' lists on the device, with the one in use for comparison.

There is no tuning at run time (docs/kernels.md): to apply a result, move the configuration to the front of its list by
hand. On a CPU the command runs in Triton's interpreter on small shapes; its times are then meaningless.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from typing import Any, TypedDict, TypeVar

import torch

from dist_metaxlm.benchmarking.kernels.cases import KernelCase, kernel_cases
from dist_metaxlm.benchmarking.kernels.kernels import device_or_refusal, inputs_of, libraries, timed
from dist_metaxlm.benchmarking.kernels.peers import why_not
from dist_metaxlm.benchmarking.kernels.results import Libraries
from dist_metaxlm.errors import UserError
from dist_metaxlm.kernels import registry
from dist_metaxlm.reporting.records import Environment
from dist_metaxlm.training.run.environment import environment

FORWARD, BACKWARD = 0, 1
LISTS: dict[str, tuple[str, str, int]] = {
    "exponentials": ("head.linear_cross_entropy_triton", "masked-row head", FORWARD),
    "column_sums": ("head.linear_cross_entropy_triton", "masked-row head", FORWARD),
    "norm_forward": ("pointwise.norm_kernels", "dropout + residual + LayerNorm", FORWARD),
    "norm_backward": ("pointwise.norm_kernels", "dropout + residual + LayerNorm", BACKWARD),
    "drop_rows": ("pointwise.norm_kernels", "dropout + residual", BACKWARD),
    "bias_gelu_forward": ("pointwise.activations_triton", "bias + GELU", FORWARD),
    "bias_gelu_backward": ("pointwise.activations_triton", "bias + GELU", BACKWARD),
    "geglu_forward": ("pointwise.activations_triton", "GeGLU", FORWARD),
    "geglu_backward": ("pointwise.activations_triton", "GeGLU", BACKWARD),
    "turn_heads": ("pointwise.rotary_triton", "rotation of queries", FORWARD),
}
"""Kernel with a list of configurations -> module of the list, case that runs it, pass in which it runs."""
ATTENTION = {"forward": FORWARD, "backward_keys": BACKWARD, "backward_queries": BACKWARD}
ATTENTION_CASES = (
    "attention, one document a window",
    "attention, documents of median length 60",
    "attention with dropout, one document a window",
)
LAUNCHES = [(step, warps, stages) for step in (32, 64, 128) for warps in (4, 8) for stages in (2, 3)]
"""Keys of a block, warps and stages tried for the attention kernels, whose launch is a function, not a list."""


Value = TypeVar("Value")


class Tried(TypedDict):
    """A configuration that was timed."""

    settings: dict[str, int]
    in_use: bool
    problem: str | None
    milliseconds: float | None
    """None: it has a problem."""


KernelTimes = TypedDict(
    "KernelTimes",
    {
        "kernel": str,
        "case": str,
        "pass": str,
        "configurations": list[Tried],
        "best": dict[str, int] | None,
        "gain": float | None,
    },
)
"""A kernel with its configurations; `gain`: share of the time in use that the best saves."""


class ConfigurationTimes(TypedDict):
    """The result of `measure_configurations`."""

    device: str
    dtype: str
    repeats: int
    interpreted: bool
    kernels: list[KernelTimes]
    libraries: Libraries
    environment: Environment


@dataclass(frozen=True)
class Candidate:
    """One configuration of one kernel."""

    settings: dict[str, int]
    in_use: bool
    using: Callable[[], AbstractContextManager[None]]
    """Makes it the one that runs."""


def measure_configurations(
    device_name: str,
    repeats: int,
    only: Sequence[str] = ("",),
    seconds: float | None = None,
    keep: Callable[[Mapping[str, object]], None] = lambda so_far: None,
) -> ConfigurationTimes:
    """Milliseconds of the pass that contains a kernel, for each configuration of each kernel whose name contains one of
    `only`. After `seconds` only configurations in use are started. `keep` receives the result so far.

    Returns:
        JSON-ready: `kernels`, each with its case and `configurations`: settings, milliseconds (None with the reason
        if it does not compile or run), `in_use`; `best` is the settings of the fastest, `gain` its relative saving of time.

    Raises:
        UserError: the device, Triton or a kernel of that name is missing.
    """
    device = device_or_refusal(device_name)
    if importlib.util.find_spec("triton") is None:
        raise UserError("the package triton is not installed, and the configurations belong to Triton kernels; install it")
    if device.type == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are imported, later
    deadline = None if seconds is None else time.perf_counter() + seconds
    small, dtype = device.type == "cpu", torch.float32 if device.type == "cpu" else torch.bfloat16
    cases = {case.name: case for case in kernel_cases(small, device)}
    wanted = [(kernel, case, when) for kernel, (_, case, when) in LISTS.items()]
    wanted += [(f"attention {kernel}", case, when) for case in ATTENTION_CASES for kernel, when in ATTENTION.items()]
    wanted = [entry for entry in wanted if any(part in entry[0] for part in only)]
    if not wanted:
        raise UserError(
            f"--only {' '.join(only)}: no kernel with configurations has such a name; use {', '.join(LISTS)} or attention"
        )
    rows: list[KernelTimes] = []
    result: ConfigurationTimes = {
        "device": device_name,
        "dtype": str(dtype).removeprefix("torch."),
        "repeats": repeats,
        "interpreted": registry.interpreted(),
        "kernels": rows,
        "libraries": libraries(device),
        "environment": environment(),
    }
    for kernel, case, when in wanted:
        rows.append(_measure(kernel, cases[case], when, dtype, device, repeats, deadline))
        keep(result)
    return result


def _measure(
    kernel: str, case: KernelCase, when: int, dtype: torch.dtype, device: torch.device, repeats: int, deadline: float | None
) -> KernelTimes:
    inputs = [tensor.detach().to(dtype).requires_grad_() for tensor in inputs_of(case, device, dtype)]
    candidates = _attention_candidates(kernel.split()[1], case, dtype) if " " in kernel else _listed(kernel)
    times: list[list[float]] = [[] for _ in candidates]
    problems: dict[int, str] = {}
    for turn in range(-1, repeats):
        for number, candidate in enumerate(candidates):
            if turn == -1 and not candidate.in_use and deadline is not None and time.perf_counter() > deadline:
                problems[number] = "no time was left"
            if number in problems:
                continue
            try:
                with registry.forcing("triton"), candidate.using():
                    seconds = timed(case.call, inputs, device)[when]
            except Exception as error:  # a configuration that exceeds the device is not a candidate
                problems[number] = why_not(error)
                continue
            if turn >= 0:
                times[number].append(1e3 * seconds)
    figures: list[Tried] = [
        {
            "settings": candidate.settings,
            "in_use": candidate.in_use,
            "problem": problems.get(number),
            "milliseconds": None if number in problems else statistics.median(times[number]),
        }
        for number, candidate in enumerate(candidates)
    ]
    ran = [(row["milliseconds"], row) for row in figures if row["milliseconds"] is not None]
    least, best = min(ran, key=lambda entry: entry[0], default=(None, None))
    used = next((milliseconds for milliseconds, row in ran if row["in_use"]), None)
    return {
        "kernel": kernel,
        "case": case.name,
        "pass": "backward" if when else "forward",
        "configurations": figures,
        "best": best and best["settings"],
        "gain": None if least is None or used is None else 1 - least / used,
    }


def _listed(kernel: str) -> list[Candidate]:
    module = importlib.import_module(f"dist_metaxlm.kernels.{LISTS[kernel][0]}")

    def using(settings: dict[str, int]) -> Callable[[], AbstractContextManager[None]]:
        return lambda: _replaced(module.CONFIGURATIONS, kernel, [settings])

    return [
        Candidate(settings, number == 0, using(settings))
        for number, settings in enumerate(list(module.CONFIGURATIONS[kernel]))
    ]


def _attention_candidates(kernel: str, case: KernelCase, dtype: torch.dtype) -> list[Candidate]:
    from dist_metaxlm.kernels.attention import operator

    plain = operator.launch
    major, minor = (9, 0) if registry.interpreted() else torch.cuda.get_device_capability()
    used = plain(kernel, case.shapes[0][2], dtype, 10 * major + minor, "dropout" in case.name)
    plans = [used, *(plan for plan in (operator.Launch(*numbers) for numbers in LAUNCHES) if plan != used)]

    def using(plan: operator.Launch) -> Callable[[], AbstractContextManager[None]]:
        def launch(name: str, *arguments: Any) -> operator.Launch:
            return plan if name == kernel else plain(name, *arguments)

        return lambda: _replaced(vars(operator), "launch", launch)

    return [Candidate(asdict(plan), plan == used, using(plan)) for plan in plans]


@contextmanager
def _replaced(table: MutableMapping[str, Value], name: str, value: Value) -> Iterator[None]:
    before, table[name] = table[name], value
    try:
        yield
    finally:
        table[name] = before


def table(result: ConfigurationTimes) -> str:
    """One line per kernel and configuration, the fastest marked."""
    lines = ["interpreted on a CPU: these times are meaningless"] if result["interpreted"] else []
    for row in result["kernels"]:
        lines.append(f"{row['kernel']} ({row['case']}, {row['pass']})")
        for tried in row["configurations"]:
            settings = " ".join(f"{key}={value}" for key, value in tried["settings"].items())
            time = tried["problem"] if tried["milliseconds"] is None else f"{tried['milliseconds']:.4f} ms"
            marks = ["in use"] * tried["in_use"] + ["best"] * (tried["settings"] == row["best"])
            lines.append(f"  {settings}: {time}{' (' + ', '.join(marks) + ')' if marks else ''}")
    return "\n".join(lines)
