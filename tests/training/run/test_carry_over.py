from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from dist_metaxlm.errors import UserError
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.objectives.model import PretrainingModel
from dist_metaxlm.recipe.load import dump_recipe, load_recipe
from dist_metaxlm.recipe.schema import DenoisingAlignment, ModelConfig
from dist_metaxlm.training.checkpointing.checkpoint import Checkpoint
from dist_metaxlm.training.loop.progress import Progress
from dist_metaxlm.training.run import carry_over
from dist_metaxlm.training.run.before import Before
from dist_metaxlm.training.run.carry_over import Carried, carry_own, embedding_statistics
from dist_metaxlm.training.run.context import Options
from dist_metaxlm.training.run.run_folder import PhaseFolder
from dist_metaxlm.training.run.starting_point import origin_of


def test_statistics_equal_the_pairwise_definition() -> None:
    table = torch.randn(30, 8, generator=torch.Generator().manual_seed(0)) + 0.3
    unseen = torch.zeros(30, dtype=torch.bool)
    unseen[12:] = True
    statistics = embedding_statistics(table, unseen)
    for name, rows in (("seen", table[:12]), ("unseen", table[12:])):
        unit = F.normalize(rows, dim=-1)
        cosines = unit @ unit.T
        count = len(rows)
        off_diagonal = (cosines.sum() - cosines.diagonal().sum()) / (count * (count - 1))
        assert statistics[name]["tokens"] == count
        assert statistics[name]["mean_norm"] == pytest.approx(float(rows.norm(dim=-1).mean()), rel=1e-5)
        assert statistics[name]["mean_cosine"] == pytest.approx(float(off_diagonal), abs=1e-5)


def test_collapsed_rows_have_cosine_one_and_an_empty_side_is_left_out() -> None:
    statistics = embedding_statistics(torch.ones(5, 4), torch.zeros(5, dtype=torch.bool))
    assert statistics["seen"]["mean_cosine"] == pytest.approx(1.0)
    assert "unseen" not in statistics


def test_what_an_objective_has_beside_the_encoder_is_carried_where_it_was_there(tmp_path: Path) -> None:
    config = ModelConfig(layers=1, hidden=8, heads=1, ffn=8, vocab_size=301, max_positions=16)
    objective = DenoisingAlignment(batch_tokens=64, layer=1)
    model = PretrainingModel(Encoder(config, 1), [objective])
    before = {name: value.clone() for name, value in model.named_parameters()}
    names = ["objectives.dwa.query.weight", "objectives.dwa.query.bias", "objectives.dwa.key.weight"]
    assert [name for name in before if name.startswith("objectives")] == names
    there = {name: torch.full_like(before[name], 0.5) for name in names[:2]}
    save_file(there, tmp_path / "objectives-00000.safetensors")
    carried = Carried(Checkpoint(tmp_path, {"files": ["objectives-00000.safetensors"]}), torch.zeros(301).bool(), {})
    carry_own(model, carried)
    assert carried.report["objective_weights"] == {"carried": names[:2], "fresh": names[2:]}
    for name, value in model.named_parameters():
        assert torch.equal(value, there.get(name, before[name])), name
    plain = Carried(carried.checkpoint, carried.unseen, {})
    carry_own(PretrainingModel(Encoder(config, 1)), plain)
    assert plain.report == {}


def test_another_model_than_that_of_the_phase_before_is_refused(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the shapes of the weights do not show: the norm's epsilon, how many heads there are."""
    before, recipe = PhaseFolder(tmp_path, "meta"), load_recipe(tiny_recipe)
    source = Before(folder=before, mark=None, same_run=True, phase="cross", recipe="tiny")
    before.path.mkdir()
    (before.path / "recipe.yaml").write_text(dump_recipe(recipe))
    (before.path / "done.json").write_text("{}")
    facts = {"tokenizer": "same", "vocab_size": recipe.model.vocab_size}
    monkeypatch.setattr(carry_over, "newest_checkpoint", lambda folder, step: Checkpoint(folder, facts))
    heads = recipe.model.heads
    other = load_recipe(tiny_recipe, ["model.norm_eps=0.001", f"model.heads={heads // 2}", "model.dropout=0.3"])
    with pytest.raises(UserError, match=f"set model.heads={heads} model.norm_eps=1e-05$"):
        carry_over.carry_over(Encoder(other.model, 1), other, source, other.carry_over, "same")


def test_the_schedule_goes_on_from_meta_and_from_nothing_else(tiny_recipe: Path, tmp_path: Path) -> None:
    folder, meta = PhaseFolder(tmp_path, "cross"), PhaseFolder(tmp_path, "meta")
    goes_on = load_recipe(tiny_recipe, ["carry_over.schedule=continue"])
    assert origin_of(goes_on, folder, Options("cross")).schedule_offset == 0
    meta.path.mkdir()
    meta.finish({"steps": 8})
    assert origin_of(goes_on, folder, Options("cross")).schedule_offset == 8
    assert origin_of(load_recipe(tiny_recipe), folder, Options("cross")).schedule_offset == 0
    assert origin_of(goes_on, folder, Options("cross", init_from="elsewhere")).schedule_offset == 0
    assert origin_of(goes_on, PhaseFolder(tmp_path, "joint"), Options("joint")).schedule_offset == 0


def test_a_meta_phase_made_longer_does_not_move_the_schedule_of_a_cross_phase_on_its_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    began = Progress("cross", "same", 3, torch.device("cpu"), schedule_offset=8)
    saved = Checkpoint(Path(), began.facts())
    monkeypatch.setattr(Checkpoint, "tensors", lambda self, kind: began.tensors())
    goes_on = Progress("cross", "same", 3, torch.device("cpu"), schedule_offset=20)
    goes_on.resume(saved)
    assert goes_on.schedule_offset == 8
