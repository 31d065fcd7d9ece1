"""What the planner says a checkpoint takes, against files that a save has written."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dist_metaxlm.deepspeed_adapter import optimizer_state
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.objectives.model import PretrainingModel
from dist_metaxlm.planning.checkpoint_size import checkpoint_bytes
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.training.checkpointing.saving import CheckpointSaver

MLM = "{name: mlm, batch_tokens: 8192}"
OBJECTIVES = {
    "mlm": "",
    "xlco": ", {name: xlco, pairs: 64, queue: 500, layer: 2, max_tokens: 32}",
    "xlco without projection": ", {name: xlco, pairs: 64, queue: 500, layer: 3, max_tokens: 32, projection: false}",
    "dwa": ", {name: dwa, batch_tokens: 8192, layer: 2}",
}


@pytest.mark.parametrize(
    ("family", "objective"), [("xlmr", "mlm"), ("xlmr", "xlco"), ("modern", "xlco without projection"), ("xlmr", "dwa")]
)
def test_the_estimate_is_a_little_more_than_the_files(tmp_path: Path, family: str, objective: str) -> None:
    recipe = load_recipe(
        "quickstart", [f"model.family={family}", "model.norm=pre", f"phases.cross.objectives=[{MLM}{OBJECTIVES[objective]}]"]
    )
    phase = recipe.phases["cross"]
    model = PretrainingModel(Encoder(recipe.model), phase.objectives)
    engine = SimpleNamespace(module=model, optimizer=torch.optim.AdamW(model.parameters()), device=torch.device("cpu"))
    optimizer_state.create_adam_state(engine)
    progress = {"seen": torch.zeros(recipe.model.vocab_size, dtype=torch.uint8)}
    with CheckpointSaver(tmp_path, engine, 1, background=False) as saver:
        saver.save({"step": 1}, progress)
    written = sum(path.stat().st_size for path in (tmp_path / "step-00000001").iterdir())
    found = checkpoint_bytes(recipe.model, phase)
    assert written <= found <= 1.02 * written
