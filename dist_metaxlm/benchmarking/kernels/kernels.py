"""Accuracy of every operator in the training dtype against fp64, and its time against the reference and peers.

An operator is wrong if an error (norm of the difference to fp64 over the norm, of any result or gradient) is more than
twice the PyTorch reference's in the same dtype and more than the dtype's rounding unit; it is slow if it takes longer than
the reference. Timings of all implementations alternate, so that clock changes and other load affect them equally. One
that raises is unfinished; the others are still measured, unless it has broken the device for this process.
"""

from __future__ import annotations

import statistics
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from dist_metaxlm.benchmarking.kernels.cases import KernelCase, kernel_cases
from dist_metaxlm.benchmarking.kernels.peers import Call, why_not
from dist_metaxlm.benchmarking.kernels.results import CaseResult, KernelResult, Libraries
from dist_metaxlm.errors import UserError
from dist_metaxlm.kernels import registry
from dist_metaxlm.training.run.environment import environment

UNIT = {torch.bfloat16: 2.0**-8, torch.float32: 1e-5}
HEAD_START = 4_000_000
"""Clock cycles (about 2 ms) that a GPU waits before the timed work: longer than Python needs to launch it."""


def device_or_refusal(name: str) -> torch.device:
    """The device "cuda" or "cpu".

    Raises:
        UserError: no CUDA device is available.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "no CUDA device here, so kernels cannot be measured; run this on a machine with a GPU, or give "
            "--device cpu to test the command itself on the PyTorch references"
        )
    return torch.device(name)


def measure_kernels(
    device_name: str,
    repeats: int,
    only: Sequence[str] = ("",),
    seconds: float | None = None,
    keep: Callable[[Mapping[str, object]], None] = lambda so_far: None,
) -> KernelResult:
    """Measure all operators on `device_name` ("cuda"; "cpu" tests the command itself on small shapes).

    Only cases whose name contains one of `only`. After `seconds` the remaining cases are compared only with fp64 and the
    reference, not with peers. `keep` receives the result so far after every case.

    Returns:
        JSON-ready: per case errors, milliseconds, rates and `verdict` ("ok", "wrong", "slower", "failed"); `wrong`,
        `slower` and `unfinished` name the cases that fail.

    Raises:
        UserError: the device or the case does not exist.
    """
    device, begun = device_or_refusal(device_name), time.perf_counter()
    small, dtype = device.type == "cpu", torch.float32 if device.type == "cpu" else torch.bfloat16
    deadline = None if seconds is None else begun + seconds
    cases = [case for case in kernel_cases(small, device) if any(part in case.name for part in only)]
    if not cases:
        raise UserError(f"--only {' '.join(only)}: no operator's case has such a name")
    rows: list[CaseResult] = []
    result: KernelResult = {
        "device": device_name,
        "dtype": str(dtype).removeprefix("torch."),
        "repeats": repeats,
        "cases": rows,
        "wrong": [],
        "slower": [],
        "unfinished": [],
        "libraries": libraries(device),
        "environment": environment(),
    }
    for case in cases:
        try:
            row = _measure(case, device, dtype, repeats, deadline)
        except Exception as error:  # a kernel that does not compile or run must not hide the results of the others
            row = {
                "name": case.name,
                "verdict": "failed",
                "problem": why_not(error),
                "traceback": traceback.format_exc()[-4000:],
            }
            result["unfinished"].append(f"{case.name}: {row['problem']}")
        rows.append(row)
        result["unfinished"] += _without_kernel(case, row, device)
        if row["verdict"] == "wrong" or row["verdict"] == "slower":
            result[row["verdict"]].append(case.name)
        if row["verdict"] == "failed" and (problem := _broken(device)):
            result["unfinished"] += [
                f"{other.name}: not run, the device fails with {problem}" for other in cases[len(rows) :]
            ]
            break
        keep(result)
    return result


def libraries(device: torch.device) -> Libraries:
    """Device name and library versions that `environment` does not include."""
    if device.type != "cuda":
        return {}
    return {
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "capability": torch.cuda.get_device_capability(device),
        "memory": torch.cuda.get_device_properties(device).total_memory,
    }


def _without_kernel(case: KernelCase, row: CaseResult, device: torch.device) -> list[str]:
    """A sentence if a GPU ran only the reference: then no kernel was measured."""
    if device.type != "cuda" or row.get("backend") != "reference":
        return []
    return [f"{case.name}: no kernel ran, {registry.why_reference(case.operator)}"]


def _broken(device: torch.device) -> str | None:
    """The error of the device if an earlier kernel has made it unusable for this process, else None."""
    if device.type != "cuda":
        return None
    try:
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
    except RuntimeError as error:
        return why_not(error)
    return None


def _measure(
    case: KernelCase, device: torch.device, dtype: torch.dtype, repeats: int, deadline: float | None = None
) -> CaseResult:
    exact = inputs_of(case, device, dtype)
    inputs = [tensor.detach().to(dtype).requires_grad_() for tensor in exact]
    with registry.forcing("reference"):
        truth = _outcome(case.call, exact, dtype)
        plain = _outcome(case.call, inputs, dtype)
    with registry.forcing("auto"):
        ours = _outcome(case.call, inputs, dtype)
        backend = registry.choices()[case.operator]
    errors, plain_errors = _errors(ours, truth), _errors(plain, truth)
    wrong = any(not error <= max(2 * other, UNIT[dtype]) for error, other in zip(errors, plain_errors, strict=True))
    del exact, truth, plain, ours
    seconds, failures = _timings(case, inputs, device, repeats, backend != "reference", deadline)
    slower = "reference" in seconds and sum(seconds["ours"]) > sum(seconds["reference"])
    return {
        "name": case.name,
        "backend": backend,
        "shapes": [list(shape) for shape in case.shapes],
        "errors": errors,
        "reference_errors": plain_errors,
        "milliseconds": {
            name: {"forward": 1e3 * first, "backward": 1e3 * second} for name, (first, second) in seconds.items()
        },
        **_rates(case, seconds["ours"], dtype),
        "peak_extra_bytes": _extra_memory(case, inputs, device),
        "peers_that_failed": failures,
        "verdict": "wrong" if wrong else "slower" if slower else "ok",
    }


def inputs_of(case: KernelCase, device: torch.device, dtype: torch.dtype) -> list[torch.Tensor]:
    """fp64 values that are exact in `dtype`; weight matrices are scaled as in a trained model."""
    generator = torch.Generator(device).manual_seed(7)
    scales = [
        1.0 if index == 0 or len(shape) != 2 or case.operator != "linear_cross_entropy" else shape[1] ** -0.5
        for index, shape in enumerate(case.shapes)
    ]
    values = [
        torch.randn(shape, generator=generator, device=device) * scale
        for shape, scale in zip(case.shapes, scales, strict=True)
    ]
    return [value.to(dtype).double().requires_grad_() for value in values]


def _outcome(call: Call, inputs: list[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
    """Results and gradients; the upstream gradient is exact in `dtype`, whatever the inputs are."""
    results = call(*inputs)
    results = results if isinstance(results, tuple) else (results,)
    upstream = [
        torch.linspace(-0.6, 1, result.numel(), device=result.device).view(result.shape).to(dtype).to(result.dtype)
        if result.dim()
        else torch.ones_like(result)
        for result in results
    ]
    return [*(result.detach() for result in results), *torch.autograd.grad(results, inputs, upstream)]


def _errors(values: list[torch.Tensor], truth: list[torch.Tensor]) -> list[float]:
    return [float((value.double() - exact).norm() / exact.norm()) for value, exact in zip(values, truth, strict=True)]


def _timings(
    case: KernelCase,
    inputs: list[torch.Tensor],
    device: torch.device,
    repeats: int,
    with_reference: bool,
    deadline: float | None,
) -> tuple[dict[str, tuple[float, float]], dict[str, str]]:
    """Median seconds of forward and backward of each implementation, and why a peer could not run.

    After `deadline` no further peer is started: its first call may compile for a minute.
    """
    calls: dict[str, tuple[str, Call]] = {"ours": ("auto", case.call)}
    if with_reference:
        calls["reference"] = ("reference", case.call)
    calls |= {name: ("auto", call) for name, call in case.peers.items()}
    failures: dict[str, str] = {}
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in calls}
    for turn in range(-3, repeats):
        for name, (backend, call) in list(calls.items()):
            if turn == -3 and name in case.peers and deadline is not None and time.perf_counter() > deadline:
                failures[name] = "no time was left"
                del calls[name], times[name]
                continue
            try:
                with registry.forcing(backend):
                    pair = timed(call, inputs, device)
            except Exception as error:  # a peer without a compiler or memory must not end the measurement
                if name in ("ours", "reference"):
                    raise
                failures[name] = why_not(error)
                del calls[name], times[name]
                continue
            if turn >= 0:
                for kept, value in zip(times[name], pair, strict=True):
                    kept.append(value)
    return {name: (statistics.median(first), statistics.median(second)) for name, (first, second) in times.items()}, failures


def timed(call: Call, inputs: list[torch.Tensor], device: torch.device) -> tuple[float, float]:
    """Seconds of one forward and one backward; the upstream gradient is created between them, untimed.

    A GPU is kept busy first, so that the time excludes Python's launch overhead.
    """
    if device.type == "cuda":
        torch.cuda._sleep(HEAD_START)
    marks = [_mark(device)]
    results = call(*inputs)
    results = results if isinstance(results, tuple) else (results,)
    marks.append(_mark(device))
    upstream = [torch.ones_like(result) for result in results]
    marks.append(_mark(device))
    torch.autograd.grad(results, inputs, upstream)
    marks.append(_mark(device))
    if device.type != "cuda":
        return marks[1] - marks[0], marks[3] - marks[2]
    torch.cuda.synchronize(device)
    return marks[0].elapsed_time(marks[1]) / 1e3, marks[2].elapsed_time(marks[3]) / 1e3


def _mark(device: torch.device) -> Any:
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _rates(case: KernelCase, seconds: tuple[float, float], dtype: torch.dtype) -> CaseResult:
    if case.operations:
        rates: CaseResult = {"tflops": case.operations / sum(seconds) / 1e12}
        if case.forward_operations:
            rates["forward_tflops"] = case.forward_operations / seconds[0] / 1e12
            rates["backward_tflops"] = (case.operations - case.forward_operations) / seconds[1] / 1e12
        return rates
    forward, backward = (
        elements * dtype.itemsize / second / 1e12 for elements, second in zip(case.bytes_moved, seconds, strict=True)
    )
    return {"forward_terabytes_per_second": forward, "backward_terabytes_per_second": backward}


def _extra_memory(case: KernelCase, inputs: list[torch.Tensor], device: torch.device) -> int | None:
    """Bytes that forward and backward need above inputs and gradients; None on CPU, where they are not counted."""
    if device.type != "cuda":
        return None
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    timed(case.call, inputs, device)
    gradients = sum(tensor.numel() * tensor.element_size() for tensor in inputs)
    return torch.cuda.max_memory_allocated(device) - before - gradients


def line(row: CaseResult) -> str:
    """One line of text for a case."""
    if row["verdict"] == "failed":
        return f"{row['name']}: failed, {row['problem']}"
    times = ", ".join(
        f"{name} {time['forward']:.3f} + {time['backward']:.3f} ms" for name, time in row["milliseconds"].items()
    )
    return f"{row['name']} ({row['backend']}): {times}, largest error {max(row['errors']):.1e}: {row['verdict']}"
