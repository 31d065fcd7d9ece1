"""What a phase starts from: which one the command line and the checkpoints choose, and what each refuses."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dist_metaxlm.errors import UserError
from dist_metaxlm.interop.folders import export_folder, import_run
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.objectives.model import PretrainingModel
from dist_metaxlm.parallel.topology import Topology
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.recipe.schema import Recipe
from dist_metaxlm.training.checkpointing.checkpoint import Checkpoint
from dist_metaxlm.training.checkpointing.manifest import step_folder
from dist_metaxlm.training.run import starting_point
from dist_metaxlm.training.run.context import Options, RunContext
from dist_metaxlm.training.run.lifecycle import begin
from dist_metaxlm.training.run.run_folder import PhaseFolder
from dist_metaxlm.training.run.starting_point import CarriedOver, Fresh, Imported, Resumed, origin_of, resumed_or

SMALL = ["model.family=modern", "model.norm=pre", "model.vocab_size=310", "model.hidden=16", "model.ffn=24"]


def context_of(recipe: Recipe, folder: PhaseFolder, options: Options, tokenizer: str = "a" * 64) -> RunContext:
    """A context of one rank, whose data were made with the tokenizer of this hash and are not read."""
    data: Any = SimpleNamespace()
    known: Any = SimpleNamespace(hash=tokenizer)
    topology = Topology(0, 1, 0, 1, "single")
    return RunContext(
        recipe=recipe,
        options=options,
        topology=topology,
        device=torch.device("cpu"),
        folder=folder,
        tokenizer=known,
        data=data,
    )


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        (Options("meta"), Fresh),
        (Options("joint"), Fresh),
        (Options("cross"), CarriedOver),
        (Options("meta", init_from="imported"), Imported),
        (Options("cross", init_from="imported"), Imported),
    ],
)
def test_the_command_line_names_the_origin(options: Options, kind: type, tmp_path: Path) -> None:
    assert type(origin_of(load_recipe("quickstart"), PhaseFolder(tmp_path, options.phase), options)) is kind


def test_a_checkpoint_takes_precedence_and_its_tokenizer_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, folder = load_recipe("quickstart", ["optimizer.name=adamw"]), PhaseFolder(tmp_path, "meta")
    context, origin = context_of(recipe, folder, Options("meta")), Fresh()
    assert resumed_or(origin, context) is origin
    saved = Checkpoint(step_folder(folder.checkpoints, 4), {"step": 4, "tokenizer": "a" * 64})
    monkeypatch.setattr(starting_point, "checkpoint_to_resume", lambda root, resume: saved)
    start = resumed_or(origin, context)
    assert isinstance(start, Resumed)
    assert start.describe() == ["resuming after step 4"]
    assert start.report is None
    with pytest.raises(UserError, match=r"trained with tokenizer aaaaaaaaaaaa, and the data in .* have bbbbbbbbbbbb; give"):
        resumed_or(origin, context_of(recipe, folder, Options("meta"), "b" * 64))


@pytest.mark.parametrize("unfinished", [False, True])
def test_cross_without_a_finished_meta_names_the_command(tmp_path: Path, unfinished: bool) -> None:
    if unfinished:
        (tmp_path / "meta").mkdir()
    origin = origin_of(load_recipe("quickstart"), PhaseFolder(tmp_path, "cross"), Options("cross", "mine.yaml"))
    state, asked = "an unfinished one" if unfinished else "none", f"--phase meta --recipe mine.yaml --run_dir {tmp_path}`"
    with pytest.raises(UserError, match=f"holds {state}; run `metaxlm pretrain {asked} first"):
        origin.check()
    PhaseFolder(tmp_path, "meta").path.mkdir(exist_ok=True)
    PhaseFolder(tmp_path, "meta").finish({"steps": 3})
    origin.check()


def test_an_imported_model_is_checked_only_where_nothing_is_resumed(tmp_path: Path) -> None:
    recipe, folder = load_recipe("quickstart", SMALL), PhaseFolder(tmp_path, "meta")
    origin = origin_of(recipe, folder, Options("meta", init_from=str(tmp_path / "missing")))
    with pytest.raises(UserError, match="holds no imported model"):
        origin.check()
    step_folder(folder.checkpoints, 2).mkdir(parents=True)
    origin.check()
    with pytest.raises(UserError, match="holds no imported model"):
        origin_of(recipe, folder, Options("meta", resume="never", init_from=str(tmp_path / "missing"))).check()


def test_an_imported_model_is_loaded_and_described(tmp_path: Path) -> None:
    recipe = load_recipe("quickstart", SMALL)
    state = Encoder(recipe.model, 3).state_dict()
    export_folder(state, recipe.model, None, tmp_path / "theirs")
    import_run(tmp_path / "theirs", tmp_path / "ours")
    origin = origin_of(recipe, PhaseFolder(tmp_path, "meta"), Options("meta", init_from=str(tmp_path / "ours")))
    origin.check()
    model = PretrainingModel(Encoder(recipe.model, 4), recipe.phase("meta").objectives)
    origin.load(model, "a" * 64)
    assert all(torch.equal(value, state[name]) for name, value in model.encoder.state_dict().items())
    assert origin.describe() == [
        f"weights from {tmp_path / 'ours'}; tokenizer aaaaaaaaaaaa (not checked, the import has none); "
        "optimiser and learning rate start fresh"
    ]


def test_the_report_of_a_starting_point_is_written_when_the_phase_begins_and_not_before(tmp_path: Path) -> None:
    class Reported(Fresh):
        @property
        def report(self) -> dict[str, Any]:
            return {"from": "elsewhere"}

    folder = PhaseFolder(tmp_path, "meta")
    context = context_of(load_recipe("quickstart"), folder, Options("meta"))
    start = Reported()
    start.check()
    assert not folder.path.exists()
    begin(context, start, 0)
    assert json.loads((folder.path / "carry_over.json").read_text(encoding="utf-8")) == {"from": "elsewhere"}
    assert (folder.path / "recipe.yaml").is_file()
