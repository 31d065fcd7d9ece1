"""Where the time of a step goes: labels on a small model, the profiler's events sorted, and nothing left behind."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from dist_metaxlm.benchmarking.training import step
from dist_metaxlm.benchmarking.training.labels import DATA, OPTIMISER, STEP, label, labelled, waiting
from dist_metaxlm.benchmarking.training.trace import ACCUMULATION, Breakdown, breakdown, device_busy
from dist_metaxlm.modeling.checkpointing import set_recompute
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.objectives.model import PretrainingModel
from dist_metaxlm.recipe.schema import MaskedLM, ModelConfig, ParallelConfig
from tests.kernels.test_model import a_batch

NORMS = "norms, residual sums, dropout"


class Engine:
    """What `labelled` needs of DeepSpeed's."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module
        self.optimizer = torch.optim.SGD(module.parameters(), lr=0.1)

    def _take_model_step(self, arguments: Any) -> None:
        self.optimizer.step()
        float(self.optimizer.param_groups[0]["params"][0].sum())  # a wait

    def allreduce_gradients(self) -> None:
        pass


def profiled(recompute: str) -> Breakdown:
    config = ModelConfig(layers=2, hidden=16, heads=2, ffn=24, vocab_size=310, max_positions=32, norm="pre")
    model = PretrainingModel(Encoder(config, seed=4))
    set_recompute(model, ParallelConfig(recompute=recompute))
    engine, batches = Engine(model), waiting(iter([a_batch()]))
    with labelled(engine), profile(activities=[ProfilerActivity.CPU]) as watching, label(STEP):
        loss, _, _ = model(next(batches), MaskedLM(batch_tokens=24), 0)
        loss.backward()
        engine._take_model_step(None)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not {"_take_model_step", "allreduce_gradients"} & vars(engine).keys()
    return breakdown(watching.events(), on_device=False)


def test_every_part_is_found_forward_and_backward() -> None:
    found = profiled("none")
    for part in ("embedding", "attention", "MLP", "head", NORMS):
        assert found.parts[part].keys() >= {"forward", "backward"}, part
        assert "recomputed" not in found.parts[part]
    assert found.parts[OPTIMISER].keys() == found.parts[DATA].keys() == {"step"}
    assert found.parts[ACCUMULATION].keys() == {"backward"}
    named = {(name, component, kind) for name, component, kind in found.operators}
    assert ("aten::gelu_backward", "MLP", "backward") in named
    assert ("aten::native_layer_norm_backward", NORMS, "backward") in named
    assert ("aten::embedding_dense_backward", "embedding", "backward") in named
    assert not any(component == STEP and "backward" in name for name, component, _ in named if "aten::gelu" in name)
    assert found.waits == {OPTIMISER: {"aten::_local_scalar_dense in aten::item": 1}}


def test_what_is_recomputed_is_told_from_the_backward_pass() -> None:
    found = profiled("blocks")
    assert found.parts["attention"].keys() == {"forward", "backward", "recomputed"}
    assert "recomputed" not in found.parts["head"]
    assert ("aten::gelu", "MLP", "recomputed") in found.operators
    assert ("aten::gelu_backward", "MLP", "backward") in found.operators


def event(name: str, start: float, end: float, parent: Any = None, **fields: Any) -> Any:
    return SimpleNamespace(
        name=name,
        time_range=SimpleNamespace(start=start, end=end),
        cpu_parent=parent,
        **{
            "is_async": False,
            "device_type": DeviceType.CPU,
            "thread": 1,
            "fwd_thread": 0,
            "sequence_nr": -1,
            "scope": 0,
            "kernels": [],
            "self_cpu_time_total": end - start,
            **fields,
        },
    )


def kernel(name: str, duration: float) -> Any:
    return SimpleNamespace(name=name, duration=duration)


def test_on_a_gpu_the_kernels_count_and_backward_runs_in_a_thread_of_its_own() -> None:
    # As the profiler reports a GPU: labels have an entry on the device too, backward events have no label around them.
    outer = event("part: rest of the model", 0, 100, kernels=[kernel("part: rest of the model", 90)])
    part = event("part: attention", 1, 9, outer, kernels=[kernel("part: attention", 40)])
    product = event("aten::mm", 2, 3, part, sequence_nr=7, kernels=[kernel("gemm", 30)])
    node = event("autograd::engine::evaluate_function: MmBackward0", 20, 30, thread=2, fwd_thread=1, sequence_nr=7, scope=1)
    inner = event("aten::mm", 21, 22, node, thread=2, sequence_nr=7, kernels=[kernel("gemm", 60)])
    read = event("aten::_local_scalar_dense", 40, 45, outer)
    wait = event("cudaStreamSynchronize", 41, 44, read)
    elsewhere = event("cudaStreamSynchronize", 41, 44, None, thread=9)
    on_device = [
        event(name, start, end, device_type=DeviceType.CUDA)
        for name, start, end in (("gemm", 10, 40), ("gemm", 35, 95), ("part: attention", 0, 99))
    ]
    found = breakdown([outer, part, product, node, inner, read, wait, elsewhere, *on_device], on_device=True)
    assert found.parts == {"attention": {"forward": 30, "backward": 60}}
    assert found.waits == {STEP: {"cudaStreamSynchronize in aten::_local_scalar_dense": 1}}
    assert device_busy([outer, *on_device]) == pytest.approx(85)
    figures = step.shares(found, 2, 100e-6, 85e-6)
    assert figures["parts"]["attention"] == pytest.approx({"forward": 0.3, "backward": 0.6})
    assert figures["rest"] == pytest.approx(0.15)
    assert figures["host_waits_per_step"] == {STEP: {"cudaStreamSynchronize in aten::_local_scalar_dense": 0.5}}
    result = {
        **figures,
        "model": "m",
        "phase": "cross",
        "device": "cuda",
        "precision": "bf16",
        "seconds_per_step": 0.1,
        "tokens_per_second": 1e4,
        "profiled_seconds_per_step": 0.2,
    }
    assert "| attention | 30.0% | 60.0% |  |  | 90.0% |" in step.table(result)
    assert "the device idle" in step.table(result)
    assert "cudaStreamSynchronize in aten::_local_scalar_dense 0.5 times a step" in step.table(result)
