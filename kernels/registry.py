"""Registry of operators: selects the implementation of each call by device, dtype and shape.

Models call the public function of an operator (`kernels.norm.add_norm`, `kernels.attention...`); that function gets the
implementation from `choose` and calls it. Every operator has a `reference` in PyTorch with the same
signature, which is also the CPU path. Faster backends come first: cuda, triton, reference.

    register("add_norm", "reference", "dist_metaxlm.kernels.pointwise.norm:reference_add_norm")
    register("add_norm", "triton", "dist_metaxlm.kernels.pointwise.norm_triton:add_norm", accepts=lambda states, *_: ...)
    choose("add_norm", states, weight)(states, weight, ...)

`DIST_METAXLM_KERNELS=reference|triton|cuda` or the recipe's `training.kernels` (the variable wins) forces a backend: an
operator with an implementation in it uses it or raises an error; an operator without one chooses as usual.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from dist_metaxlm.errors import UserError

BACKENDS = ("cuda", "triton", "reference")
"""Fastest first."""
VARIABLE = "DIST_METAXLM_KERNELS"
LOG = logging.getLogger("dist_metaxlm.kernels")
LOG.setLevel(logging.WARNING)  # choices are logged from `tell` on; the level of the package would show them on a CPU


class Operator(Protocol):
    """A backend's function. All backends of an operator have its signature, which the caller knows."""

    def __call__(self, *arguments: Any) -> Any:
        """The results of the operator."""


Accepts = Callable[..., bool]
Available = Callable[[], str | None]


@dataclass(frozen=True)
class Implementation:
    """One way to run an operator."""

    operator: str
    backend: str
    path: str
    """"module:function"; imported at the first call, so a machine without Triton never imports it."""
    available: Available
    """Why this cannot run on this machine, or None if it can; called once."""
    accepts: Accepts
    """Whether it supports these arguments, those of `choose`."""

    def load(self) -> Operator:
        """The function itself."""
        return _load(self.path)


_REGISTRY: dict[str, dict[str, Implementation]] = {}
_LOGGED: dict[str, str] = {}
_LOADED: dict[str, Operator] = {}
_REASONS: dict[tuple[str, str], str | None] = {}
_recipe_force: str | None = None


def register(
    operator: str, backend: str, path: str, available: Available | None = None, accepts: Accepts | None = None
) -> None:
    """Make the function at `path` ("module:function") a backend of `operator`.

    `available` and `accepts` default to the minimum for the backend: see `missing_triton`, `on_device`.
    """
    assert backend in BACKENDS, backend
    usual = {"triton": missing_triton, "cuda": missing_cuda, "reference": lambda: None}
    fitting: dict[str, Accepts] = {"triton": on_device, "cuda": on_device, "reference": lambda *_, **__: True}
    _REGISTRY.setdefault(operator, {})[backend] = Implementation(
        operator, backend, path, available or usual[backend], accepts or fitting[backend]
    )
    _REASONS.pop((operator, backend), None)


def choose(operator: str, *arguments: object) -> Operator:
    """The function that runs `operator` for these arguments; see `chosen`."""
    return chosen(operator, *arguments).load()


def chosen(operator: str, *arguments: object) -> Implementation:
    """The implementation of `operator` for these arguments (tensors and other inputs of `accepts`).

    Raises:
        UserError: the forced backend of this operator cannot run here or does not support the arguments.
    """
    implementations, wanted = _REGISTRY[operator], forced()
    if wanted in implementations:
        taken = implementations[wanted]
        _refuse(taken, arguments)
    else:
        taken = next(
            candidate
            for backend in BACKENDS
            if (candidate := implementations.get(backend)) is not None and _runs(candidate, arguments)
        )
    if _LOGGED.get(operator) != taken.backend:
        _LOGGED[operator] = taken.backend
        if LOG.isEnabledFor(logging.INFO):  # finding the reasons imports modules that do not run here
            LOG.info("kernels: %s runs on %s%s", operator, taken.backend, _why_not_faster(implementations, taken))
    return taken


def force(backend: str | None) -> None:
    """Force the backend of the recipe's `training.kernels`; "auto" or None forces nothing.

    Raises:
        UserError: no operator can use `backend` on this machine.
    """
    global _recipe_force
    _recipe_force = None if backend in (None, "auto") else backend
    wanted = forced()
    if wanted is None:
        return
    reasons = [_reason(backends[wanted]) for backends in _REGISTRY.values() if wanted in backends]
    if all(reasons):
        reason = reasons[0] if reasons else "no operator has such kernels"
        raise UserError(_forced_sentence(wanted, f"cannot run here: {reason}"))


@contextmanager
def forcing(backend: str) -> Iterator[None]:
    """Force `backend` temporarily, overriding environment and recipe, for benchmarks."""
    global _recipe_force
    before, variable = _recipe_force, os.environ.pop(VARIABLE, None)
    _recipe_force = None if backend == "auto" else backend
    try:
        yield
    finally:
        _recipe_force = before
        if variable is not None:
            os.environ[VARIABLE] = variable


def tell(say: Callable[[str], None]) -> None:
    """Also report every choice to `say`, one line at the first use of an operator."""
    handler = _Teller()
    handler.say = say
    LOG.handlers[:] = [handler]
    LOG.setLevel(logging.INFO)
    LOG.propagate = False


class _Teller(logging.Handler):
    say: Callable[[str], None]

    def emit(self, record: logging.LogRecord) -> None:
        self.say(record.getMessage())


def forced() -> str | None:
    """The backend forced by the environment variable, else by the recipe; None: each operator uses its fastest."""
    value = os.environ.get(VARIABLE) or _recipe_force or "auto"
    if value == "auto":
        return None
    if value not in BACKENDS:
        raise UserError(f"{VARIABLE}={value} names no kernels; use auto, {', '.join(BACKENDS)}")
    return value


def choices() -> dict[str, str]:
    """Operator -> backend of its latest call, for reports."""
    return dict(_LOGGED)


def why_reference(operator: str) -> str:
    """Why none of the faster backends of `operator` ran in its latest call, for reports."""
    implementations = _REGISTRY[operator]
    return _why_not_faster(implementations, implementations["reference"]).strip(" ()") or "it is forced"


def operators() -> dict[str, list[str]]:
    """Operator -> its backends, fastest first."""
    return {name: [b for b in BACKENDS if b in implementations] for name, implementations in sorted(_REGISTRY.items())}


def implementation(operator: str, backend: str) -> Implementation:
    """A named implementation, independent of `choose`, for tests and benchmarks."""
    return _REGISTRY[operator][backend]


def interpreted() -> bool:
    """Whether Triton's interpreter is on: kernels then run on CPU tensors, slowly, for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def missing_triton() -> str | None:
    """Why Triton kernels cannot run on this machine, or None."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if interpreted():
        return None
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    if torch.version.hip is not None:
        return "the kernels were never compiled for AMD devices"
    if torch.cuda.get_device_capability() < (8, 0):
        return "the device is older than compute capability 8.0"
    return _missing_driver()


def _missing_driver() -> str | None:
    """Why Triton cannot load its driver, which it compiles at first use (one second, then cached).

    Checked before a kernel is chosen: in an image without a C compiler the first launch would end the run.
    """
    try:
        from triton.runtime import driver

        _ = driver.active.utils
    except Exception as error:  # a missing compiler, Python header, libcuda or cache folder: each raises another type
        first = (str(error).strip().splitlines() or [""])[0][:200]
        return (
            f"Triton cannot build its driver, which needs gcc, Python's headers (python3-dev) and a home folder or "
            f"TRITON_CACHE_DIR to write to ({type(error).__name__}: {first})"
        )
    return None


def missing_cuda() -> str | None:
    """Why CUDA kernels cannot run on this machine, or None."""
    return None if torch.cuda.is_available() else "there is no CUDA device"


def on_device(*arguments: object) -> bool:
    """Whether all tensors among `arguments` are readable by a kernel: on a CUDA device, or interpreted."""
    tensors = [value for value in arguments if isinstance(value, torch.Tensor)]
    return interpreted() or all(tensor.is_cuda for tensor in tensors)


def _load(path: str) -> Operator:
    # Dictionaries instead of functools.cache: torch.compile traces them without a graph break.
    if path not in _LOADED:
        module, name = path.split(":")
        _LOADED[path] = getattr(importlib.import_module(module), name)
    return _LOADED[path]


def _reason(implementation: Implementation) -> str | None:
    key = implementation.operator, implementation.backend
    if key not in _REASONS:
        _REASONS[key] = implementation.available()
    return _REASONS[key]


def _runs(implementation: Implementation, arguments: tuple[object, ...]) -> bool:
    if implementation.backend != "reference" and not _on_cuda(arguments):
        return False
    # The interpreter is for tests and a thousand times slower than the reference: used only when forced.
    if implementation.backend == "triton" and interpreted():
        return False
    return _reason(implementation) is None and implementation.accepts(*arguments)


def _on_cuda(arguments: tuple[object, ...]) -> bool:
    return any(isinstance(value, torch.Tensor) and value.is_cuda for value in arguments)


def _refuse(implementation: Implementation, arguments: tuple[object, ...]) -> None:
    """Raise an error if a forced implementation does not support these arguments."""
    reason = _reason(implementation)
    if reason is not None:
        raise UserError(_forced_sentence(implementation.backend, f"cannot run {implementation.operator} here: {reason}"))
    if not implementation.accepts(*arguments):
        shapes = ", ".join(
            f"{value.dtype} {list(value.shape)} on {value.device.type}"
            for value in arguments
            if isinstance(value, torch.Tensor)
        )
        raise UserError(_forced_sentence(implementation.backend, f"cannot run {implementation.operator} on {shapes}"))


def _forced_sentence(backend: str, problem: str) -> str:
    source = VARIABLE if os.environ.get(VARIABLE) else "training.kernels"
    return f"{source}={backend} {problem}; set it to auto or reference"


def _why_not_faster(implementations: dict[str, Implementation], taken: Implementation) -> str:
    faster = [implementations[b] for b in BACKENDS[: BACKENDS.index(taken.backend)] if b in implementations]
    reasons = [f"{other.backend}: {_reason(other) or 'not for these arguments'}" for other in faster]
    return f" ({'; '.join(reasons)})" if reasons and forced() is None else ""
