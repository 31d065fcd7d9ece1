"""The sdist and the wheel made from it, installed in a bare environment and used outside of the checkout.

The environment sees the dependencies of the tests' own environment and nothing of the checkout; nothing is downloaded.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from dist_metaxlm.parallel.topology import free_port

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
BUILD_SDIST = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
TINY = {
    "name": "mine",
    "model": {"layers": 1, "hidden": 16, "heads": 2, "ffn": 32, "vocab_size": 320, "max_positions": 64},
    "data": {"directory": "data/mine", "corpus": "files", "text": {"en": ["en.txt"]}, "heldout_strings": 5},
    "training": {"log_interval": 1, "checkpoint_interval": 2},
    "phases": {
        "meta": {
            "steps": 2,
            "sequence_length": 32,
            "learning_rate": {"peak": 1e-3},
            "objectives": [{"name": "mlm", "batch_tokens": 128}],
        }
    },
}


@dataclass(frozen=True)
class Installed:
    """The bare environment and the empty folder that commands run in."""

    bin: Path
    folder: Path
    sdist: Path
    wheel: Path

    def run(self, *words: str | Path, code: int = 0) -> str:
        """A command of the environment by its bare name, in the folder; its output."""
        own = ("PYTHONPATH", "VIRTUAL_ENV", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        kept = {name: value for name, value in os.environ.items() if name not in own}
        environment = {**kept, "PATH": f"{self.bin}:{BIN}:{os.environ['PATH']}", "DS_ACCELERATOR": "cpu"}
        result = subprocess.run(
            [str(self.bin / words[0]), *map(str, words[1:])],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert result.returncode == code, f"{words}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}"
        return result.stdout if code == 0 else result.stderr


def _not_in_the_repository(folder: str, names: list[str]) -> set[str]:
    """What a clone does not have: environments, data, runs, build output."""
    made = {name for name in names if name == "__pycache__" or name.endswith((".so", ".egg-info", "_cache"))}
    return made | (
        {".git", ".venv", ".hypothesis", "runs", "data", "build", "dist"} & {*names} if Path(folder) == ROOT else set()
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    place = tmp_path_factory.mktemp("wheel")
    source, built, bare, folder = (place / name for name in ("source", "built", "bare", "empty"))
    shutil.copytree(ROOT, source, symlinks=True, ignore=_not_in_the_repository)
    folder.mkdir()
    subprocess.run([sys.executable, "-c", BUILD_SDIST, str(built)], cwd=source, check=True, capture_output=True)
    [sdist] = built.glob("*.tar.gz")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    offline = ["--no-deps", "--no-index"]
    wheel_words = ["wheel", "--no-build-isolation", *offline, "--wheel-dir", str(built), str(sdist)]
    subprocess.run([*pip, *wheel_words], check=True, cwd=folder, capture_output=True)
    [wheel] = built.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    subprocess.run([*pip, "--python", str(bare / "bin" / "python"), "install", *offline, str(wheel)], check=True, cwd=folder)
    # A plain line adds a folder without reading its .pth files: the editable install of the checkout stays invisible.
    for name in ("purelib", "platlib"):
        site = Path(sysconfig.get_path("purelib", vars={"base": str(bare)}))
        (site / f"dependencies-{name}.pth").write_text(f"{sysconfig.get_path(name)}\n", encoding="utf-8")
    return Installed(bare / "bin", folder, sdist, wheel)


@pytest.fixture(scope="module")
def own_text(installed: Installed) -> Path:
    """A recipe of its own text in the folder."""
    draw = random.Random(5)
    words = ["".join(draw.choices("etaoinshrdlu", k=draw.randrange(2, 8))) for _ in range(400)]
    lines = [" ".join(draw.choices(words, k=9)) + ("\n" if number % 4 == 3 else "") for number in range(800)]
    (installed.folder / "en.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (installed.folder / "mine.yaml").write_text(yaml.safe_dump(TINY), encoding="utf-8")
    return installed.folder / "mine.yaml"


def test_the_archives_hold_what_the_package_reads(installed: Installed) -> None:
    with zipfile.ZipFile(installed.wheel) as archive:
        names = set(archive.namelist())
    places = {"dist_metaxlm": "dist_metaxlm", "kernels": "dist_metaxlm/kernels", "ds_configs": "dist_metaxlm/ds_configs"}
    for folder, place in places.items():
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".yaml", ".json", ".cu", ".cuh", ".h", ".sbatch", ".typed"):
                assert f"{place}/{path.relative_to(ROOT / folder)}" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests/", "launch/", "kernels/")) or name.endswith(".so")]
    with tarfile.open(installed.sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {"CITATION.cff", "CHANGELOG.md", "LICENSE", "launch/pretrain.py", "launch/nodes/slurm.sbatch"} <= inside


def test_the_package_is_not_that_of_the_checkout(installed: Installed) -> None:
    code = "import dist_metaxlm, dist_metaxlm.kernels as k, dist_metaxlm.ds_configs as d; print(dist_metaxlm.__version__)\n"
    shown = installed.run("python", "-c", code + "for m in (dist_metaxlm, k, d): print(m.__file__)").split()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert shown[0] == project["version"]
    assert len(shown) == 4
    assert all(Path(path).is_relative_to(installed.bin.parent) for path in shown[1:])


def test_help_version_and_a_mistake(installed: Installed) -> None:
    shown = installed.run("metaxlm", "--help")
    for command in ("pretrain", "prepare", "evaluate", "convert", "plan", "benchmark", "study", "launch", "preflight"):
        assert f"\n  {command} " in shown
        assert f"usage: metaxlm {command}" in installed.run("metaxlm", command, "--help")
    assert installed.run("metaxlm", "--version").startswith("dist-metaxlm ")
    assert "metaxlm has no command prepair, did you mean prepare?" in installed.run("metaxlm", "prepair", code=2)
    assert "`metaxlm plan --help` has examples" in installed.run("metaxlm", "plan", code=2)


def test_a_plan_and_the_slurm_script(installed: Installed) -> None:
    assert "fits" in installed.run("metaxlm", "plan", "--recipe", "xlmr-large", "--cluster", "16x8xH100")
    script = installed.run("metaxlm", "launch", "--slurm_script")
    assert script.startswith("#!/bin/bash\n")
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_a_job_on_nodes_is_shown(installed: Installed, own_text: Path) -> None:
    (installed.folder / "hosts").write_text("node1 slots=2\n", encoding="utf-8")
    words = ("launch", "--hostfile", "hosts", "--dry_run", "--", "pretrain", "--phase", "meta", "--recipe", "mine.yaml")
    shown = installed.run("metaxlm", *words)
    assert "2 ranks on 1 node" in shown
    assert "--module dist_metaxlm.cli.pretrain --phase meta" in shown


def test_a_phase_is_trained_by_the_command_and_by_the_launcher(installed: Installed, own_text: Path) -> None:
    common = ("--phase", "meta", "--recipe", "mine.yaml", "--run_dir")
    assert "phase meta finished: 2 steps" in installed.run("metaxlm", "pretrain", *common, "runs/command")
    launcher = (BIN / "deepspeed", "--num_accelerators", "2", "--master_port", str(free_port()))
    module = ("--module", "dist_metaxlm.cli.pretrain")
    shown = installed.run("python", *launcher, *module, *common, "runs/launcher")
    assert "phase meta finished: 2 steps" in shown
    exported = ("convert", "export", "--run_dir", "runs/command", "--phase", "meta", "--output", "exported")
    assert "wrote exported" in installed.run("metaxlm", *exported)
    again = ("convert", "export", "--run_dir", "runs/command", "--phase", "cross", "--output", "other")
    refused = installed.run("metaxlm", *again, code=2)
    assert "`metaxlm pretrain --phase cross --run_dir runs/command`" in refused
