"""Where the tensors of each collective lie on machines with CUDA: NCCL takes no host memory, our gloo groups nothing else.

There is no CUDA here. The meta device stands for it, whose tensors have no values; collectives are recorded with the place
in the code that makes them. A function that wants a value of what it has exchanged stops there.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from dist_metaxlm.benchmarking.training import saving as saving_figures
from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.deepspeed_adapter import gradient_norm
from dist_metaxlm.kernels.head import linear_cross_entropy as head
from dist_metaxlm.parallel import groups, process_group
from dist_metaxlm.parallel.topology import Topology, locate_ranks
from dist_metaxlm.training.checkpointing import agreement, checkpoint, rank_files, saving
from dist_metaxlm.training.checkpointing import gather_plan as pieces
from dist_metaxlm.training.engine.matrix_exchange import MatrixExchange
from dist_metaxlm.training.engine.pipeline import PipelinedModel
from dist_metaxlm.training.engine.stable_adamw import StableAdamW
from dist_metaxlm.training.loop import batches, resilience
from dist_metaxlm.training.loop.metrics import LossMeter
from dist_metaxlm.training.loop.pace import SlowRankMeter
from dist_metaxlm.training.loop.progress import Progress

ROOT = Path(__file__).resolve().parents[2]
DEVICE = torch.device("meta")
COLLECTIVES = (
    "all_reduce",
    "all_gather",
    "all_gather_into_tensor",
    "broadcast",
    "send",
    "isend",
    "recv",
    "gather",
    "all_to_all_single",
)
ELSEWHERE = {
    "links.py:_measure",
    "links.py:_there_and_back",
    "sharding.py:gather_whole",
    "linear_cross_entropy.py:_exponentials",
}
"""Not called here: the preflight's one buffer is made on the device of its group, parts of parameters lie where these do,
and a chunk of logits where the states do."""


def made(kind: type, **attributes: Any) -> Any:
    thing = object.__new__(kind)
    vars(thing).update(attributes)
    return thing


def on_device(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(*shape, dtype=dtype, device=DEVICE)


def stopping() -> None:
    request = resilience.StopRequest(0, 1)
    try:
        request.agreed(1)
    finally:
        request.restore()


def shared_batch() -> None:
    tokens = torch.arange(4)
    batch = PackedBatch(tokens, tokens, torch.tensor([0, 4], dtype=torch.int32), 4, tokens[:1], tokens[:1], tokens, tokens)
    batches.share_batch(batch, "gloo")


def exchanged() -> None:
    made(pieces.GatherPlan, _parameters=[], _group="gloo")._exchange()


def piece_of(writer: int) -> Any:
    """GatherPlan with the first half of one parameter on rank 0 and the second on rank 1."""
    sources = ((0, pieces.LocalShard(0, 0, 2)), (1, pieces.LocalShard(0, 2, 2)))
    return made(
        pieces.GatherPlan,
        routes=[pieces.GatherStep(writer, sources)],
        names=["final_norm.weight"],
        _shapes=[(4,)],
        _group="gloo",
        _vocabulary=8,
    )


def matrices() -> Any:
    return made(MatrixExchange, _matrices=[], _ranks=[0, 1], _rank=0, _device=DEVICE, _group="nccl")


def saver(**attributes: Any) -> Any:
    return made(saving.CheckpointSaver, _group="gloo", **attributes)


def tied(method: Any) -> None:
    weight = on_device(4, 2)
    weight.ds_pipe_replicated = True  # type: ignore[attr-defined]
    method(
        SimpleNamespace(tied_comms={"tokens": {"module": SimpleNamespace(weight=weight), "ranks": [0, 1], "group": "nccl"}})
    )


def between_stages(stage: int) -> None:
    encoder = SimpleNamespace(
        batch_metadata=lambda batch: SimpleNamespace(positions=on_device(4)),
        config=SimpleNamespace(hidden=2),
        parameters=lambda: iter([on_device(1)]),
        stage=SimpleNamespace(last=False),
        through_stage=lambda states, *_: states if states.dim() == 2 else on_device(4, 2),
    )
    states = PipelinedModel.states_after(SimpleNamespace(encoder=encoder), SimpleNamespace(tokens=on_device(4)), 1)
    assert states is None, stage


def cross_entropy(form: Callable[..., Any]) -> None:
    shard = head.VocabularyShard(0, 6, "nccl")
    form(on_device(4, 2), on_device(6, 2), None, on_device(4, dtype=torch.int64), None, (True, True, False), 2**20, shard)


def fused_head() -> None:
    pytest.importorskip("triton")
    from dist_metaxlm.kernels.head import linear_cross_entropy_triton as fused

    fused._gather(on_device(3, 4), head.VocabularyShard(0, 6, "nccl"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fused, "_chunk", lambda *_: None)
        cross_entropy(fused.losses_and_gradients)


CALLS: dict[str, Callable[[], Any]] = {
    "names of nodes": lambda: locate_ranks(Topology(0, 2, 0, 2, "deepspeed"), DEVICE),
    "losses": lambda: made(
        LossMeter, _before=torch.zeros(2, 3, dtype=torch.float64), _sums=on_device(2, 3, dtype=torch.float64)
    )._counted(),
    "tokens seen": lambda: Progress("meta", "hash", 8, DEVICE).tensors(),
    "newest checkpoint": lambda: checkpoint._agreed(3, "max"),
    "shares of a node": lambda: checkpoint._share_of_node("node1"),
    "end of a save": lambda: saver(_pending=Future()).finished(DEVICE),
    "bytes of a save": lambda: saver(
        _pieces=SimpleNamespace(written=[]), _replicas=SimpleNamespace(shapes={})
    )._bytes_of_all(),
    "errors of a save": lambda: agreement.together(None, "gloo", Path()),  # type: ignore[arg-type]
    "digests of a save": lambda: rank_files.sealed_by_all({}, "gloo"),
    "who holds what": exchanged,
    "pieces sent": lambda: piece_of(1).send({(kind, 0): torch.zeros(2) for kind in range(3)}),
    "pieces received": lambda: piece_of(0).whole(0, 0, {(0, 0): torch.zeros(2)}),
    "rows of all": lambda: process_group.gather_rows(on_device(2, 3)),
    "requests to stop": stopping,
    "batches of a tensor group": shared_batch,
    "norm of gradients": lambda: gradient_norm._global_norm([on_device(4)]),
    "tied gradients": lambda: tied(PipelinedModel.get_tied_weights_and_groups),
    "tied weights": lambda: tied(PipelinedModel.share_tied),
    "states of stage 1": lambda: between_stages(1),
    "head": lambda: cross_entropy(head.losses_and_gradients),
    "fused head": fused_head,
    "holdings of matrices": lambda: matrices()._exchange_holdings([]),
    "whole matrices": lambda: matrices()._all_to_all([[], []], [[], []]),
    "slowest rank": lambda: saving_figures._slowest(1.0, DEVICE),
    "slow rank": lambda: made(SlowRankMeter, _begun=0.0, _host=torch.zeros(64, dtype=torch.float64)).read(DEVICE),
    "name of a job": lambda: rank_files.name_of_job("gloo"),
    "sizes of updates": lambda: made(StableAdamW, _group="nccl", _device=DEVICE)._sum(torch.zeros(3, dtype=torch.float64)),
    "one folder": lambda: saving_figures._shared_folder(Path(), DEVICE),
}
ON_HOST = (
    "bytes of a save",
    "errors of a save",
    "digests of a save",
    "name of a job",
    "who holds what",
    "pieces sent",
    "pieces received",
    "requests to stop",
    "batches of a tensor group",
)
"""All that these handle lies in host memory, and they go on with what they got."""


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, set[str]]]:
    """(place, "nccl" or "gloo", devices) of each collective of this rank in a job of two ranks on CUDA devices."""
    found: list[tuple[str, str, set[str]]] = []

    def collective(*arguments: Any, group: Any = None, **_: Any) -> Any:
        flat = [part for value in arguments for part in (value if isinstance(value, list) else [value])]
        code = sys._getframe(1).f_code
        found.append(
            (
                f"{Path(code.co_filename).name}:{code.co_name}",
                group or "nccl",
                {tensor.device.type for tensor in flat if isinstance(tensor, torch.Tensor)},
            )
        )
        return SimpleNamespace(wait=lambda: None)

    for name in COLLECTIVES:
        monkeypatch.setattr(dist, name, collective)
    place = groups.Groups(0, 1, 0, 2, stage=1, stages=3, tensor="nccl", data="nccl", model="nccl")  # type: ignore[arg-type]
    for module in (
        "parallel.process_group",
        "deepspeed_adapter.gradient_norm",
        "training.engine.pipeline",
        "training.engine.matrix_exchange",
    ):
        monkeypatch.setattr(f"dist_metaxlm.{module}.groups", lambda: place)
    answers = {"is_initialized": True, "get_world_size": 2, "get_rank": 0, "get_backend": "nccl", "get_global_rank": 0}
    for name, answer in answers.items():
        monkeypatch.setattr(dist, name, lambda *_, answer=answer: answer)
    monkeypatch.setattr(dist, "new_group", lambda *_, backend=None, **__: backend or "nccl")
    monkeypatch.setattr("deepspeed.runtime.utils.is_model_parallel_parameter", lambda parameter: True)
    assert checkpoint._device() == "cpu"
    with monkeypatch.context() as asked:
        asked.setattr(torch.cuda, "is_available", lambda: True)
        assert checkpoint._device() == "cuda"
    monkeypatch.setattr(checkpoint, "_device", lambda: DEVICE)
    return found


def taken(name: str) -> None:
    # To read a value of the device is not possible, and comes after the collective.
    with nullcontext() if name in ON_HOST else suppress(NotImplementedError, RuntimeError):
        CALLS[name]()


@pytest.mark.parametrize("name", CALLS)
def test_nccl_gets_what_is_on_the_device_and_gloo_what_is_on_the_host(
    name: str, recorded: list[tuple[str, str, set[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken(name)
    assert recorded
    for place, group, devices in recorded:
        assert devices == {"cpu" if group == "gloo" else "meta"}, (place, group)


def test_no_collective_is_left_out(recorded: list[tuple[str, str, set[str]]]) -> None:
    """Every function that talks to other ranks by itself is among the calls above, or named with a reason."""
    for name in CALLS:
        taken(name)
    sites = set()
    for path in [*(ROOT / "dist_metaxlm").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]:
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(function, ast.FunctionDef):
                called = {ast.unparse(call.func) for call in ast.walk(function) if isinstance(call, ast.Call)}
                sites |= {f"{path.name}:{function.name}" for name in COLLECTIVES if f"dist.{name}" in called}
    assert sites == {place for place, *_ in recorded} | ELSEWHERE
