"""launch/benchmark.py data, on stores small enough for a test."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dist_metaxlm.benchmarking.data.loading import open_once, wait_shares
from dist_metaxlm.benchmarking.data.packing import measure_packing
from dist_metaxlm.benchmarking.data.synthetic_store import SyntheticTokenizer, write_store
from dist_metaxlm.data.tokens.store import TokenStore
from dist_metaxlm.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def test_figures_as_json(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"data_wait_share": 0.5}\n{"data_wait_share": 0.01}\n{"data_wait_share": 0.02}\n', encoding="utf-8")
    done = subprocess.run(
        [
            sys.executable,
            ROOT / "launch/benchmark.py",
            "data",
            "--tokens",
            "4000000",
            "--runs",
            "1",
            "--json",
            "--metrics",
            metrics,
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    figures = json.loads(done.stdout)
    assert set(figures["opening"]) == {"small", "large"}
    assert figures["opening"]["large"]["tokens"] == 40_000_000
    assert all(row["seconds"] > 0 and row["resident_mb"] > 50 for row in figures["opening"].values())
    assert len(figures["loading"]["tokens_per_second"]) == 4
    assert figures["data_wait_share"] == {
        "metrics": str(metrics),
        "intervals": 3,
        "median": 0.02,
        "first": 0.5,
        "largest_after_first": 0.02,
    }
    assert figures["environment"]["command"][1] == "data"


def test_synthetic_stores_open_like_any_other(tmp_path: Path) -> None:
    for holes in (True, False):
        folder = tmp_path / str(holes)
        write_store(folder, 12, 400_000, holes)
        store = TokenStore.open(folder)
        corpora = [store.text(language) for language in store.languages]
        total = sum(corpus.tokens.size for corpus in corpora)
        assert total == pytest.approx(400_000, rel=0.1)
        assert all(len(corpus) > 1 for corpus in corpora)
        assert corpora[3].tokens.any() != holes
        assert corpora[3].tokens.max() < SyntheticTokenizer.vocab_size
        assert open_once(str(folder))["seconds"] > 0


def test_metrics_without_the_figure_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"loss": 1.0}\n', encoding="utf-8")
    for missing in (path, tmp_path / "none.jsonl"):
        with pytest.raises(UserError, match="holds no data_wait_share"):
            wait_shares(missing)


def test_what_tlm_windows_lose(tiny_recipe: Path) -> None:
    figures = measure_packing(tiny_recipe.parent / "data" / "store", (32, 64))
    for row in figures.values():
        assert row["padding"] < row["grid_inert"]
        assert 0 <= row["left_out"] < 0.05
