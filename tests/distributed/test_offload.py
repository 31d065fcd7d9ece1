"""An offloaded optimiser makes the updates of one process, whatever parameters a step's objectives reach.

`make precision` takes the whole product of what is combined in pairs here (precision_table.py).
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from layouts import ORDERS, SHARDED, Case, order_case, run_cases, single_process

from dist_metaxlm.data.steps import StepPlan
from dist_metaxlm.recipe.load import load_recipe

STEPS = 8
PRECISIONS = ("fp32", "bf16")
# Every order under every sharding; precisions change places, so that each of them meets every order and sharding.
PAIRS = [(order, sharding, PRECISIONS[(i + j) % 2]) for i, order in enumerate(ORDERS) for j, sharding in enumerate(SHARDED)]
RUNS: dict[tuple[str, str, str, bool], Case] = {
    **{(order, "ZeRO-0", "fp32", False): order_case(order, "ZeRO-0", "fp32", False) for order in ORDERS},
    **{(*pair, True): order_case(*pair, True) for pair in PAIRS},
    **{(*pair, False): order_case(*pair, False) for pair in PAIRS if pair[2] == "bf16"},
}
MISSING = "drawn ones miss layers"
OFFLOAD = "parallel.offload_optimizer=true"
SETTINGS = {
    "deepspeed={zero_optimization: {round_robin_gradients: true}}": {1, 2},
    "deepspeed={zero_optimization: {parameter_alignment: true}}": set(),
    "deepspeed={zero_optimization: {sub_group_size: 100, reduce_scatter: false, contiguous_gradients: false}}": set(),
    "deepspeed={zero_optimization: {zero_hpz_partition_size: 2, stage3_param_persistence_threshold: 0}}": set(),
    "deepspeed={zero_optimization: {offload_param: {device: cpu}}}": set(),
}
OVERFLOWS = [[*order_case("one drawn a step", "ZeRO-2", "bf16", offload).overrides] for offload in (False, True)]


def stages(setting: str) -> tuple[int, ...]:
    return (3,) if "offload_param" in setting or "hpz" in setting else (1, 2)


def split_at(tiny_recipe: Path) -> int:
    """A step in the middle of STEPS whose objective misses layers, and the one before does not."""
    recipe = load_recipe(tiny_recipe, ORDERS[MISSING])
    plan = StepPlan(recipe.phases["joint"], "joint", recipe.seed, 0, 1, None)
    names = [plan.at(step)[0].objective.name for step in range(STEPS)]
    return next(step for step in range(1, STEPS) if names[step - 1 : step + 1] == ["mlm", "contrast"])


@pytest.fixture(scope="module")
def trained(
    tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory, run_ranks: Callable[..., str]
) -> tuple[dict[Any, dict[str, Any]], Path]:
    """Results of RUNS, and of one run that is stopped before a step that misses layers and resumed; the worker's folder."""
    folder, split = tmp_path_factory.mktemp("offload"), split_at(tiny_recipe)
    stopped, resumed = (order_case(MISSING, "ZeRO-1", "fp32", True) for _ in range(2))
    stopped.save, stopped.steps = True, split
    resumed.resume, resumed.steps = True, STEPS - split
    cases = {**RUNS, "stopped": stopped, "resumed": resumed, "whole": order_case(MISSING, "ZeRO-1", "fp32", True)}
    results = run_cases(
        run_ranks,
        tiny_recipe,
        folder / "results.json",
        2,
        list(cases.values()),
        STEPS,
        worker="worker_offload.py",
        settings=[[f"parallel.zero_stage={stage}", text] for text in SETTINGS for stage in stages(text)],
        overflows=OVERFLOWS,
    )
    return dict(zip(cases, results, strict=True)), folder


@pytest.mark.parametrize("order", ORDERS)
def test_in_fp32_it_is_what_one_process_does(order: str, trained: Any, tiny_recipe: Path) -> None:
    single = single_process(tiny_recipe, "xlmr", STEPS, ORDERS[order])
    compared = [(key, found) for key, found in trained[0].items() if key[0] == order and key[2] == "fp32"]
    assert len(compared) == 3
    for key, found in compared:
        assert found["losses"] == pytest.approx(single["losses"], rel=1e-6), key
        assert found["norms"] == pytest.approx(single["norms"], rel=1e-6), key
        assert found["weights"] == pytest.approx(single["weights"], rel=1e-5), key


@pytest.mark.parametrize("pair", [pair for pair in PAIRS if pair[2] == "bf16"], ids=str)
def test_in_bf16_it_is_bitwise_what_is_done_without(pair: tuple[str, str, str], trained: Any) -> None:
    offload, plain = trained[0][*pair, True], trained[0][*pair, False]
    assert offload["losses"] == plain["losses"]
    assert offload["final"] == plain["final"]
    assert offload["norms"] == pytest.approx(plain["norms"], rel=1e-6)


def test_a_run_resumed_before_a_step_that_misses_layers_is_bitwise_the_whole_one(trained: Any) -> None:
    stopped, resumed, whole = (trained[0][name] for name in ("stopped", "resumed", "whole"))
    assert resumed["first"] == len(stopped["losses"]) > 0
    for name in ("losses", "norms"):
        assert stopped[name] + resumed[name] == whole[name]
    assert resumed["final"] == whole["final"]


def test_a_setting_under_which_checkpoints_hold_other_weights_is_refused(trained: Any) -> None:
    for rank in (0, 1):
        refusals, _ = json.loads((trained[1] / f"refusals-{rank}.json").read_text())
        sentences = dict(zip([(t, s) for t in SETTINGS for s in stages(t)], refusals, strict=True))
        for (setting, stage), sentence in sentences.items():
            assert bool(sentence) == (stage in SETTINGS[setting]), (setting, stage, sentence)
            if sentence:
                assert sentence.startswith("with zero_optimization.round_robin_gradients DeepSpeed keeps the fp32 weights (")
                assert sentence.count("\n") == 0


def test_a_step_that_overflows_is_in_no_later_one(trained: Any) -> None:
    _, norms = json.loads((trained[1] / "refusals-0.json").read_text())
    plain, offload = norms
    assert [math.isfinite(norm) for norm in plain] == [math.isfinite(norm) for norm in offload] == [False, True, True]
    assert offload == plain
