"""Hardware, versions, commit and date, recorded with every figure. Needs only torch and the standard library."""

from __future__ import annotations

import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

from dist_metaxlm.reporting.records import Environment


def environment() -> Environment:
    """Hardware, versions, commit and date, recorded with every figure of a run."""
    packages = ("torch", "deepspeed", "megatron-core", "transformers", "sentencepiece", "numpy", "triton")
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else _processor()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device,
        "devices": torch.cuda.device_count(),
        "cpu_cores": torch.multiprocessing.cpu_count(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "commit": _commit(),
        "versions": {name: _version(name) for name in packages},
        "command": sys.argv,
    }


def _version(package: str) -> str | None:
    """None if the package is not installed: kernel benchmarks need only torch and triton."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _commit() -> str | None:
    """Commit of the checkout that the package runs from, None outside one."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    result = subprocess.run(
        ["git", "-C", str(root), "describe", "--always", "--dirty"],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    return result.stdout.strip() or None
