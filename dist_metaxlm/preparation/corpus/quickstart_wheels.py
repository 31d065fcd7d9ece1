"""Sources of the quickstart corpus: wheels that pip downloads into a cache and that are read in place.

They are neither installed nor executed. Without a network, installed packages are used instead.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

WHEELS = {"django": "5.2.19", "wagtail": "8.0.1", "weblate": "5.14.3"}


@dataclass(frozen=True)
class Package:
    """Files of one package, from a wheel or from an installed folder."""

    name: str
    """Name and version, for the manifest."""
    root: Path
    """The wheel, or the folder that `files` are relative to."""
    files: tuple[str, ...]
    """Paths inside it, sorted."""

    def read(self, suffix: str) -> dict[str, bytes]:
        """Path -> content of all files whose path ends with `suffix`, in sorted order."""
        wanted = [name for name in self.files if name.endswith(suffix)]
        if self.root.is_dir():
            return {name: (self.root / name).read_bytes() for name in wanted}
        with zipfile.ZipFile(self.root) as wheel:
            return {name: wheel.read(name) for name in wanted}


def cache_folder() -> Path:
    """Folder of the downloaded wheels: `$XDG_CACHE_HOME/dist_metaxlm/wheels`, by default under `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dist_metaxlm" / "wheels"


def find_packages(log: Callable[[str], None], cache: Path | None = None) -> tuple[list[Package], str]:
    """The packages with catalogues, and one sentence on why some are missing (empty if none)."""
    cache = cache or cache_folder()
    missing = [name for name in WHEELS if _wheel(cache, name) is None]
    note = ""
    if missing:
        log(f"downloading {', '.join(f'{name} {WHEELS[name]}' for name in missing)} with pip into {cache}")
        reason = download(missing, cache)
        if reason:
            note = f"pip could not download {', '.join(f'{name}=={WHEELS[name]}' for name in missing)} ({reason})"
            log(f"{note}; using cached or installed packages")
    packages = []
    for name, version in WHEELS.items():
        wheel = _wheel(cache, name)
        if wheel is not None:
            with zipfile.ZipFile(wheel) as archive:
                packages.append(Package(f"{name} {version}", wheel, tuple(sorted(archive.namelist()))))
    if note:
        packages += installed_packages(
            Path(sysconfig.get_paths()["purelib"]), {name.split()[0] for name in (p.name for p in packages)}
        )
    return packages, note


def download(names: list[str], cache: Path) -> str:
    """Bring the wheels of `names` into `cache`; returns why it failed, or nothing."""
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as folder:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--only-binary",
            ":all:",
            "--quiet",
            "--ignore-requires-python",
            "--disable-pip-version-check",
            "--retries",
            "2",
            "--timeout",
            "20",
            "-d",
            folder,
            *(f"{name}=={WHEELS[name]}" for name in names),
        ]
        try:
            outcome = subprocess.run(
                command, capture_output=True, encoding="utf-8", errors="replace", timeout=300, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"{type(error).__name__}"
        for wheel in sorted(Path(folder).glob("*.whl")):
            os.replace(wheel, cache / wheel.name)
        if outcome.returncode == 0:
            return ""
        lines = [line for line in outcome.stderr.splitlines() if line.startswith("ERROR")] or ["no reason given"]
        return lines[-1].removeprefix("ERROR: ").strip()


def installed_packages(site: Path, known: set[str]) -> list[Package]:
    """Every installed top-level package under `site` that has compiled catalogues and is not in `known`."""
    packages = []
    for folder in sorted(path for path in site.iterdir() if path.is_dir() and path.name.lower() not in known):
        files = [path for suffix in ("mo", "po") for path in folder.glob(f"**/locale/*/LC_MESSAGES/*.{suffix}")]
        if files:
            names = tuple(sorted(path.relative_to(site).as_posix() for path in files))
            packages.append(Package(f"{folder.name} (installed)", site, names))
    return packages


def _wheel(cache: Path, name: str) -> Path | None:
    """The cached wheel of `name`, if it is complete (a truncated zip file has no directory at its end)."""
    for wheel in sorted(cache.glob(f"{name}-{WHEELS[name]}-*.whl")):
        if zipfile.is_zipfile(wheel):
            return wheel
    return None
