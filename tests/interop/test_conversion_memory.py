"""Both conversions hold a few tensors at a time, never the model; and bring every bit back."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from dist_metaxlm.recipe.schema import ModelConfig

SCRIPT = Path(__file__).with_name("conversion_memory.py")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory of a process is read from /proc")
def test_conversion_needs_far_less_memory_than_the_model(tmp_path):
    spec = importlib.util.spec_from_file_location("conversion_memory", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    config = ModelConfig(layers=17, hidden=512, heads=8, ffn=2048, vocab_size=1013, max_positions=128)
    figures = script.measure(config, tmp_path)
    assert figures["differing_tensors"] == []
    assert figures["model_mb"] > 200
    for action in ("import", "export"):
        assert figures[action]["growth_mb"] < figures["largest_tensor_mb"] + 100, figures
