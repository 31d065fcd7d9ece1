"""The cleaning benchmark: what was planted is found, and the figures carry what a reader needs to judge them."""

from __future__ import annotations

import pytest

from dist_metaxlm.benchmarking.data import cleaning


def test_everything_planted_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleaning, "VOCABULARY", 5000)
    monkeypatch.setattr(cleaning, "SHARD_DOCUMENTS", 300)
    monkeypatch.setattr(cleaning, "CONTAMINATED", 0.02)
    result = cleaning.measure_cleaning([1])
    (run,) = result["runs"]
    assert min(run["planted"].values()) > 3
    assert run["dropped"]["duplicate_documents"] == run["planted"]["exact"]
    assert run["dropped"]["decontaminate"] == run["planted"]["contaminated"]
    assert run["dropped"]["near_duplicates"] >= 0.9 * run["planted"]["near"]
    assert run["kept"] == run["documents"] - sum(run["dropped"].values())
    assert run["peak_resident_megabytes"] > 0
    assert {"date", "device", "versions", "commit"} <= result["environment"].keys()
