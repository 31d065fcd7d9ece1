"""The examples of docs/examples: the notebook runs by its cells; recipes load and fit; commands of the scripts parse."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from dist_metaxlm.planning.cluster import parse_cluster
from dist_metaxlm.planning.plan import plan
from dist_metaxlm.recipe.load import load_recipe

EXAMPLES = Path(__file__).resolve().parents[1] / "docs" / "examples"
BIN = Path(sys.executable).parent


def test_every_cell_of_the_notebook_runs(tiny_recipe: Path, tmp_path: Path) -> None:
    notebook = json.loads((EXAMPLES / "two-phases.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    assert cells[0]["metadata"]["tags"] == ["parameters"]
    short = ["phases.meta.steps=2", "phases.cross.steps=2", "training.checkpoint_interval=2"]
    values = {"RECIPE": str(tiny_recipe), "OVERRIDES": short, "RUN": str(tmp_path / "run"), "MIN_CANDIDATES": 5}
    assert {line.split(" = ")[0] for line in cells[0]["source"]} == values.keys()
    code = ["".join(cell["source"]) for cell in cells[1:]]
    program = "\n".join([*(f"{name} = {value!r}" for name, value in values.items()), *code, "print(logits.shape[-1])"])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split()[-1] == "380"


@pytest.mark.parametrize("name", ["from-xlmr", "ten-languages"])
def test_recipes_load_and_fit_on_one_machine(name: str) -> None:
    recipe = load_recipe(EXAMPLES / name / "recipe.yaml")
    assert recipe.name == name
    asked = recipe.parallel.layout(8)
    layouts = [best.layout for best in plan(recipe, parse_cluster("1x8xH100"))]
    assert any((one.tensor, one.pipeline, one.data) == (asked.tensor, asked.pipeline, 8) for one in layouts)


def commands(script: Path) -> list[list[str]]:
    """The `metaxlm` and `torchrun -m` commands of a script as (command, words...), with example values for variables."""
    text = re.sub(r"\\\n", " ", script.read_text(encoding="utf-8"))
    example = {"model": "m", "recipe": "quickstart", "gpus": "8", "phase": "meta", "name": "n"}
    text = re.sub(r"\$(\w+)", lambda match: example.get(match[1], "x"), text)
    pattern = r"(?:metaxlm|torchrun .*? -m dist_metaxlm\.cli\.)\s*((?:convert|prepare|evaluate|pretrain|launch) [^\n>]*)"
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    matches = [match for line in lines for match in re.findall(pattern, line)]
    return [shlex.split(match.rstrip('"') if match.count('"') % 2 else match) for match in matches]


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*/*.sh")), ids=lambda path: path.parent.name)
def test_scripts_have_valid_syntax_and_options(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    asked = commands(script)
    assert len(asked) >= 2
    for command, *words in asked:
        if command == "prepare":
            assert words[0] == "--recipe"  # its parser is not apart from its work
        else:
            import_module(f"dist_metaxlm.cli.{command}").parse(words)  # exits for an unknown option


def test_the_jobs_of_the_slurm_chain_wait_for_each_other(tmp_path: Path) -> None:
    stub = tmp_path / "sbatch"
    stub.write_text('#!/bin/bash\necho "PHASES=$PHASES $*" >> log\necho "$(wc -l < log);cluster"\n')
    stub.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{BIN}:{os.environ['PATH']}", "NODES": "2", "PHASES": ""}
    command = ["bash", EXAMPLES / "slurm-chain" / "submit.sh", "xlmr-base", "seed=2"]
    subprocess.run(command, check=True, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
    meta, cross, evaluate = (tmp_path / "log").read_text().splitlines()
    assert meta.startswith("PHASES=meta --parsable --job-name=xlmr-base-meta --nodes=2 --ntasks-per-node=8")
    assert "--dependency" not in meta
    assert "PHASES=cross" in cross
    assert "--dependency=afterok:1 " in cross
    assert cross.endswith("slurm.sbatch --recipe xlmr-base --run_dir runs/xlmr-base seed=2")
    assert "--dependency=afterok:2 " in evaluate
    assert (tmp_path / "slurm.sbatch").read_text().startswith("#!/bin/bash")
