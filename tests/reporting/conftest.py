"""A small hand-written run with two phases, three evaluations and a filled mask."""

from __future__ import annotations

import json

import pytest
import yaml

RECIPE = {
    "name": "hand<written>",
    "model": {"family": "xlmr", "layers": 2, "hidden": 32, "vocab_size": 400},
    "phases": {"meta": {"steps": 60}, "cross": {"steps": 60}},
}


def record(step: int, objectives: dict[str, list[str]]) -> dict:
    """One line of metrics: the loss of every objective is 10 - step / 10."""
    value = 10 - step / 10
    return {
        "step": step,
        "tokens": step * 100,
        "loss": value * len(objectives),
        "losses": dict.fromkeys(objectives, value),
        "language_losses": {
            name: {language: value + n / 10 for n, language in enumerate(languages)}
            for name, languages in objectives.items()
        },
        "learning_rate": 1e-3,
        "grad_norm": 1.0,
        "tokens_per_second": 1000.0 + step,
        "seconds": step * 0.5,
        "guards": {"skipped": step // 30, "spikes": 0, "rollbacks": 0},
        "realised": {name: dict.fromkeys(languages, step) for name, languages in objectives.items()},
        "asked": {name: dict.fromkeys(languages, 1 / len(languages)) for name, languages in objectives.items()},
    }


def evaluation(phase: str, score: float, perplexity: float) -> dict:
    """Three languages, one of them with too few candidates."""
    layers = [score / 2, score, score / 4]
    retrieval = {
        language: {"candidates": count, "counted": count >= 400, "to_english": layers, "from_english": layers}
        for language, count in (("de", 450), ("fr", 420), ("eu", 12))
    }
    return {
        "phase": phase,
        "parameters": 123456,
        "window": 64,
        "perplexity": {"en": perplexity, "de": perplexity, "fr": perplexity * 4, "eu": None},
        "prose_perplexity": {"en": perplexity / 2},
        "retrieval": retrieval,
        "per_layer_mean": layers,
        "best_layer": 1,
        "mean_p_at_1": score,
        "min_candidates": 400,
        "seconds": 1.0,
    }


@pytest.fixture
def run_dir(tmp_path):
    folder = tmp_path / "run"
    languages = [f"l{n:02}" for n in range(11)] + ["en"]
    pairs = [f"en-{language}" for language in languages if language != "en"]
    phases = {"meta": {"mlm": ["en"]}, "cross": {"mlm": languages, "tlm": pairs, "contrast": pairs}}
    for phase, objectives in phases.items():
        (folder / phase).mkdir(parents=True)
        lines = "".join(json.dumps(record(step, objectives)) + "\n" for step in range(10, 70, 10))
        (folder / phase / "metrics.jsonl").write_text(lines + '{"step": 70, "to', encoding="utf-8")
    (folder / "evaluation").mkdir()
    for phase, score, perplexity in (("untrained", 0.01, 400.0), ("meta", 0.1, 100.0), ("cross", 0.5, 50.0)):
        path = folder / "evaluation" / f"{phase}.json"
        path.write_text(json.dumps(evaluation(phase, score, perplexity)), encoding="utf-8")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    (folder / "environment.json").write_text(json.dumps({"versions": {"torch": "2.13.0"}, "command": ["a", "b"]}))
    (folder / "export").mkdir()
    examples = [{"language": "en", "text": "Save <mask> & <close>", "predictions": [{"token": "file", "score": 0.4}]}]
    (folder / "export" / "fill_mask.json").write_text(json.dumps(examples), encoding="utf-8")
    return folder


@pytest.fixture
def probed_run(run_dir):
    """The run, with probes in its cross phase every 20 steps: retrieval is step / 100."""
    path = run_dir / "cross" / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:-1]]
    for found in records[1::2]:
        found["probe"] = {
            "retrieval": found["step"] / 100,
            "layer": 1,
            "strings": 64,
            "seconds": 0.3,
            "languages": {f"l{n:02}": (found["step"] + n) / 100 for n in range(11)},
        }
    path.write_text("".join(json.dumps(found) + "\n" for found in records), encoding="utf-8")
    return run_dir
