"""What an export writes besides weights and tokenizer: model card, sentence-transformers files, and the upload."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import yaml

from dist_metaxlm.errors import UserError
from dist_metaxlm.interop.configs import KNOWN_FIELDS, check_exportable
from dist_metaxlm.interop.hub import check_push, push_folder
from dist_metaxlm.interop.model_card import CardFacts, model_card, sentence_transformers_files
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.recipe.schema import ModelConfig


def facts(**more: Any) -> CardFacts:
    recipe = load_recipe("quickstart")
    return CardFacts(
        recipe=recipe, phase="cross", step=400, tokens=1_638_400, parameters=123, 
        languages={"en": 9000, "de": 80, "x_1": 7}, **more,
    )  # fmt: skip


def test_the_card_has_data_languages_figures_recipe_and_commit() -> None:
    environment: Any = {
        "date": "2026-01-01",
        "device": "a GPU",
        "commit": "ab12",
        "versions": {"torch": "2.13", "triton": None},
    }
    evaluation: Any = {"mean_p_at_1": 0.4125}
    text = model_card(facts(evaluation=evaluation, environment=environment, pairs=("en-de",), figures={"loss": 2.5}))
    _, metadata, body = text.split("---\n", 2)
    assert yaml.safe_load(metadata)["language"] == ["de", "en"]
    for words in (
        "| en | 9,000 |",
        "| x_1 | 7 |",
        "mean P@1 | 0.4125 |",
        "| loss | 2.5 |",
        "commit ab12",
        "torch 2.13.",
        "en-de",
    ):
        assert words in body
    recipe = body.split("```yaml\n")[1].split("```")[0]
    assert yaml.safe_load(recipe)["phases"]["cross"]["steps"] == load_recipe("quickstart").phases["cross"].steps
    assert "This checkpoint was not evaluated." in model_card(facts())


def test_sentence_transformers_files_name_their_folders() -> None:
    files = sentence_transformers_files(load_recipe("quickstart").model)
    modules = json.loads(files["modules.json"])
    assert all(f"{module['path']}/config.json" in files for module in modules[1:])
    assert json.loads(files["1_Pooling/config.json"])["word_embedding_dimension"] == 128


def test_a_field_that_the_export_does_not_know_is_refused_by_name() -> None:
    assert ModelConfig.model_fields.keys() >= KNOWN_FIELDS

    class Newer(ModelConfig):
        key_value_heads: int | None = None

    shape: dict[str, Any] = {"layers": 2, "hidden": 24, "heads": 4, "ffn": 40, "vocab_size": 400}
    check_exportable(Newer(**shape))
    with pytest.raises(UserError, match=r"model\.key_value_heads 2 cannot go to Hugging Face"):
        check_exportable(Newer(**shape, key_value_heads=2))


def test_an_upload_is_one_commit_of_a_private_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    class Client:
        def create_repo(self, name: str, **words: Any) -> None:
            calls.append((name, words))

        def upload_folder(self, **words: Any) -> SimpleNamespace:
            calls.append(words)
            return SimpleNamespace(commit_url="https://hub/lab/model/commit/1")

    monkeypatch.setattr(huggingface_hub, "HfApi", Client)
    assert push_folder(tmp_path, "lab/model", private=True) == "https://hub/lab/model/commit/1"
    assert calls[0] == ("lab/model", {"private": True, "exist_ok": True})
    assert calls[1]["folder_path"] == str(tmp_path)


def test_uploads_that_cannot_succeed_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="'model' is not a name on the hub; give OWNER/NAME"):
        check_push("model")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(UserError, match="needs a token; log in with `hf auth login`, or set HF_TOKEN"):
        check_push("lab/model")

    class Client:
        def create_repo(self, name: str, **words: Any) -> None:
            raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "HfApi", Client)
    with pytest.raises(UserError, match=r"is written, but the hub did not accept it as lab/model \(no route\).*hf upload"):
        push_folder(tmp_path, "lab/model", private=False)
