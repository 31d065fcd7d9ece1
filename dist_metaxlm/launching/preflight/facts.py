"""Facts about this node: versions, checksums of its training inputs, disk space, limits, devices."""

from __future__ import annotations

import hashlib
import os
import platform
import resource
import shutil
import socket
import subprocess
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from dist_metaxlm.parallel.processes import holder
from dist_metaxlm.parallel.shared_facts import PACKAGES, package_version, recipe_digest
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.storage.digest import digest_or_missing

CODE = (".py", ".cu", ".cuh", ".h", ".yaml", ".json", ".sbatch")
"""Suffixes of the files that determine what a run computes."""
_PROBE = 256
"""Width of the matrix product that tests a device; its entries are integers that fp32 represents exactly."""


def collect(recipe: str, overrides: Sequence[str], run_dir: str | None, port: int) -> dict[str, Any]:
    """All facts of this node, as plain values.

    Raises:
        UserError: when the recipe cannot be read here.
    """
    loaded = load_recipe(recipe, overrides)
    data = Path(loaded.data.directory)
    folder = Path(run_dir or Path("runs") / loaded.name)
    return {
        "host": socket.gethostname(),
        "boot": _text("/proc/sys/kernel/random/boot_id"),
        "python": platform.python_version(),
        "versions": {name: package_version(name) for name in PACKAGES},
        "cuda": torch.version.cuda or "none",
        "driver": _driver(),
        "checksums": {
            "code": code_digest(code_folders()),
            "recipe": recipe_digest(loaded),
            "tokenizer": digest_or_missing(data / "tokenizer.model"),
            "data": _store_digest(data / "store"),
        },
        "free_gb": {"data": _free(data), "run": _free(folder), "shm": _free(Path("/dev/shm"))},
        "limits": {
            "open files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            "locked memory": resource.getrlimit(resource.RLIMIT_MEMLOCK)[0],
        },
        "cores": len(os.sched_getaffinity(0)),
        "devices": devices(),
        "port": _port(port),
    }


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _driver() -> str:
    words = _text("/proc/driver/nvidia/version").split()
    return next((word for word in words if word[:1].isdigit() and "." in word), "none")


def code_folders() -> list[Path]:
    """Every folder with code of a run; in a checkout kernels/ and ds_configs/ are next to the package."""
    names = ("dist_metaxlm", "dist_metaxlm.kernels", "dist_metaxlm.ds_configs")
    folders = [Path(spec.origin).resolve().parent for spec in map(find_spec, names) if spec is not None and spec.origin]
    commands = folders[0].parent / "launch"
    return [*folders, commands] if (commands / "pretrain.py").is_file() else folders


def code_digest(folders: Sequence[Path]) -> str:
    """One SHA-256 of the Python, CUDA, recipe and DeepSpeed configuration files in `folders`, independent of their order."""
    files = {
        path: f"{folder.name}/{path.relative_to(folder)}"
        for folder in folders
        for path in folder.rglob("*")
        if path.suffix in CODE
    }
    lines = (f"{name}:{digest_or_missing(path)}\n" for path, name in sorted(files.items(), key=lambda item: item[1]))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _store_digest(store: Path) -> str:
    """One digest of the manifest (which has the files' checksums) and of the actual file sizes."""
    if not (store / "manifest.json").is_file():
        return "missing"
    sizes = [f"{path.relative_to(store)}:{path.stat().st_size}" for path in sorted(store.rglob("*")) if path.is_file()]
    return hashlib.sha256("\n".join([digest_or_missing(store / "manifest.json"), *sizes]).encode()).hexdigest()


def _free(path: Path) -> float | None:
    """Free gigabytes on the file system of `path`, which may not exist yet."""
    while not path.exists() and path != path.parent:
        path = path.absolute().parent
    try:
        return round(shutil.disk_usage(path).free / 1e9, 2)
    except OSError:
        return None


def _port(port: int) -> str:
    """`free`, or the process that holds the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return holder(port)
    return "free"


def devices() -> list[dict[str, Any]]:
    """Every CUDA device: name, memory, whether a small matrix product is correct, uncorrected memory errors."""
    facts: list[dict[str, Any]] = []
    for number in range(torch.cuda.device_count()):
        fact: dict[str, Any] = {"name": torch.cuda.get_device_name(number), "errors": _memory_errors(number)}
        try:
            free, total = torch.cuda.mem_get_info(number)
            fact |= {
                "free_gb": round(free / 1e9, 1),
                "total_gb": round(total / 1e9, 1),
                "healthy": product_is_right(torch.device("cuda", number)),
            }
        except RuntimeError as error:
            fact |= {"healthy": False, "reason": str(error).splitlines()[0]}
        facts.append(fact)
    return facts


def product_is_right(device: torch.device) -> bool:
    """Whether an integer matrix product with a known result is exact."""
    numbers = torch.arange(_PROBE, device=device, dtype=torch.float32).remainder(7)
    product = numbers.expand(_PROBE, _PROBE) @ torch.ones(_PROBE, _PROBE, device=device)
    return bool((product == numbers.sum()).all().item())


def _memory_errors(number: int) -> int:
    """Uncorrected ECC errors since the last boot, 0 if they are not counted."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return 0
    words = [tool, f"--id={number}", "--query-gpu=ecc.errors.uncorrected.volatile.total", "--format=csv,noheader"]
    try:
        text = subprocess.run(
            words, capture_output=True, encoding="utf-8", errors="replace", timeout=10, check=False
        ).stdout.strip()
    except subprocess.TimeoutExpired:
        return 0
    return int(text) if text.isdigit() else 0
