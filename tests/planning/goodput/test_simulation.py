"""Simulated runs: where the time goes, agreement with closed forms and with a published run, refusals."""

from __future__ import annotations

import json
import math
import sys

import pytest

from dist_metaxlm.cli.plan import main
from dist_metaxlm.errors import UserError
from dist_metaxlm.planning.goodput.failures import Fleet, check_fleet
from dist_metaxlm.planning.goodput.intervals import daly_interval, simulate_plan, young_interval
from dist_metaxlm.planning.goodput.pipeline import one_forward_one_backward
from dist_metaxlm.planning.goodput.simulation import Job, simulate

JOB = Job(step=2.0, interval=300, pause=20.0, write=30.0)
FLEET = Fleet(devices=1024, device_hours=5000.0, slow_hours=2500.0)


@pytest.mark.parametrize("seed", range(5))
def test_seconds_by_use_add_up_to_the_whole_run(seed):
    run = simulate(JOB, FLEET, 10, seed)
    assert run.failures > 10
    assert run.kept.slow > 0
    assert run.kept.total + run.lost + run.restart == pytest.approx(run.wall, rel=1e-9)
    busy = sum(one.end - one.start for one in run.segments if one.kind != "lost")
    assert busy == pytest.approx(run.wall, rel=1e-9)
    assert sum(one.end - one.start for one in run.segments if one.kind == "lost") == pytest.approx(run.lost, rel=1e-6)


def test_without_events_only_checkpoints_cost():
    run = simulate(JOB, Fleet(devices=1, device_hours=1e8, slow_hours=math.inf), 31, 0)
    assert run.failures == 0
    assert run.goodput == pytest.approx(600 / 620, rel=1e-3)


def test_lost_time_is_half_an_interval_and_the_time_to_write():
    job = Job(step=1.0, interval=3600, pause=1e-6, write=600.0)
    fleet = Fleet(devices=1, device_hours=100.0, slow_hours=math.inf, restart=60.0)
    runs = [simulate(job, fleet, 365, seed) for seed in range(20)]
    each = sum(run.lost for run in runs) / sum(run.failures for run in runs)
    assert each == pytest.approx(1800 + 600, rel=0.05)


def test_the_best_interval_is_near_daly_where_checkpoints_cost():
    job = Job(step=1.0, interval=60, pause=60.0, write=0.0)
    fleet = Fleet(devices=100, device_hours=1000.0, slow_hours=math.inf, restart=300.0)
    result = simulate_plan(job, fleet, 60, 10, 1e6)
    assert result.daly == pytest.approx(daly_interval(job, 36000.0), abs=1)
    assert young_interval(job, 36000.0) == pytest.approx(math.sqrt(2 * 60 * 36000))
    assert 0.4 < result.best.interval / result.daly < 2.5
    assert result.best.mean > result.goodput.mean + 0.3
    assert result.best.low <= result.best.mean <= result.best.high
    assert sum(result.shares.values()) == pytest.approx(1)


def test_the_published_run_has_its_effective_time():
    """Llama 3 (arXiv 2407.21783): 16,384 devices, 54 days, about 419 interruptions, more than 90 % effective training."""
    job = Job(step=15.0, interval=100, pause=5.0, write=60.0)
    runs = [simulate(job, Fleet(devices=16384), 54, seed) for seed in range(8)]
    assert sum(run.failures for run in runs) / 8 == pytest.approx(419, rel=0.05)
    assert 0.80 < sum(run.effective for run in runs) / 8 < 0.97


@pytest.mark.parametrize("stages", [1, 2, 4])
def test_a_step_of_equal_stages_takes_the_time_of_the_closed_form(stages):
    passes = one_forward_one_backward([3.0] * stages, 8)
    assert len(passes) == 2 * 8 * stages
    assert max(one.end for one in passes) == pytest.approx(3.0 * (8 + stages - 1))


@pytest.mark.parametrize(
    "values", [{"device_hours": 0}, {"device_hours": -5}, {"restart": math.nan}, {"device_hours": math.inf}]
)
def test_values_that_are_no_durations_are_refused(values):
    with pytest.raises(UserError, match=r"is not a number of"):
        check_fleet(Fleet(devices=8, **values), 30)


@pytest.mark.parametrize("days", [0.0, -1.0, math.nan, math.inf, 1e9])
def test_days_that_are_no_duration_are_refused(days):
    with pytest.raises(UserError, match="--simulate"):
        check_fleet(Fleet(devices=8), days)


PLAN = ["--recipe", "xlmr-base", "--cluster", "8xH100", "parallel.tensor=1", "parallel.pipeline=1"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--simulate", "30", "--mtbf", "1"], "less than a restart"),
        (["--simulate", "3000", "--mtbf", "9", "--restart", "1"], "events a run"),
        (["--mtbf", "9"], "add --simulate"),
        (["--simulate", "30", "--seeds", "0"], "--seeds 0"),
        (["--simulate", "30", "--checkpoint_pause", "-1"], "--checkpoint_pause -1"),
        (["--simulate", "30", "--scale", "8"], "two questions"),
        (["--pictures", "x"], "--pictures"),
        (["--scale", "0,8"], "--scale '0,8'"),
        (["--scale", "8,12"], "full nodes of 8"),
    ],
)
def test_bad_options_end_in_one_sentence(words, sentence):
    with pytest.raises(UserError, match=sentence):
        main([*PLAN[:4], *words, *PLAN[4:]])


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "simpy", None)
    with pytest.raises(UserError, match="pip install"):
        simulate(JOB, FLEET, 1, 0)


def test_the_command_writes_pictures_and_plain_values(tmp_path, capsys):
    main([*PLAN[:4], "--simulate", "30", "--seeds", "3", "--json", "--pictures", str(tmp_path), *PLAN[4:]])
    result = json.loads(capsys.readouterr().out)["simulation"]
    assert 0.9 < result["goodput"]["mean"] < 1
    assert {one["interval"] for one in result["tried"]} >= {result["best"]["interval"], 1000}
    assert "stage 0" in (tmp_path / "step.svg").read_text(encoding="utf-8")
    assert "goodput" in (tmp_path / "run.svg").read_text(encoding="utf-8")


def test_sizes_are_compared_in_one_table(tmp_path, capsys):
    main([*PLAN[:4], "--scale", "1,8,16", "--json", "--pictures", str(tmp_path), *PLAN[4:]])
    rows = json.loads(capsys.readouterr().out)["scale"]
    assert [row["devices"] for row in rows] == [1, 8, 16]
    assert rows[0]["efficiency"] == 1
    assert rows[0]["tokens_per_second"] < rows[1]["tokens_per_second"] < rows[2]["tokens_per_second"]
    assert (tmp_path / "scale.svg").read_text(encoding="utf-8").startswith("<?xml")
