"""Momentum encoder and queue go through checkpoints bit by bit, and hold still while one is copied."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from dist_metaxlm.data.loader import PhaseData
from dist_metaxlm.data.steps import StepPlan
from dist_metaxlm.data.tokenizer import Tokenizer
from dist_metaxlm.data.tokens.store import TokenStore
from dist_metaxlm.deepspeed_adapter import optimizer_state
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.objectives.model import PretrainingModel
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.training.checkpointing.checkpoint import newest_checkpoint, restore
from dist_metaxlm.training.checkpointing.replicated import ReplicatedTensors
from dist_metaxlm.training.checkpointing.saving import CheckpointSaver

XLCO = {"name": "xlco", "pairs": 8, "queue": 10, "layer": 1, "momentum": 0.9, "max_tokens": 14}


class Training:
    """Steps of xlco in this process, with torch alone; an engine as far as saving asks for one."""

    def __init__(self, recipe_path: Path, folder: Path, seed: int = 3) -> None:
        tree = yaml.safe_load(recipe_path.read_text())
        tree["phases"]["joint"]["objectives"] = [XLCO]
        path = folder / "xlco.yaml"
        path.write_text(yaml.safe_dump(tree))
        recipe = load_recipe(path)
        phase = recipe.phases["joint"]
        tokenizer = Tokenizer.load(f"{recipe.data.directory}/tokenizer.model")
        self.data = PhaseData(TokenStore.open(f"{recipe.data.directory}/store"), tokenizer, "joint", phase, recipe.seed)
        self.plan = StepPlan(phase, "joint", recipe.seed, 0, 1, None)
        self.model = PretrainingModel(Encoder(recipe.model, seed), phase.objectives)
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.engine: Any = SimpleNamespace(module=self.model, optimizer=optimizer, device=torch.device("cpu"))
        optimizer_state.create_adam_state(self.engine)

    def take(self, first: int, last: int) -> list[float]:
        losses = []
        for step in range(first, last):
            self.model.zero_grad()
            for micro in self.plan.at(step):
                loss, _, _ = self.model(self.data.batch(micro.objective, micro.first, micro.count), micro.objective, step)
                (loss * micro.factor).backward()
                losses.append(float(loss))
            self.engine.optimizer.step()
            self.model.after_step()
        return losses

    def state(self) -> dict[str, torch.Tensor]:
        memory = self.model.memory
        assert memory is not None
        return {
            name: value.clone()
            for name, value in [*self.model.named_parameters(), *memory.large().items(), *memory.small().items()]
        }


def test_resuming_is_bitwise(tiny_recipe: Path, tmp_path: Path) -> None:
    training, other = Training(tiny_recipe, tmp_path), Training(tiny_recipe, tmp_path, seed=8)
    training.take(0, 3)
    with CheckpointSaver(tmp_path / "root", training.engine, 2, background=True) as saver:
        saver.save({"step": 3}, {"seen": torch.ones(2)})
        losses = training.take(3, 6)
    checkpoint = newest_checkpoint(tmp_path / "root")
    assert checkpoint is not None
    assert sorted(checkpoint.facts["files"]) == [
        f"{kind}-00000.safetensors" for kind in ("moments", "momentum", "objectives", "progress", "weights")
    ]
    other.take(0, 1)
    restore(other.engine, checkpoint)
    assert other.take(3, 6) == losses
    ours, expected = other.state(), training.state()
    assert set(ours) == set(expected)
    assert all(torch.equal(ours[name], value) for name, value in expected.items())


def test_both_ways_of_saving_write_the_same_bytes(tiny_recipe: Path, tmp_path: Path) -> None:
    training = Training(tiny_recipe, tmp_path)
    training.take(0, 2)
    for background in (False, True):
        with CheckpointSaver(tmp_path / str(background), training.engine, 2, background) as saver:
            saver.save({"step": 2}, {"seen": torch.ones(2)})
    folders = [tmp_path / str(background) / "step-00000002" for background in (False, True)]
    ways = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders]
    assert ways[0] == ways[1]


def test_what_is_remembered_does_not_change_before_it_is_copied(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(tiny_recipe, tmp_path)
    training.take(0, 2)
    expected, memory = training.state(), training.model.memory
    assert memory is not None
    copy, release, asked = ReplicatedTensors.copy, threading.Event(), threading.Event()
    monkeypatch.setattr(ReplicatedTensors, "copy", lambda *arguments: release.wait() and copy(*arguments))
    hold = CheckpointSaver.wait_for_copy
    monkeypatch.setattr(CheckpointSaver, "wait_for_copy", lambda saver: asked.set() or hold(saver))
    with CheckpointSaver(tmp_path / "root", training.engine, 2, background=True) as saver:
        saver.save({"step": 2}, {"seen": torch.ones(2)})
        threading.Thread(target=lambda: asked.wait() and release.set()).start()
        # As after a step that fp16 skips: AdamW is not called, and still the momentum encoder moves.
        memory.update(
            {name: value + 1 for name, value in expected.items() if name in memory.average}
            | {name.removeprefix("encoder."): value + 1 for name, value in training.model.named_parameters()}
        )
    checkpoint = newest_checkpoint(tmp_path / "root")
    assert checkpoint is not None
    saved = checkpoint.tensors("momentum")
    assert all(torch.equal(saved[name], expected[name]) for name in saved)
    assert not torch.equal(memory.average["embedding.tokens.weight"], saved["embedding.tokens.weight"])


def test_ranks_share_the_writing() -> None:
    tensors = {name: torch.full((size,), float(size)) for name, size in (("a", 90), ("b", 50), ("c", 30), ("d", 5))}
    shares = [ReplicatedTensors(tensors, rank, 2).shapes for rank in range(2)]
    assert [list(share) for share in shares] == [["a"], ["b", "c", "d"]]
