"""A bit that flips in one rank's copy of a weight ends the run with its rank and name, before a checkpoint holds it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dist_metaxlm import failpoints
from dist_metaxlm.errors import HardwareFault
from dist_metaxlm.parallel.groups import Groups
from dist_metaxlm.training.loop import replicas
from dist_metaxlm.training.loop.replicas import ReplicaGuard, difference, word_sum

NAMES = ["embedding", "norm", "head"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_bit_counts_and_the_order_does_not(dtype: torch.dtype) -> None:
    weight = torch.randn(50, 7, generator=torch.Generator().manual_seed(1)).to(dtype)
    words = torch.int32 if dtype == torch.float32 else torch.int16
    assert word_sum(weight) == word_sum(weight.flip(0))
    for bit in range(8 * weight.element_size()):
        flipped = weight.clone()
        mask = torch.tensor(
            (1 << bit) - (1 << 8 * weight.element_size()) * (bit == 8 * weight.element_size() - 1), dtype=words
        )
        flipped.view(words)[3, 4] ^= mask
        assert word_sum(flipped) != word_sum(weight), bit


@pytest.mark.parametrize(
    ("sums", "words"),
    [
        ([[1, 2, 3]] * 3, ""),
        ([[1, 2, 3], [1, 9, 3], [1, 2, 3]], "norm differs on rank 1 from the copies of the other ranks"),
        ([[1, 2, 3], [1, 2, 3], [1, 9, 9], [1, 2, 3]], "norm and 1 more differs on rank 2 from"),
        ([[9, 2, 3], [1, 2, 8], [1, 2, 3]], "embedding and 1 more differs on rank 0, 1 from"),
        ([[1, 2, 3], [1, 2, 4]], "head differs between the ranks 0, 1, without a majority"),
    ],
)
def test_the_minority_is_named(sums: list[list[int]], words: str) -> None:
    problem = difference(NAMES, torch.tensor(sums))
    assert problem.startswith(words)
    assert bool(problem) == bool(words)


def test_a_flip_is_no_action_of_another_point() -> None:
    with pytest.raises(Exception, match="its actions: flip"):
        failpoints.plant(0, "parameter:rank0:kill")
    with pytest.raises(Exception, match="'flip' is no action of point step"):
        failpoints.plant(0, "step:rank0:flip")


class FakeEngine:
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.module = torch.nn.Linear(4, 3)


@pytest.mark.parametrize("saving", [True, False])
def test_it_compares_every_few_steps_and_before_a_checkpoint(monkeypatch: pytest.MonkeyPatch, saving: bool) -> None:
    engine = FakeEngine()
    monkeypatch.setattr(replicas, "groups", lambda: Groups(0, 1, 1, 3))
    good = torch.stack([word_sum(weight) for weight in engine.module.parameters()])
    monkeypatch.setattr(replicas, "gather_rows", lambda own: torch.cat([good, own, good]))
    guard = ReplicaGuard(engine, 5)  # type: ignore[arg-type]
    try:
        failpoints.plant(1, "parameter@7:rank1:flip")
        guard.check(5, False)
        guard.check(7, False)  # flipped, and not yet compared
        with pytest.raises(HardwareFault, match=r"after step \d+ weight differs on rank 1 from the copies"):
            guard.check(8 if saving else 10, saving)
        ReplicaGuard(engine, 0).check(10, True)  # type: ignore[arg-type]
    finally:
        failpoints.plant(1, "")


def test_three_ranks_name_the_damaged_one(tiny_recipe: Path, tmp_path: Path, run_ranks: Callable[..., str]) -> None:
    base = [
        "phases.joint.steps=10",
        "phases.joint.objectives=[{name: mlm, batch_tokens: 384}]",
        "training.log_interval=1",
        "training.keep_checkpoints=5",
        "training.checkpoint_interval=4",
        "training.guards.replica_interval=3",
        "parallel.micro_batch_tokens=128",
        "model.vocab_size=383",
    ]
    settings = {"0-fp32": (0, "parameter@7:rank1:flip"), "2-bf16": (2, "parameter@6:rank2:flip"), "1-fp32": (1, "")}
    cases = [
        {
            "run": str(tmp_path / name),
            "faults": fault,
            "overrides": [*base, f"parallel.zero_stage={stage}", f"training.precision={name[2:]}"],
        }
        for name, (stage, fault) in settings.items()
    ]
    job = {"recipe": str(tiny_recipe), "output": str(tmp_path / "results"), "cases": cases}
    (tmp_path / "job.json").write_text(json.dumps(job))
    run_ranks(3, Path(__file__).with_name("worker_poison.py"), tmp_path / "job.json")
    for rank in range(3):
        first, second, clean = json.loads((tmp_path / f"results.{rank}").read_text())
        assert first.startswith("after step 8 embedding.token_type differs on rank 1 "), first  # before the checkpoint
        assert second.startswith("after step 6 embedding.token_type differs on rank 2 "), second
        assert clean == ""
    for name, steps in (("0-fp32", [4]), ("2-bf16", [4]), ("1-fp32", [4, 8, 10])):
        saved = sorted(int(path.name[5:]) for path in (tmp_path / name / "joint/checkpoints").glob("step-*"))
        assert saved == steps
