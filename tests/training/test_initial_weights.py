"""What an imported model must have in common with the recipe that starts from it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dist_metaxlm.errors import UserError
from dist_metaxlm.interop.folders import export_folder, import_run
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.training.initial_weights import load_initial_weights

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
