"""`make demo` on machines with any number of devices."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from dist_metaxlm import logs
from dist_metaxlm.data.steps import check_batches
from dist_metaxlm.errors import UserError
from dist_metaxlm.launching.demo_launcher import command, most_ranks
from dist_metaxlm.recipe.load import load_recipe

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("devices", "ranks"), [(1, 1), (2, 2), (3, 2), (4, 4), (5, 4), (6, 4), (7, 4), (8, 8), (16, 16)])
def test_any_number_of_devices_gets_ranks_that_the_demo_takes(devices: int, ranks: int) -> None:
    recipe = load_recipe("quickstart", [])
    assert most_ranks(recipe, devices) == ranks
    for name in ("meta", "cross"):
        check_batches(recipe.phase(name), name, ranks)


def test_devices_are_those_that_are_visible(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up(all_to_stderr=True)
    recipe = load_recipe("quickstart", [])
    assert command(recipe, [], 8) == ["deepspeed", "--log_level", "error", "--num_accelerators", "2"]
    assert command(recipe, ["2", "5"], 8) == ["deepspeed", "--log_level", "error", "--include", "localhost:2,5"]
    assert command(recipe, ["1", "4", "6"], 8)[-1] == "localhost:1,4"
    assert (
        "using 2 of 3 devices: no larger number divides the batches of recipe quickstart evenly" in capsys.readouterr().err
    )
    assert command(recipe, ["MIG-4a2f"], 8) == ["python"]
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES=GPU-1,GPU-2 does not name devices by number"):
        command(recipe, ["GPU-1", "GPU-2"], 8)


def test_tensor_groups_are_kept_whole() -> None:
    assert most_ranks(load_recipe("quickstart", ["parallel.tensor=2"]), 7) == 4


def test_the_demo_does_not_train_with_a_command_that_failed(tmp_path: Path) -> None:
    """The Makefile's LAUNCH in a shell: the words come first, and what they cannot be is the end."""
    lines = (ROOT / "Makefile").read_text(encoding="utf-8").splitlines()
    line = next(line for line in lines if line.startswith("LAUNCH = "))
    words = line.removeprefix("LAUNCH = ").replace("$(COMMAND)", "$(exit 2)").replace("$$", "$")
    words = words.replace("$(DEVICE)", "cpu").replace("$(abspath $(BIN))", str(tmp_path))
    done = subprocess.run(["sh", "-c", f"{words} touch {tmp_path / 'trained'}"], check=False)
    assert done.returncode == 2
    assert not (tmp_path / "trained").exists()
