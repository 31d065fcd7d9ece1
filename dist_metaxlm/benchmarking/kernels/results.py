"""The results of measuring kernels, as they are written to JSON."""

from __future__ import annotations

from typing import Literal, TypedDict

from dist_metaxlm.reporting.records import Environment


class PassTimes(TypedDict):
    """Milliseconds."""

    forward: float
    backward: float


class CaseResult(TypedDict, total=False):
    """A case of an operator: name and verdict, and what was measured before it failed."""

    name: str
    verdict: Literal["ok", "wrong", "slower", "failed"]
    problem: str
    """Of a failed case, as `traceback`."""
    traceback: str
    backend: str
    shapes: list[list[int]]
    errors: list[float]
    reference_errors: list[float]
    milliseconds: dict[str, PassTimes]
    """By implementation."""
    tflops: float
    """TFLOP/s of an operator that is a matrix product; others have terabytes per second."""
    forward_tflops: float
    backward_tflops: float
    forward_terabytes_per_second: float
    backward_terabytes_per_second: float
    peak_extra_bytes: int | None
    peers_that_failed: dict[str, str]


class Libraries(TypedDict, total=False):
    """Of a CUDA device; empty on a CPU."""

    cuda: str | None
    cudnn: int | None
    capability: tuple[int, int]
    memory: int
    """Bytes."""


class KernelResult(TypedDict):
    """The result of `measure_kernels`."""

    device: str
    dtype: str
    repeats: int
    cases: list[CaseResult]
    wrong: list[str]
    slower: list[str]
    unfinished: list[str]
    libraries: Libraries
    environment: Environment
