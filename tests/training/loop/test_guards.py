"""What a step's norm and DeepSpeed's decision make of it: skipped, counted, or a return to a checkpoint."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dist_metaxlm.errors import UserError
from dist_metaxlm.recipe.guards import GuardConfig
from dist_metaxlm.training.loop.guard_log import GuardLog, RollBack
from dist_metaxlm.training.loop.guards import StepGuards
from dist_metaxlm.training.loop.norm_history import JUDGED_AFTER, SMALLEST_DEVIATION, NormHistory

OBJECTIVES = [(SimpleNamespace(name="mlm"), 1.0, 0)]
SKIP = GuardConfig(spikes="skip")


class Meter:
    """Counts what is dropped."""

    def __init__(self, finite: bool = True) -> None:
        self.begun, self.dropped, self.finite = 0, 0, finite

    def begin_step(self) -> None:
        self.begun += 1

    def drop_step(self) -> None:
        self.dropped += 1

    def is_finite(self) -> bool:
        return self.finite


class Run:
    """Steps of an engine whose gradient norms are given."""

    def __init__(
        self, folder: Path, config: GuardConfig = SKIP, step: int = 0, state: Any = None, fp16: bool = False
    ) -> None:
        scaler = SimpleNamespace(dynamic=True)
        self.engine: Any = SimpleNamespace(
            skipped_steps=0, fp16_enabled=lambda: fp16, optimizer=SimpleNamespace(loss_scaler=scaler)
        )
        plan: Any = SimpleNamespace(samples=lambda objectives: {"mlm": [0, 7]}, objectives_at=lambda step: [step])
        self.meter: Any = Meter()
        self.log = GuardLog(folder, [])
        self.guards = StepGuards(config, self.engine, plan, self.meter, self.log, step, state or {})
        self.step = step

    def norms(self, *norms: float) -> None:
        for norm in norms:

            def update(norm: float = norm) -> None:
                if not math.isfinite(norm) or not self.engine.accept_norm(norm):
                    self.engine.skipped_steps += 1

            self.guards.run(self.step, OBJECTIVES, update)  # type: ignore[arg-type]
            self.step += 1
            self.guards.check(self.step)


def test_a_history_knows_mean_and_deviation_and_learns_a_new_level_slowly() -> None:
    history = NormHistory()
    for number in range(JUDGED_AFTER):
        assert history.limit(3.0) == math.inf
        history.add(1.0 + number % 2, 100, 3.0)
    assert history.mean == pytest.approx(1.5)
    assert history.variance == pytest.approx(0.25)
    assert history.limit(3.0) == pytest.approx(3.0)
    history.add(1e9, 100, 3.0)
    assert history.mean < 1.6
    for _ in range(300):
        history.add(50.0, 100, 3.0)
    assert history.limit(3.0) > 50.0
    same = NormHistory(20, 2.0, 0.0)
    assert same.limit(5.0) == 2.0 + 5.0 * SMALLEST_DEVIATION * 2.0
    assert NormHistory(*json.loads(json.dumps(history.state()))) == history


@pytest.mark.parametrize(("spikes", "skipped"), [("clip", 0), ("skip", 1)])
def test_a_spike_is_counted_and_skipped_only_if_asked(spikes: Any, skipped: int, tmp_path: Path) -> None:
    run = Run(tmp_path, GuardConfig(spikes=spikes))
    run.norms(*[1.0] * 25, 1e4, 1.0)
    assert run.guards.figures() == {"skipped": skipped, "spikes": 1, "rollbacks": 0}
    assert run.meter.dropped == skipped
    event = json.loads((tmp_path / "guards.jsonl").read_text())
    assert (event["kind"], event["step"]) == ("skipped" if skipped else "spike", 26)


def test_three_bad_steps_in_a_row_go_back_and_two_do_not(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.norms(1.0, math.nan, math.inf, 1.0, math.nan, math.nan)
    with pytest.raises(RollBack, match="steps 5, 6, 7 made no update") as caught:
        run.norms(math.nan)
    assert (caught.value.bad, caught.value.last, caught.value.samples) == ([5, 6, 7], 7, {"mlm": [0, 7]})


def test_a_resumed_run_judges_like_the_uninterrupted_one(tmp_path: Path) -> None:
    norms = [1.0 + 0.1 * (number % 7) for number in range(30)]
    whole = Run(tmp_path / "a")
    first = Run(tmp_path / "b")
    for folder in "ab":
        (tmp_path / folder).mkdir()
    whole.norms(*norms, math.nan, math.nan, 1.0, 9.0)
    first.norms(*norms, math.nan, math.nan)
    state = json.loads(json.dumps(first.guards.state()))
    assert state["in_a_row"] == [31, 32]
    resumed = Run(tmp_path / "b", step=32, state=state)
    resumed.norms(1.0, 9.0)
    assert resumed.guards.state() == whole.guards.state()
    assert state["in_a_row"] == [31, 32], "a state that is being written must not change"


def test_fp16_may_overflow_often_but_not_with_a_bad_loss(tmp_path: Path) -> None:
    run = Run(tmp_path, fp16=True)
    run.norms(*[math.inf] * 10)
    assert run.guards.figures()["skipped"] == 0
    run.meter.finite = False
    with pytest.raises(RollBack):
        run.norms(*[math.inf] * 3)


def test_after_one_return_bad_steps_are_left_out_and_after_two_all_since_the_checkpoint(tmp_path: Path) -> None:
    log = GuardLog(tmp_path, [])
    assert log.stepped_over(0) == frozenset()
    log.roll_back(RollBack("why", 9, [7, 8, 9]), 3, first=True)
    assert GuardLog(tmp_path, []).stepped_over(4) == {7, 8, 9}
    assert GuardLog(tmp_path, []).stepped_over(9) == frozenset()
    again = GuardLog(tmp_path, [])
    again.roll_back(RollBack("why", 12, [10, 11, 12]), 3, first=True)
    assert GuardLog(tmp_path, []).stepped_over(4) == set(range(5, 13))
    with (tmp_path / "guards.jsonl").open("a") as file:
        file.write('{"kind": "rollb')
    known = [*GuardLog(tmp_path, []).rollbacks, {"kind": "rollback", "step": 20, "bad": [20], "samples": {}}]
    last = GuardLog(tmp_path, known)
    assert last.stepped_over(12) == {20}, "a checkpoint's own record counts, too"
    with pytest.raises(UserError, match=r"already returned to a checkpoint 3 times .*; samples of these steps: mlm 0 to 7;"):
        last.roll_back(RollBack("steps 21 made no update", 21, [21], {"mlm": [0, 7]}), 3, first=True)
