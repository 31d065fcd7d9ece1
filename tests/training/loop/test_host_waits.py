"""No operator of a micro-step makes the host wait for the device.

Tensors are fake ones on the meta device: they have shapes and no values, so whatever needs a value (`item`, `tolist`, `if`,
`nonzero`, a boolean index) fails, and paths for a CPU are not taken. Kernels are taken too, with nothing in their launches.
What this cannot see: waits inside DeepSpeed's update (docs/kernels.md, "The step"); `launch/benchmark.py step` counts those.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.deepspeed_adapter.config_files import follow_file
from dist_metaxlm.kernels import registry
from dist_metaxlm.kernels.pointwise.dropout import column_keys
from dist_metaxlm.modeling.checkpointing import set_recompute
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.objectives.model import PretrainingModel
from dist_metaxlm.recipe.schema import Contrast, MaskedLM, ModelConfig, Objective, ParallelConfig
from dist_metaxlm.training.engine.engine import engine_config
from dist_metaxlm.training.loop.metrics import LossMeter

FAMILIES: dict[str, dict[str, Any]] = {
    "xlmr": {},
    "xlmr-pre": {"norm": "pre"},
    "modern": {"family": "modern", "norm": "pre", "local_window": 6},
    "modern-rms": {"family": "modern", "norm": "pre", "local_window": 6, "norm_type": "rms"},
}
OBJECTIVES: dict[str, Objective] = {
    "mlm": MaskedLM(batch_tokens=48),
    "contrast": Contrast(pairs=2, group=2, layer=1, temperature=0.05, max_tokens=12),
}


class NoCopies(TorchDispatchMode):
    """Refuses copies between devices, but for those that say they do not wait."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            source = args[1] if func is torch.ops.aten.copy_.default else args[0]
            waits = not (kwargs or {}).get("non_blocking", False) and not (len(args) > 2 and args[2])
            assert source.device == result.device or source.dim() == 0 or not waits, f"{func} waits"
        return result


def a_batch(objective: Objective) -> PackedBatch:
    """Two windows of 24 tokens in documents of 1, 7, 16 and 24, a document of padding for contrast among them."""
    tokens, targets = torch.arange(48) + 5, torch.arange(0, 48, 5)
    contrast = isinstance(objective, Contrast)
    return PackedBatch(
        tokens=tokens,
        positions=torch.cat([torch.arange(length) for length in (1, 7, 16, 24)]),
        cu_seqlens=torch.tensor([0, 1, 8, 24, 48], dtype=torch.int32),
        window=24,
        samples=torch.tensor([0, 1, 2, 3] if contrast else [7, 8]),
        languages=torch.zeros(2, dtype=torch.int64),
        targets=targets[:0] if contrast else targets,
        target_tokens=targets[:0] if contrast else targets + 9,
        pairs=torch.tensor([[0, 1], [2, 3]]) if contrast else None,
        pair_languages=torch.zeros(2, dtype=torch.int64) if contrast else None,
    )


@contextmanager
def without_values(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorMode]:
    plain = torch.tensor
    column_keys.cache_clear()  # neither real tensors in here, nor fake ones outside

    def tensor(*args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        assert device is None or torch.device(device).type == "cpu", "torch.tensor on a device waits for its copy"
        return plain(*args, device=device, **kwargs)

    monkeypatch.setattr(torch, "tensor", tensor)
    plain_autocast = torch.is_autocast_enabled
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind="cpu": kind != "meta" and plain_autocast(kind))
    try:
        with FakeTensorMode() as mode, NoCopies():
            yield mode
    finally:
        column_keys.cache_clear()


def with_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the registry take Triton for tensors of the meta device; launches do nothing."""
    pytest.importorskip("triton")
    from triton.runtime.jit import KernelInterface

    from dist_metaxlm.kernels.attention import operator as attention_operator

    monkeypatch.setattr(registry, "interpreted", lambda: False)
    for name in ("_on_cuda", "on_device"):
        monkeypatch.setattr(registry, name, lambda *_: True)
    for module in ("pointwise.norm", "pointwise.activations", "pointwise.rotary", "head.linear_cross_entropy"):
        monkeypatch.setattr(f"dist_metaxlm.kernels.{module}.on_device", lambda *_: True)
    monkeypatch.setattr(registry, "_reason", lambda found: None if found.backend == "triton" else "not here")
    monkeypatch.setattr(attention_operator, "accepts", lambda *_: True)
    monkeypatch.setattr(KernelInterface, "__getitem__", lambda self, grid: lambda *args, **kwargs: None)


def meter_of(objective: Objective) -> LossMeter:
    meter = object.__new__(LossMeter)
    meter._offsets = {objective.name: 0}
    meter._sums = torch.zeros(3, 3, dtype=torch.float64, device="meta")
    meter._ones = torch.ones(1, dtype=torch.float64, device="meta")
    return meter


@pytest.mark.parametrize("kernels", ["reference", "triton"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_micro_step_waits(name: str, family: str, kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(registry.VARIABLE, raising=False)
    monkeypatch.setattr(registry, "_LOGGED", {})
    objective, real = OBJECTIVES[name], a_batch(OBJECTIVES[name])
    config = ModelConfig(
        layers=2, hidden=16, heads=2, ffn=24, vocab_size=310, max_positions=32, dropout=0.2, **FAMILIES[family]
    )
    if kernels == "triton":
        with_kernels(monkeypatch)
    with torch.device("meta"):
        model = PretrainingModel(Encoder(config, seed=4)).train()
    set_recompute(model, ParallelConfig(recompute="blocks", recompute_every=2))
    with without_values(monkeypatch) as mode:
        for module in model.modules():
            for key, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[key] = torch.nn.Parameter(torch.empty(parameter.shape, device="meta"))
        values = {field.name: getattr(real, field.name) for field in fields(real)}
        batch = PackedBatch(
            **{key: mode.from_tensor(value) if isinstance(value, torch.Tensor) else value for key, value in values.items()}
        ).to("meta")
        loss, losses, languages = model(batch, objective, 3)
        (loss * 0.5).backward()
        meter_of(objective).add(objective, batch, losses, languages)
    assert model.encoder.embedding.tokens.weight.grad is not None
    assert {"attention", "add_norm"} <= registry.choices().keys()
    assert set(registry.choices().values()) == {kernels}


@pytest.mark.parametrize(
    "reading",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: x[x > 0],
        lambda x: torch.tensor([1.0], device="meta"),
        lambda x: x.cpu(),
        lambda x: bool(x.any()),
        lambda x: torch.repeat_interleave(x.long()),
    ],
    ids=["item", "tolist", "boolean index", "tensor", "cpu", "if", "repeat_interleave"],
)
def test_a_wait_is_seen(reading: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with without_values(monkeypatch), pytest.raises((Exception, AssertionError)):
        reading(torch.ones(4, device="meta"))


def test_deepspeed_does_not_wait_to_time_its_throughput(tmp_path: Any) -> None:
    from dist_metaxlm.recipe.load import load_recipe

    recipe = load_recipe("quickstart", [])
    assert engine_config(recipe, torch.device("cpu"), 1)["timers"] == {"throughput": {"enabled": False}}
    own = tmp_path / "own.json"
    own.write_text('{"zero_optimization": {"stage": 1}, "timers": {"throughput": {"enabled": true}}}', encoding="utf-8")
    assert engine_config(follow_file(recipe, str(own)), torch.device("cpu"), 1)["timers"] == {
        "throughput": {"enabled": True}
    }
