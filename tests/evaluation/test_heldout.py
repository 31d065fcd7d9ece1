"""Evaluation of a model on a small held-out folder: shape, counts, means, and what a bad folder says."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dist_metaxlm.errors import UserError
from dist_metaxlm.evaluation.heldout import evaluate_heldout, read_strings, retrieval_means
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.recipe.schema import ModelConfig

CONFIG = ModelConfig(layers=2, hidden=32, heads=2, ffn=64, vocab_size=400, max_positions=64)


class Characters:
    """Every character a token."""

    mask_id = CONFIG.vocab_size - 1
    special = np.isin(np.arange(CONFIG.vocab_size), [0, 1, 2, 3, mask_id])

    def encode(self, text: str) -> list[int]:
        return [4 + ord(character) % 300 for character in text]

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]


@pytest.fixture
def folder(tmp_path):
    rows = []
    for n in range(30):
        row = {"en": f"sentence number {n}", "xx": f"SENTENCE NUMBER {n}"}
        if n < 10:
            row["yy"] = f"sentence number {n}" if n < 4 else f"nummer {n}"
        rows.append(row)
    rows += [{"en": "a duplicate", "xx": "SENTENCE NUMBER 3"}, {"xx": "no English here"}]
    (tmp_path / "strings.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "en.txt").write_text("some prose to read\nand more of it\n\nthe end of the prose\n" * 4)
    return tmp_path


def test_the_result_is_complete_and_ready_for_json(folder):
    result = evaluate_heldout(Encoder(CONFIG, 1), Characters(), folder, window=64, min_candidates=20)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert list(result["perplexity"]) == ["en", "xx", "yy"]
    assert set(result["prose_perplexity"]) == {"en"}
    # An untrained model is nearly uniform.
    assert result["perplexity"]["en"] == pytest.approx(CONFIG.vocab_size, rel=0.25)
    assert {language: of["candidates"] for language, of in result["retrieval"].items()} == {"xx": 30, "yy": 6}
    assert [of["counted"] for of in result["retrieval"].values()] == [True, False]
    assert len(result["per_layer_mean"]) == len(result["retrieval"]["xx"]["to_english"]) == CONFIG.layers + 1
    assert result["mean_p_at_1"] == max(result["per_layer_mean"]) == result["per_layer_mean"][result["best_layer"]]


def test_the_same_checkpoint_gives_the_same_result(folder):
    first, second = (evaluate_heldout(Encoder(CONFIG, 1), Characters(), folder, window=64) for _ in range(2))
    assert first == second


def test_only_the_tasks_that_are_asked_for(folder):
    assert "retrieval" not in evaluate_heldout(Encoder(CONFIG, 1), Characters(), folder, ["perplexity"], window=64)
    assert "perplexity" not in evaluate_heldout(Encoder(CONFIG, 1), Characters(), folder, ["retrieval"], window=64)


def test_text_without_translations_has_perplexity_and_no_retrieval(folder):
    (folder / "strings.jsonl").write_text("")
    result = evaluate_heldout(Encoder(CONFIG, 1), Characters(), folder, ["perplexity"], window=64)
    assert (result["perplexity"], set(result["prose_perplexity"])) == ({}, {"en"})
    with pytest.raises(UserError, match=r"name translations of English in data\.bitext .* or run --tasks perplexity"):
        evaluate_heldout(Encoder(CONFIG, 1), Characters(), folder, window=64)


def test_means_are_over_counted_languages_and_both_directions():
    scores = {
        "aa": {"counted": True, "to_english": [0.1, 0.5], "from_english": [0.1, 0.3]},
        "bb": {"counted": True, "to_english": [0.2, 0.7], "from_english": [0.4, 0.5]},
        "cc": {"counted": False, "to_english": [1.0, 1.0], "from_english": [1.0, 1.0]},
    }
    means = retrieval_means(scores)
    assert means["per_layer_mean"] == pytest.approx([0.2, 0.5])
    assert (means["best_layer"], means["mean_p_at_1"]) == (1, pytest.approx(0.5))
    assert retrieval_means({"cc": scores["cc"]}) == {"per_layer_mean": [], "best_layer": None, "mean_p_at_1": None}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no held-out strings"),
        ('{"en": "a"}\n{"en": \n', "line 2"),
        ('["en"]\n', "line 1"),
        ('{"de": "a"}\n', "no English"),
        ("", "no English"),
    ],
)
def test_a_bad_file_is_named(tmp_path, text, message):
    path = tmp_path / "strings.jsonl"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_strings(path)
