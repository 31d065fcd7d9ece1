"""A damaged store is refused in a sentence or read inside its bounds; `make fuzz` tries many thousand more."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

_SPEC = importlib.util.spec_from_file_location("mutate", Path(__file__).with_name("mutate.py"))
assert _SPEC
assert _SPEC.loader
mutate = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(mutate)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "whole"
    folder.mkdir()
    mutate.make_store(folder)
    assert mutate.read_everything(folder) == "whole"
    return folder


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
@example(seed=0)
def test_damage_is_refused_or_harmless(whole: Path, seed: int) -> None:
    folder = whole.with_name("damaged")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    name = mutate.mutate(folder, seed)
    said = mutate.read_everything(folder)
    changed = (folder / name).read_bytes() != (whole / name).read_bytes()
    if name != "manifest.json" and changed and seed % 2 == 0:
        assert said != "whole", f"{name} has changed and nobody noticed"
