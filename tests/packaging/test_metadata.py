"""pyproject.toml names every package that exists, and the version stands in one place."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

import dist_metaxlm

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_packages_are_those_that_exist() -> None:
    directories = PYPROJECT["tool"]["setuptools"]["package-dir"]
    assert set(directories.values()) == {"dist_metaxlm", "kernels", "ds_configs"}
    exist = [
        ".".join((package, *path.parent.relative_to(ROOT / folder).parts))
        for package, folder in directories.items()
        for path in (ROOT / folder).rglob("__init__.py")
    ]
    assert PYPROJECT["tool"]["setuptools"]["packages"] == sorted(exist)


def test_every_folder_with_modules_is_a_package() -> None:
    for folder in ("dist_metaxlm", "kernels"):
        bare = {path.parent for path in (ROOT / folder).rglob("*.py") if not (path.parent / "__init__.py").is_file()}
        assert not bare


def test_the_version_and_the_licence_are_the_same_everywhere() -> None:
    project = PYPROJECT["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert dist_metaxlm.__version__ == project["version"] == str(citation["version"])
    assert project["license"] == citation["license"] == "MIT"
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## \[?{re.escape(project['version'])}\b", changes, flags=re.M)
    for path in [*(ROOT / "dist_metaxlm").rglob("*.py"), *(ROOT / "launch").rglob("*.py")]:
        assert f'"{project["version"]}"' not in path.read_text(encoding="utf-8"), f"{path} repeats the version"
