"""Every command of the README runs, with few steps and a narrow model where it would train for minutes; a command without a
rule here fails."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dist_metaxlm.errors import UserError
from dist_metaxlm.recipe.load import load_recipe

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
SHORT = (
    "phases.meta.steps=4",
    "phases.cross.steps=4",
    "phases.joint.steps=4",
    "training.log_interval=2",
    "training.checkpoint_interval=4",
    "data.tokenizer.sample_bytes=1000000",
    "data.heldout_strings=500",
    "model.layers=3",
    "model.hidden=32",
    "model.heads=2",
    "model.ffn=64",
)


def readme_commands() -> list[str]:
    """Lines of the README's fenced blocks that have no language."""
    commands, fence = [], None
    for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            fence = line[3:] if fence is None else None
        elif fence == "" and line.strip():
            commands.append(line)
    return commands


COMMANDS = readme_commands()


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the quickstart data prepared in it (and no run); skipped where the wheels cannot be had."""
    from dist_metaxlm.preparation.prepare import prepare

    folder = tmp_path_factory.mktemp("readme")
    recipe = load_recipe("quickstart", [*SHORT, f"data.directory={folder / 'data'}"])
    try:
        prepare(recipe, lambda line: None)
    except UserError as error:
        pytest.skip(f"no quickstart corpus: {error}")
    return folder


def run(command: list[str], code: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}  # ranks share the cores by themselves
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=400, check=False)
    assert result.returncode == code, f"{command}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}"
    return result


def short(place: Path) -> list[str]:
    return [*SHORT, f"data.directory={place / 'data'}"]


def test_make_demo(place: Path) -> None:
    assert COMMANDS[0] == "make demo"
    overrides = " ".join(short(place))
    # The tests run in an environment that `make` has set up already; VENV= names it, so nothing is installed again.
    run(["make", "demo", f"VENV={BIN.parent}", f"RUN={place / 'demo'}", f"ARGS={overrides}", "-o", f"{BIN.parent}/.ready"])
    summary = json.loads((place / "demo" / "summary.json").read_text(encoding="utf-8"))
    assert summary["phases"]["cross"]["steps"] == 4
    # With fewer than 400 candidates evaluation has no figure of all languages.
    assert summary["evaluation"]["cross"]["candidates_min"] >= 400
    assert len(summary["fill_mask"]) == 3
    page = (place / "demo" / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") >= 4
    assert not re.search(r"""(src|href)=["']https?:""", page)


def test_make_test_is_what_ci_runs() -> None:
    assert "make test" in COMMANDS
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_both_phases_by_their_plain_commands(place: Path) -> None:
    for phase in ("meta", "cross"):
        command = f"deepspeed launch/pretrain.py --phase {phase}"
        assert command in COMMANDS
        result = run([*command.split(), "--run_dir", str(place / "plain"), *short(place)])
        assert f"phase {phase} finished: 4 steps" in result.stdout


def rest() -> list[str]:
    plain = {"make demo", "make test", *(f"deepspeed launch/pretrain.py --phase {phase}" for phase in ("meta", "cross"))}
    return [command for command in COMMANDS if command not in plain]


def run_own(words: list[str], place: Path) -> None:
    """A command of "Your own text", on files that are written here."""
    corpus = place / "corpus"
    if not corpus.is_dir():
        (corpus / "en").mkdir(parents=True)
        sides = [[" ".join(f"{code}{n * k % 97}" for k in range(1, 9)) + f" {n}" for n in range(300)] for code in ("a", "b")]
        (corpus / "en" / "a.txt").write_text("\n\n".join(sides[0]), encoding="utf-8")
        (corpus / "sw.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in sides[1]), encoding="utf-8")
        pairs = "".join(f"{left}\t{right}\n" for left, right in zip(*sides, strict=True))
        (corpus / "en-sw.tsv").write_text(pairs, encoding="utf-8")
    words = [word.replace("corpus/", f"{corpus}/").replace("mine.yaml", f"{place}/mine.yaml") for word in words]
    if "launch/init.py" in words:
        assert "wrote" in run(words).stdout
        return
    own = [f"data.directory={place / 'mine'}", "phases.meta.steps=2", "training.log_interval=2"]
    training = ["--run_dir", str(place / "own")] if "launch/pretrain.py" in words else []
    result = run([*words, *training, *own])
    assert not training or "finished: 2 steps" in result.stdout


@pytest.mark.parametrize("command", rest())
def test_command(command: str, place: Path) -> None:
    words = command.replace("runs/", f"{place}/").split()
    demo = place / "demo"
    if "mine.yaml" in words:
        run_own(words, place)
    elif "launch/pretrain.py" in words and "--hostfile" not in words:
        words = [w for w in words if not w.startswith("phases.")] + short(place)
        assert "finished: 4 steps" in run(words).stdout
    elif "--hostfile" in words:
        # No second machine here: what would run is shown, and in one process it gets as far as the data of the user.
        hosts = place / "hosts"
        hosts.write_text("node1 slots=8\nnode2 slots=8\n", encoding="utf-8")
        plan = [str(hosts) if word == "hosts" else word for word in words]
        assert "16 ranks on 2 nodes" in run([*plan[: plan.index("--")], "--dry_run", *plan[plan.index("--") :]]).stdout
        error = run([sys.executable, *words[words.index("launch/pretrain.py") :]], code=2).stderr
        assert "data.text" in error
    elif "launch/prepare.py" in words:
        run([*words, *short(place)])
    elif "launch/evaluate.py" in words or "launch/convert.py" in words:
        assert demo.is_dir(), "make demo comes first"
        run([word.replace(f"{place}/quickstart", str(demo)) for word in words])
    elif "launch/plan.py" in words:
        assert "fits" in run(words).stdout
    elif "launch/benchmark.py" in words:
        result = run([*words, "--steps", "1", "--batch_tokens", "512", "--json", *short(place)])
        figures = json.loads(result.stdout)
        assert figures["largest_loss_difference"] < 1e-3
        assert figures["ratio"] > 0
    else:
        pytest.fail(f"no rule runs the README's command {command!r}")
