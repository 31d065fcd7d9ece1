"""A phase with schedules of masks, lengths and batches: what each step reads, and resuming in the middle of it."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch

from dist_metaxlm.data.inspection import inspect
from dist_metaxlm.data.loader import PhaseData
from dist_metaxlm.data.steps import StepPlan
from dist_metaxlm.data.tokenizer import Tokenizer
from dist_metaxlm.data.tokens.store import TokenStore
from dist_metaxlm.evaluation.heldout_loss import HeldoutLoss
from dist_metaxlm.evaluation.probe import HeldoutProbe
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.training.pretrain import Options, pretrain
from dist_metaxlm.training.run.trained_phase import phase_checkpoint

SCHEDULES = (
    "phases.cross.mask_rate=[{tokens: 0, mask_rate: 0.3}, {tokens: 1400, mask_rate: 0.1}]",
    "phases.cross.sequence_length=[{tokens: 0, sequence_length: 32}, {tokens: 1000, sequence_length: 64}]",
    "phases.cross.objectives.mlm.batch_tokens=[{tokens: 0, batch_tokens: 128}, {tokens: 1900, batch_tokens: 512}]",
    "phases.cross.steps=8",
    "training.checkpoint_interval=2",
    "training.keep_checkpoints=9",
    "phases.cross.from=nothing",
)


@pytest.mark.parametrize("mixing", ["sum", "draw"])
def test_every_sample_once_whatever_changes(tiny_recipe: Path, mixing: str) -> None:
    recipe = load_recipe(tiny_recipe, [*SCHEDULES, f"phases.cross.mixing={mixing}"])
    phase = recipe.phase("cross")
    tokenizer = Tokenizer.load(f"{recipe.data.directory}/tokenizer.model")
    data = PhaseData(TokenStore.open(f"{recipe.data.directory}/store"), tokenizer, "cross", phase, recipe.seed)
    alone = StepPlan(phase, "cross", recipe.seed, 0, 1, None)
    pair = [StepPlan(phase, "cross", recipe.seed, rank, 2, 64) for rank in range(2)]
    taken: dict[str, list[int]] = {objective.name: [] for objective in phase.objectives}
    windows, targets = [], []
    for step in range(40):
        for micro in alone.at(step):
            batch = data.batch(micro.objective, micro.first, micro.count, micro.stage)
            taken[micro.objective.name] += range(micro.first, micro.first + micro.count)
            windows.append(micro.window)
            assert batch.window == micro.window
            if micro.objective.name == "mlm":
                targets.append((micro.window, batch.targets.numel() // micro.count))
        shared = [(m.objective.name, n) for plan in pair for m in plan.at(step) for n in range(m.first, m.first + m.count)]
        whole = [(m.objective.name, n) for m in alone.at(step) for n in range(m.first, m.first + m.count)]
        assert sorted(shared) == sorted(whole), "two ranks read what one reads"
    assert windows == sorted(windows), "windows only get longer"
    assert list(dict.fromkeys(targets)) == [(32, 10), (64, 19), (64, 6)], "0.3 of 32, then of 64, then 0.1"
    assert all(numbers == list(range(len(numbers))) for numbers in taken.values())
    sample = inspect(recipe, "cross", "mlm", taken["mlm"][-1])
    assert (sample["tokens"], sample["targets"]) == (64, 6)


def test_resuming_in_the_middle_changes_nothing(tiny_recipe: Path, tmp_path: Path) -> None:
    def train(resume: str) -> tuple[list[object], dict[str, torch.Tensor]]:
        with redirect_stdout(io.StringIO()):
            options = Options("cross", str(tiny_recipe), SCHEDULES, run_dir=str(tmp_path), resume=resume)
            pretrain(options, HeldoutProbe, HeldoutLoss)
        lines = (tmp_path / "cross" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines]
        weights = phase_checkpoint(tmp_path, "cross")[1].tensors("weights", "moments")
        return [(r["step"], r["tokens"], r["losses"]) for r in records], {name: weights[name].clone() for name in weights}

    curve, weights = train("auto")
    assert len(curve) == 4
    for step in ("2", "4"):  # before the longer windows and the larger batches, and between the two
        again, same = train(step)
        assert again == curve
        assert all(torch.equal(weights[name], same[name]) for name in weights)


def test_spans_are_masked_whole_and_counts_stay_exact(tiny_recipe: Path) -> None:
    spans = "phases.meta.objectives.mlm.span_p=0.2"
    recipe = load_recipe(tiny_recipe, [spans, "phases.meta.objectives.mlm.masked_share=0.9", "phases.meta.mask_rate=0.25"])
    phase = recipe.phase("meta")
    tokenizer = Tokenizer.load(f"{recipe.data.directory}/tokenizer.model")
    store = TokenStore.open(f"{recipe.data.directory}/store")

    def runs(config: object) -> np.ndarray:
        data = PhaseData(store, tokenizer, "meta", config, recipe.seed)  # type: ignore[arg-type]
        batch = data.batch(config.objectives[0], 0, 200)  # type: ignore[attr-defined]
        assert batch.targets.numel() == 200 * 8
        breaks = np.flatnonzero(np.diff(batch.targets.numpy()) != 1)
        return np.diff(np.concatenate([[-1], breaks, [batch.targets.numel() - 1]]))

    plain = phase.model_copy(update={"objectives": [phase.objectives[0].model_copy(update={"span_p": None})]})
    assert runs(phase).mean() > 1.6 * runs(plain).mean()
