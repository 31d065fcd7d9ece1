"""The report of a study from fabricated results: tables, verdict, charts, the same bytes again; tables of tasks."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ElementTree

import pytest

from dist_metaxlm.reporting.study import interval_text, write_study_report
from dist_metaxlm.reporting.task_table import print_tasks


def run(label: str, kind: str, ratio: float | None, seed: int) -> dict:
    figures = {
        "english_nll": 3.0 + seed / 10,
        "others_nll": 4.0,
        "retrieval": 0.3,
        "cka": None,
        "udpos:English": 0.8,
        "udpos:others": 0.5 + seed / 10,
    }
    return {
        "label": label,
        "kind": kind,
        "ratio": ratio,
        "seed": seed,
        "tokens": 4096,
        "english_share": 0.5,
        "seconds": 60.0,
        "figures": figures,
        "final": {"by_layer": {"retrieval": [0.1, 0.3], "cka": [0.5, 0.6], "margin": [0.0, 0.1]}},
        "curve": [{"phase": "meta", "tokens": tokens, **figures} for tokens in (2048, 4096)],
        "loss": [{"phase": "meta", "tokens": tokens, "losses": {"mlm": 5.0}} for tokens in (1024, 4096)],
    }


@pytest.fixture
def study() -> dict:
    figure = {"mean": 0.5, "half_width": 0.1, "n": 2}
    results = [
        run(label, kind, ratio, seed)
        for seed in (1, 2)
        for label, kind, ratio in (
            ("joint", "joint", None),
            ("meta+cross 0.5", "meta+cross", 0.5),
            ("meta+cross 0.25", "meta+cross", 0.25),
        )
    ]
    return {
        "size": "tiny",
        "parameters": 10**6,
        "tokens": 4096,
        "ratios": [0.25, 0.5],
        "seeds": [1, 2],
        "finished": 6,
        "asked": 9,
        "verdict": "The numbers show <nothing>.",
        "results": results,
        "measures": {
            name: {"meaning": name, "higher_is_better": name != "english_nll"}
            for name in ("english_nll", "others_nll", "retrieval", "cka", "udpos:English", "udpos:others")
        },
        "arms": {label: {"english_nll": figure} for label in ("joint", "meta+cross 0.5", "meta+cross 0.25")},
        "comparisons": [
            {"ratio": 0.5, "control": "joint", "measure": "english_nll", "difference": figure, "verdict": "worse"}
        ],
        "environment": {"device": "a CPU", "command": ["study.py", "two-phase"]},
    }


def test_report(study, tmp_path):
    page = write_study_report(tmp_path, study)
    text = page.read_text(encoding="utf-8")
    assert "The numbers show &lt;nothing&gt;." in text
    assert "6 of 9 runs finished" in text
    assert "+0.500 ± 0.100" in text
    assert not re.search(r"""(src|href)=["']https?:""", text)
    assert not {number for number, count in _counts(re.findall(r'\bid="([^"]+)"', text)).items() if count > 1}
    written = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| 0.5 | joint | english_nll | +0.500 ± 0.100 | worse |" in written
    assert "`study.py two-phase`" in written
    for chart in (tmp_path / "charts").iterdir():
        svg = chart.read_text(encoding="utf-8")
        assert ElementTree.fromstring(svg).tag.endswith("svg")
        assert "var(--" not in svg
    assert (tmp_path / "charts" / "task-udpos.svg").is_file()
    before = page.read_bytes()
    assert write_study_report(tmp_path, study).read_bytes() == before


def _counts(names: list[str]) -> dict[str, int]:
    return {name: names.count(name) for name in names}


def test_figures():
    assert interval_text({"mean": 1.0, "half_width": 0.25}) == "1.000 ± 0.250"
    assert interval_text({"mean": -1.0, "half_width": None}, True) == "-1.000"
    assert interval_text(None) == "–"


def test_tasks_of_several_encoders_stand_in_one_table():
    figure = {"mean": 0.612, "half_width": 0.008, "n": 3}
    table = {
        "source": figure,
        "others": {**figure, "mean": 0.4},
        "gap": {**figure, "half_width": None},
        "languages": {"de": {**figure, "script": "Latin"}, "ru": {**figure, "script": "Cyrillic"}},
        "scripts": {"Latin": figure, "Cyrillic": figure},
    }
    retrieval = {
        "kind": "retrieval",
        "layer": 1,
        "per_layer": {"cosine": [0.1, 0.25]},
        "languages": {
            "de": {
                "script": "Latin",
                **{name: {"to_english": [0.1, 0.2], "from_english": [0.1, 0.3]} for name in ("cosine", "csls")},
            }
        },
    }
    stream = io.StringIO()
    print_tasks(
        {
            "ours": {"udpos": {"kind": "tagging", "metric": "span_f1", "table": table}, "tatoeba": retrieval},
            "theirs": {"udpos": {"error": "no file there"}},
        },
        stream,
    )
    text = stream.getvalue()
    assert re.search(r"udpos +\| span_f1 +\| ours +\| 61\.2 ± 0\.8 \| 40\.0 ± 0\.8 \| 61\.2", text)
    assert re.search(r"tatoeba \| P@1, layer 1 \| ours +\| +\| +25\.0", text)
    assert "cosine 20.0/30.0  csls 20.0/30.0" in text
    assert re.search(r"Cyrillic \| ru", text)
    assert "theirs, udpos: no file there" in text
