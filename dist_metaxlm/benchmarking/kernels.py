"""Every operator in the dtype of training against fp64, and timed against its reference and its peers in the same run.

An operator is wrong where an error (norm of the difference to fp64 over the norm, of any result or gradient) is more than
twice the PyTorch reference's in the same dtype and more than the dtype's rounding unit; it is slow where it takes longer
than the reference. Timings of all implementations alternate, so that clocks and neighbours hit them alike.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from typing import Any

import torch

from dist_metaxlm.benchmarking.kernel_cases import Call, KernelCase, kernel_cases
from dist_metaxlm.errors import UserError
from dist_metaxlm.kernels import registry
from dist_metaxlm.training.environment import environment

UNIT = {torch.bfloat16: 2.0**-8, torch.float32: 1e-5}


def device_or_refusal(name: str) -> torch.device:
    """The device "cuda" or "cpu".

    Raises:
        UserError: there is no CUDA device.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device here, so kernels cannot be measured; run this on a machine with a GPU, or give "
                        "--device cpu to try the command itself on the PyTorch references")
    return torch.device(name)


def measure_kernels(device_name: str, repeats: int, only: str = "", seconds: float | None = None) -> dict[str, Any]:
    """Figures of all operators on `device_name` ("cuda"; "cpu" tries the command itself on small shapes).

    After `seconds` the operators that are left are compared with fp64 and with their reference alone, not with peers.

    Returns:
        JSON-ready: per case errors, milliseconds, rates and `verdict` ("ok", "wrong", "slower"); `wrong` and `slower` name
        the cases that fail, `without_peers` those that came too late.

    Raises:
        UserError: there is no such device.
    """
    device, begun = device_or_refusal(device_name), time.perf_counter()
    small, dtype = device.type == "cpu", torch.float32 if device.type == "cpu" else torch.bfloat16
    cases = [case for case in kernel_cases(small, device) if only in case.name]
    rows, late = [], []
    for case in cases:
        if seconds is not None and time.perf_counter() - begun > seconds and case.peers:
            case = replace(case, peers={})
            late.append(case.name)
        rows.append(_measure(case, device, dtype, repeats))
    return {"device": device_name, "dtype": str(dtype).removeprefix("torch."), "repeats": repeats, "cases": rows,
            "without_peers": late,
            "wrong": [row["name"] for row in rows if row["verdict"] == "wrong"],
            "slower": [row["name"] for row in rows if row["verdict"] == "slower"], "environment": environment()}


def _measure(case: KernelCase, device: torch.device, dtype: torch.dtype, repeats: int) -> dict[str, Any]:
    exact = inputs_of(case, device, dtype)
    inputs = [tensor.detach().to(dtype).requires_grad_() for tensor in exact]
    with registry.forcing("reference"):
        truth = _outcome(case.call, exact)
        plain = _outcome(case.call, inputs)
    with registry.forcing("auto"):
        ours = _outcome(case.call, inputs)
        backend = registry.choices()[case.operator]
    errors, plain_errors = _errors(ours, truth), _errors(plain, truth)
    wrong = any(not error <= max(2 * other, UNIT[dtype]) for error, other in zip(errors, plain_errors, strict=True))
    del exact, truth, plain, ours
    seconds, failures = _timings(case, inputs, device, repeats, with_reference=backend != "reference")
    slower = "reference" in seconds and sum(seconds["ours"]) > sum(seconds["reference"])
    return {"name": case.name, "backend": backend, "shapes": [list(shape) for shape in case.shapes],
            "errors": errors, "reference_errors": plain_errors,
            "milliseconds": {name: {"forward": 1e3 * first, "backward": 1e3 * second}
                             for name, (first, second) in seconds.items()},
            **_rates(case, seconds["ours"], dtype), "peak_extra_bytes": _extra_memory(case, inputs, device),
            "peers_that_failed": failures, "verdict": "wrong" if wrong else "slower" if slower else "ok"}


def inputs_of(case: KernelCase, device: torch.device, dtype: torch.dtype) -> list[torch.Tensor]:
    """fp64 values that `dtype` holds exactly; matrices of weights are scaled as in a trained model."""
    generator = torch.Generator().manual_seed(7)
    scales = [1.0 if index == 0 or len(shape) != 2 or case.operator != "linear_cross_entropy" else shape[1] ** -0.5
              for index, shape in enumerate(case.shapes)]
    values = [torch.randn(shape, generator=generator) * scale for shape, scale in zip(case.shapes, scales, strict=True)]
    return [value.to(device, dtype).double().requires_grad_() for value in values]


def _outcome(call: Call, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Results and gradients; the upstream gradient is the same function of place for every dtype."""
    results = call(*inputs)
    results = results if isinstance(results, tuple) else (results,)
    upstream = [torch.linspace(-0.6, 1, result.numel(), device=result.device).view(result.shape).to(result.dtype)
                if result.dim() else torch.ones_like(result) for result in results]
    return [*(result.detach() for result in results), *torch.autograd.grad(results, inputs, upstream)]


def _errors(found: list[torch.Tensor], truth: list[torch.Tensor]) -> list[float]:
    return [float((one.double() - other).norm() / other.norm()) for one, other in zip(found, truth, strict=True)]


def _timings(case: KernelCase, inputs: list[torch.Tensor], device: torch.device, repeats: int, with_reference: bool
             ) -> tuple[dict[str, tuple[float, float]], dict[str, str]]:
    """Median seconds of forward and backward of each implementation, and why a peer could not run."""
    calls: dict[str, tuple[str, Call]] = {"ours": ("auto", case.call)}
    if with_reference:
        calls["reference"] = ("reference", case.call)
    calls |= {name: ("auto", call) for name, call in case.peers.items()}
    failures: dict[str, str] = {}
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in calls}
    for turn in range(-3, repeats):
        for name, (backend, call) in list(calls.items()):
            try:
                with registry.forcing(backend):
                    pair = timed(call, inputs, device)
            except Exception as error:  # a peer that lacks a compiler or runs out of memory must not end the measurement
                if name in ("ours", "reference"):
                    raise
                failures[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                del calls[name], times[name]
                continue
            if turn >= 0:
                for kept, value in zip(times[name], pair, strict=True):
                    kept.append(value)
    return {name: (statistics.median(first), statistics.median(second)) for name, (first, second) in times.items()}, failures


def timed(call: Call, inputs: list[torch.Tensor], device: torch.device) -> tuple[float, float]:
    """Seconds of one forward and one backward."""
    marks = [_mark(device)]
    results = call(*inputs)
    results = results if isinstance(results, tuple) else (results,)
    marks.append(_mark(device))
    torch.autograd.grad(results, inputs, [torch.ones_like(result) for result in results])
    marks.append(_mark(device))
    if device.type != "cuda":
        return marks[1] - marks[0], marks[2] - marks[1]
    torch.cuda.synchronize(device)
    return marks[0].elapsed_time(marks[1]) / 1e3, marks[1].elapsed_time(marks[2]) / 1e3


def _mark(device: torch.device) -> Any:
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _rates(case: KernelCase, seconds: tuple[float, float], dtype: torch.dtype) -> dict[str, float]:
    if case.operations:
        rates = {"tflops": case.operations / sum(seconds) / 1e12}
        if case.forward_operations:
            rates["forward_tflops"] = case.forward_operations / seconds[0] / 1e12
            rates["backward_tflops"] = (case.operations - case.forward_operations) / seconds[1] / 1e12
        return rates
    return {f"{name}_terabytes_per_second": elements * dtype.itemsize / second / 1e12
            for name, elements, second in zip(("forward", "backward"), case.bytes_moved, seconds, strict=True)}


def _extra_memory(case: KernelCase, inputs: list[torch.Tensor], device: torch.device) -> int | None:
    """Bytes that forward and backward need above inputs and gradients; None on CPU, which does not count them."""
    if device.type != "cuda":
        return None
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    timed(case.call, inputs, device)
    gradients = sum(tensor.numel() * tensor.element_size() for tensor in inputs)
    return torch.cuda.max_memory_allocated(device) - before - gradients
