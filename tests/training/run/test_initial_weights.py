"""What an imported model must have in common with the recipe that starts from it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dist_metaxlm.errors import UserError
from dist_metaxlm.interop.folders import export_folder, import_run
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.training.run.initial_weights import check_initial_weights, load_initial_weights

MODERN = ["model.family=modern", "model.norm=pre", "model.vocab_size=310", "model.hidden=16", "model.ffn=24"]


def test_another_norm_is_another_model(tmp_path: Path) -> None:
    recipe = load_recipe("quickstart", MODERN)
    state = Encoder(recipe.model, 3).state_dict()
    export_folder(state, recipe.model, None, tmp_path / "theirs")
    import_run(tmp_path / "theirs", tmp_path / "ours")
    fresh = Encoder(recipe.model, 4)
    assert load_initial_weights(fresh, recipe, tmp_path / "ours", "none").startswith("weights from")
    assert all(torch.equal(value, state[name]) for name, value in fresh.state_dict().items())
    other = load_recipe("quickstart", [*MODERN, "model.norm_type=rms"])
    with pytest.raises(UserError, match=r"a model of another shape; set model\.norm_type=layer$"):
        load_initial_weights(Encoder(other.model, 4), other, tmp_path / "ours", "none")


def test_another_tokenizer_is_refused_before_data_are_prepared(tmp_path: Path) -> None:
    recipe = load_recipe("quickstart", [*MODERN, f"data.directory={tmp_path / 'data'}"])
    export_folder(Encoder(recipe.model, 3).state_dict(), recipe.model, None, tmp_path / "theirs")
    import_run(tmp_path / "theirs", tmp_path / "ours")
    theirs = tmp_path / "ours" / "tokenizer.model"
    theirs.write_bytes(b"theirs")
    with pytest.raises(UserError, match=r"have one of their own; prepare .*data\.tokenizer\.path=.*tokenizer\.model$"):
        check_initial_weights(recipe, tmp_path / "ours")
    named = load_recipe("quickstart", [*MODERN, f"data.directory={tmp_path / 'data'}", f"data.tokenizer.path={theirs}"])
    check_initial_weights(named, tmp_path / "ours")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "tokenizer.model").write_bytes(b"another")
    with pytest.raises(UserError, match=r"has tokenizer .* and the data in .* have [0-9a-f]{12}; prepare another"):
        check_initial_weights(named, tmp_path / "ours")
