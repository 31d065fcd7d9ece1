"""Every fenced command of the pages on launchers is one that our scripts accept; a command without a rule here fails."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from dist_metaxlm.invocation import MODULE, SCRIPTS
from dist_metaxlm.launching import launch_job as starting

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "docs" / "launching.md", *sorted((ROOT / "docs" / "launchers").glob("*.md"))]


def commands() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for block in re.findall(r"^```\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.M | re.S):
            found += [(page.name, line) for line in block.splitlines() if line.strip()]
    return found


def parsed(script: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    name = next(name for name, path in SCRIPTS.items() if script == f"launch/{path}")
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    return importlib.import_module(f"{MODULE}.{name}").parse()  # type: ignore[no-any-return]


@pytest.mark.parametrize(("page", "line"), commands())
def test_commands_of_the_pages(page: str, line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    words = shlex.split(line)
    monkeypatch.chdir(ROOT)
    if words[:2] == ["python", "launch/nodes/start.py"]:
        found = parsed(words[1], words[2:], monkeypatch)
        hosts, lines = tmp_path / "hosts", []
        hosts.write_text("node1 slots=8\nnode2 slots=8\n")
        monkeypatch.setattr("dist_metaxlm.launching.commands.beside_python", lambda name: name)
        starting.start(
            starting.Request(str(hosts), found.launcher, None, found.master_port, True, tuple(found.script[1:])),
            lines.append,
        )
        assert "16 ranks on 2 nodes" in lines[0]
        return
    if words[0] == "sbatch":
        script = next(word for word in words if word.endswith(".sbatch"))
        subprocess.run(["bash", "-n", str(ROOT / script)], check=True)
        words = ["pretrain", "launch/pretrain.py", "--phase", "meta", *words[words.index(script) + 1 :]]
    assert words[0] in ("python", "deepspeed", "torchrun", "mpirun", "srun", "pretrain"), f"{page}: no rule for {line}"
    place = next(number for number, word in enumerate(words) if word.startswith("launch/"))
    parsed(words[place], words[place + 1 :], monkeypatch)
