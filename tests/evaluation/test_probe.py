"""The probe inside training: what it finds, how ranks share it, what it leaves alone, and what it refuses."""

from __future__ import annotations

import json

import pytest
import torch

from dist_metaxlm.data.tokenizer import Tokenizer
from dist_metaxlm.errors import UserError
from dist_metaxlm.evaluation import probe as probe_module
from dist_metaxlm.evaluation.probe import HeldoutProbe
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.objectives.model import PretrainingModel
from dist_metaxlm.parallel.groups import Groups
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.study.measures import measure
from dist_metaxlm.training.loop.probing import Probing

CPU = torch.device("cpu")


class Engine:
    """As much of an engine as a probe needs."""

    device = CPU

    def __init__(self, recipe):
        self.module = PretrainingModel(Encoder(recipe.model, recipe.seed))


@pytest.fixture
def recipe(tiny_recipe):
    return load_recipe(tiny_recipe, ["model.dropout=0.3"])


def test_it_finds_what_the_study_measures_of_the_same_strings(recipe, tiny_recipe):
    engine = Engine(recipe)
    tokenizer = Tokenizer.load(tiny_recipe.parent / "data" / "tokenizer.model")
    expected = measure(engine.module.encoder, tokenizer, tiny_recipe.parent / "data" / "heldout", 32)
    found = Probing(engine, 2, HeldoutProbe(recipe)).at(2, False)["probe"]
    assert found["layer"] == expected["layer"] == 1
    assert found["strings"] == 20
    assert found["retrieval"] == pytest.approx(expected["retrieval"], abs=0.02)
    assert found["languages"] == {
        code: pytest.approx(of["retrieval"], abs=0.03) for code, of in expected["languages"].items()
    }
    assert found["seconds"] > 0


def test_fewer_strings_are_the_first_ones(recipe):
    engine = Engine(recipe)
    fewer = HeldoutProbe(recipe.model_copy(update={"training": recipe.training.model_copy(update={"probe_strings": 12})}))
    found = fewer(engine.module.states_after, CPU)
    assert found["strings"] == 12
    assert set(found["languages"]) == {"de", "el"}


def test_it_leaves_the_model_and_the_generator_as_they_were(recipe):
    engine = Engine(recipe)
    engine.module.train()
    before, state = [p.clone() for p in engine.module.parameters()], torch.get_rng_state()
    probing = Probing(engine, 1, HeldoutProbe(recipe))
    first, second = (probing.at(1, False)["probe"]["languages"] for _ in range(2))
    assert first == second, "dropout was on"
    assert all(module.training for module in engine.module.modules())
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(p, old) and p.grad is None for p, old in zip(engine.module.parameters(), before, strict=True))


def test_ranks_share_the_windows_and_step_together(recipe, monkeypatch):
    engine = Engine(recipe)
    engine.module.eval()
    whole = HeldoutProbe(recipe)._vectors(engine.module.states_after, CPU)
    calls, parts = [], []
    for rank in range(3):
        monkeypatch.setattr(probe_module, "groups", lambda rank=rank: Groups(0, 1, rank, 3))
        read = []
        parts.append(
            HeldoutProbe(recipe)._vectors(
                lambda batch, layer, read=read: read.append(1) or engine.module.states_after(batch, layer), CPU
            )
        )
        calls.append(len(read))
    assert calls[0] == calls[1] == calls[2]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-4, atol=1e-6)
    assert all((torch.stack([part.abs().sum(1) for part in parts]) > 0).sum(0) == 1), "a sentence was read twice, or never"


def test_it_comes_every_so_many_steps_and_at_the_end():
    class Module:
        training = True
        states_after = None

        def train(self, mode):
            self.training = mode

        def eval(self):
            self.training = False

    engine = Engine.__new__(Engine)
    engine.module = Module()
    probing = Probing(engine, 4, lambda read, device: {"training": engine.module.training})
    taken = [step for step in range(1, 11) if probing.at(step, step == 10)]
    assert taken == [4, 8, 10]
    assert probing.at(4, False)["probe"]["training"] is False
    assert engine.module.training is True
    assert Probing(engine, 0, None).at(10, True) == {}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (None, r"needs a language with 10 translations of English held out, and the first 0 strings of .*strings\.jsonl"),
        ([{"en": f"sentence {n}", "de": f"Satz {n}"} for n in range(9)], "the first 9 strings"),
    ],
)
def test_without_held_out_strings_it_is_refused(recipe, tmp_path, tiny_recipe, rows, words):
    (tmp_path / "heldout").mkdir()
    (tmp_path / "tokenizer.model").write_bytes((tiny_recipe.parent / "data" / "tokenizer.model").read_bytes())
    if rows:
        (tmp_path / "heldout" / "strings.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    moved = recipe.model_copy(update={"data": recipe.data.model_copy(update={"directory": str(tmp_path)})})
    with pytest.raises(UserError, match=words):
        HeldoutProbe(moved)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["training.probe_interval=3"], "probe_interval 3 is not a multiple of log_interval 2; nearest: 4"),
        (["training.probe_interval=3", "training.checkpoint_interval=5"], "checkpoint_interval 5 .*; probe_interval 3"),
        (["training.probe_interval=4", "data.heldout_strings=0"], "data.heldout_strings is 0; hold some out"),
        (["training.probe_strings=5"], "probe_strings"),
    ],
)
def test_a_recipe_that_cannot_be_probed_is_refused(tiny_recipe, overrides, words):
    with pytest.raises(UserError, match=words):
        load_recipe(tiny_recipe, overrides)
