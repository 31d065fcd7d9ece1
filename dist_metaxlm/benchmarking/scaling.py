"""Strong and weak scaling over data, tensor and pipeline parallel ranks, side by side on one machine.

Strong: the recipe's batch, over more ranks. Weak: a batch that grows with the ranks, so that a rank's share of the work
stays. On CPU one rank uses all cores and several share them, so the figures show what a layout costs, not what it gains.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from dist_metaxlm.data.prepare import prepare
from dist_metaxlm.errors import UserError
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.recipe.schema import PairObjective, Recipe
from dist_metaxlm.training.run_folder import environment

KINDS = {"data": "parallel.zero_stage=1", "tensor": "parallel.tensor={}", "pipeline": "parallel.pipeline={}"}


def measure_scaling(recipe_name: str, overrides: list[str], phase: str, rank_counts: list[int], steps: int,
                    repeats: int) -> dict[str, Any]:
    """Train `steps` steps of a phase in every layout; each is repeated in turn and the median counts.

    Raises:
        UserError: when the recipe has no such phase, or a layout is refused (by the ranks themselves).
    """
    recipe = load_recipe(recipe_name, overrides)
    if phase not in recipe.phases:
        raise UserError(f"recipe {recipe.name} has no phase {phase!r}; it has {', '.join(recipe.phases)}")
    prepare(recipe, lambda line: None)
    jobs = _jobs(recipe, recipe_name, overrides, phase, rank_counts, steps)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in jobs}
    for _ in range(repeats):
        for name, (ranks, job) in jobs.items():
            runs[name].append(_run(ranks, job))
    rows = [_row(name, jobs[name][0], found) for name, found in runs.items()]
    alone = next(row for row in rows if row["ranks"] == 1)
    for row in rows:
        row["speed_up"] = round(row["tokens_per_second"] / alone["tokens_per_second"], 3)
        row["efficiency"] = round(row["speed_up"] / row["ranks"], 3)
    return {"recipe": recipe.name, "phase": phase, "steps": steps, "repeats": repeats, "rows": rows,
            "environment": environment()}


def _jobs(recipe: Recipe, name: str, overrides: list[str], phase: str, rank_counts: list[int],
          steps: int) -> dict[str, tuple[int, dict[str, Any]]]:
    """`scaling kind ranks` -> (ranks, job of a worker)."""
    common = {"recipe": name, "phase": phase, "steps": steps}
    jobs = {"alone none 1": (1, {**common, "overrides": overrides})}
    for scaling in ("strong", "weak"):
        for kind, override in KINDS.items():
            for ranks in (count for count in rank_counts if count > 1):
                larger = _larger_batch(recipe, phase, ranks) if scaling == "weak" else []
                jobs[f"{scaling} {kind} {ranks}"] = (
                    ranks, {**common, "overrides": [*overrides, override.format(ranks), *larger]})
    return jobs


def _larger_batch(recipe: Recipe, phase: str, times: int) -> list[str]:
    """Overrides that multiply every objective's batch; contrast gets more groups, of the same size."""
    found = []
    for objective in recipe.phases[phase].objectives:  # type: ignore[index]
        field, value = (("pairs", objective.pairs) if isinstance(objective, PairObjective)
                        else ("batch_tokens", objective.batch_tokens))
        found.append(f"phases.{phase}.objectives.{objective.name}.{field}={value * times}")
    return found


def _run(ranks: int, job: dict[str, Any]) -> dict[str, Any]:
    """Start the ranks of one job on this machine and return what the first prints."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "dist_metaxlm.benchmarking.scaling_worker", json.dumps(job)]
    processes = [subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={
        **os.environ, "RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}) for rank in range(ranks)]
    outcomes = [process.communicate() for process in processes]
    for process, (_, error) in zip(processes, outcomes, strict=True):
        if process.returncode == 2:
            raise UserError(error.strip().splitlines()[-1])
        if process.returncode:
            raise RuntimeError(f"{ranks} ranks with {job['overrides']} failed:\n{error[-2000:]}")
    return dict(json.loads(outcomes[0][0].strip().splitlines()[-1]))


def _row(name: str, ranks: int, found: list[dict[str, Any]]) -> dict[str, Any]:
    scaling, kind, _ = name.split()
    seconds = statistics.median(run["seconds_per_step"] for run in found)
    return {"scaling": scaling, "kind": kind, "ranks": ranks, "tokens_per_step": found[0]["tokens_per_step"],
            "seconds_per_step": round(seconds, 4), "seconds_of_runs": [round(run["seconds_per_step"], 4) for run in found],
            "tokens_per_second": round(found[0]["tokens_per_step"] / seconds, 1),
            "communication_share": round(statistics.median(run["communication_share"] for run in found), 4)}


def table(result: dict[str, Any]) -> str:
    """The rows as a Markdown table."""
    head = ["| scaling | over | ranks | tokens a step | s a step | tokens/s | speed-up | efficiency | in communication |",
            "|---|---|---|---|---|---|---|---|---|"]
    return "\n".join([*head, *(
        f"| {row['scaling']} | {row['kind']} | {row['ranks']} | {row['tokens_per_step']:,} | "
        f"{row['seconds_per_step']:.3f} | {row['tokens_per_second']:,.0f} | {row['speed_up']:.2f} | "
        f"{row['efficiency']:.0%} | {row['communication_share']:.0%} |" for row in result["rows"])])


def plot(result: dict[str, Any], path: Path) -> None:
    """Speed-up over ranks, one line for each kind; full lines strong, dashed weak scaling.

    Dotted what would be free of cost: as many times the speed as ranks on devices of their own, the same on shared cores.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    counts = sorted({row["ranks"] for row in result["rows"]})
    ideal = counts if result["environment"]["devices"] else [1] * len(counts)
    axes.plot(counts, ideal, ":", color="grey", label="free of cost")
    for number, kind in enumerate(KINDS):
        for scaling, line in (("strong", "-"), ("weak", "--")):
            points = [(1, 1.0), *((row["ranks"], row["speed_up"]) for row in result["rows"]
                                  if (row["scaling"], row["kind"]) == (scaling, kind))]
            axes.plot(*zip(*points, strict=True), line, marker="o", color=f"C{number}", label=f"{kind}, {scaling}")
    axes.set(xlabel="ranks", ylabel="tokens/s against one rank", xticks=counts, ylim=0,
             title=f"{result['recipe']}, {result['environment']['device']}, {result['environment']['cpu_cores']} cores")
    axes.title.set_fontsize(9)
    axes.legend(fontsize=8)
    figure.savefig(path)
