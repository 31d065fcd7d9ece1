"""Profiler labels for the parts of a training step: hooks and wrappers that are installed only inside `labelled`.

A label is a `record_function` range named PREFIX + component. Outside `labelled` a step is unaffected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import ParamSpec, TypeVar

from torch import nn
from torch.profiler import record_function

from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.deepspeed_adapter.engine_protocol import Engine
from dist_metaxlm.modeling.attention import Attention
from dist_metaxlm.modeling.embedding import Embedding
from dist_metaxlm.modeling.head import Head
from dist_metaxlm.modeling.layers import Norm
from dist_metaxlm.modeling.mlp import Mlp

Given = ParamSpec("Given")
Result = TypeVar("Result")

PREFIX = "part: "
STEP, DATA, OPTIMISER, COMMUNICATION = "rest of the model", "waiting for data", "optimiser", "communication"
MODULES: tuple[tuple[type[nn.Module], str], ...] = (
    (Embedding, "embedding"),
    (Attention, "attention"),
    (Mlp, "MLP"),
    (Head, "head"),
    (Norm, "norms, residual sums, dropout"),
)
"""Class of modules -> component; the innermost label counts."""
ENGINE = (("_take_model_step", OPTIMISER), ("allreduce_gradients", COMMUNICATION))
"""Methods of DeepSpeed's engines (0.19.8): the update with its clipping, and the reduction of gradients (any ranks)."""


@contextmanager
def labelled(engine: Engine) -> Iterator[None]:
    """Label the modules of `engine` and its update."""
    with ExitStack() as stack:
        for module in engine.module.modules():
            name = next((name for kind, name in MODULES if isinstance(module, kind)), None)
            if name is not None:
                _label_module(module, name, stack)
        for method, name in ENGINE:
            setattr(engine, method, _labelled_call(getattr(engine, method), name))
            stack.callback(delattr, engine, method)  # restores the method of the class
        yield


def label(name: str) -> record_function:
    """The range of a component."""
    return record_function(PREFIX + name)


def waiting(batches: Iterator[PackedBatch]) -> Iterator[PackedBatch]:
    """The same batches; the wait for each is labelled."""
    while True:
        with label(DATA):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def _label_module(module: nn.Module, name: str, stack: ExitStack) -> None:
    # A stack: with activation checkpointing a module runs again in the backward pass.
    open_ranges: list[record_function] = []

    def enter(*_: object) -> None:
        open_ranges.append(label(name))
        open_ranges[-1].__enter__()

    def leave(*_: object) -> None:
        open_ranges.pop().__exit__(None, None, None)

    stack.callback(module.register_forward_pre_hook(enter).remove)
    # always: recomputation ends with an exception as soon as it has the tensors it needs
    stack.callback(module.register_forward_hook(leave, always_call=True).remove)


def _labelled_call(function: Callable[Given, Result], name: str) -> Callable[Given, Result]:
    def call(*arguments: Given.args, **named: Given.kwargs) -> Result:
        with label(name):
            return function(*arguments, **named)

    return call
