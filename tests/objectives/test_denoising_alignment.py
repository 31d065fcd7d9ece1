"""Denoising word alignment, on windows as training reads them, against the formula pair by pair and token by token."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
import torch.nn.functional as F

from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.data.loader import PhaseData
from dist_metaxlm.data.special_tokens import EOS
from dist_metaxlm.data.tokenizer import Tokenizer
from dist_metaxlm.data.tokens.store import TokenStore
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.objectives.denoising_alignment import Pointer, denoising_losses, self_labels, unmasked
from dist_metaxlm.objectives.model import PretrainingModel
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.recipe.schema import DenoisingAlignment, Recipe

sys.path.insert(0, str(Path(__file__).parent))
from pair_references import Links, reference_itermax, reference_sinkhorn

DWA = "{name: dwa, batch_tokens: 256, layer: 1}"


@pytest.fixture(scope="module")
def recipe(tiny_recipe: Path) -> Recipe:
    return load_recipe(tiny_recipe, [f"phases.joint.objectives=[{DWA}]", "model.dropout=0.3"])


@pytest.fixture(scope="module")
def data(recipe: Recipe) -> PhaseData:
    directory = Path(recipe.data.directory)
    return PhaseData(
        TokenStore.open(directory / "store"),
        Tokenizer.load(directory / "tokenizer.model"),
        "joint",
        recipe.phases["joint"],
        recipe.seed,
    )


def objective_of(recipe: Recipe) -> DenoisingAlignment:
    [objective] = recipe.phases["joint"].objectives
    assert isinstance(objective, DenoisingAlignment)
    return objective


def pairs_of(batch: PackedBatch) -> list[tuple[list[int], list[int]]]:
    """Positions of both sentences of every pair."""
    tokens, bounds, found = unmasked(batch).tolist(), batch.cu_seqlens.tolist(), []
    for start, end in zip(bounds[:-1], bounds[1:], strict=True):
        ends = [place for place in range(start, end) if tokens[place] == EOS]
        if ends:
            assert len(ends) == 2
            found.append((list(range(start + 1, ends[0])), list(range(ends[0] + 1, ends[1]))))
    return found


def reference_labels(encoder: Encoder, batch: PackedBatch, config: DenoisingAlignment) -> dict[int, tuple[int, list[int]]]:
    """Position -> (position of its label, positions it may point at)."""
    labels: dict[int, tuple[int, list[int]]] = {}
    with torch.no_grad():
        states = encoder.eval()(replace(batch, tokens=unmasked(batch)), last_layer=config.layer)
    for left, right in pairs_of(batch):
        plan = reference_sinkhorn((states[left] @ states[right].T).tolist(), config.sinkhorn_iterations)[0]
        links: Links = reference_itermax(plan, config.rounds)
        for i, place in enumerate(left):
            own = [j for a, j in links if a == i]
            if own:
                labels[place] = right[max(own, key=lambda j: plan[i][j])], right
        for j, place in enumerate(right):
            own = [i for i, b in links if b == j]
            if own:
                labels[place] = left[max(own, key=lambda i: plan[i][j])], left
    return labels


def reference_losses(
    model: PretrainingModel, states: torch.Tensor, batch: PackedBatch, labels: dict[int, tuple[int, list[int]]]
) -> list[torch.Tensor]:
    weights = dict(model.named_parameters())
    losses = []
    for target in batch.targets.tolist():
        if target not in labels:
            losses.append(states.new_zeros(()))
            continue
        label, others = labels[target]
        query = weights["objectives.dwa.query.weight"] @ states[target] + weights["objectives.dwa.query.bias"]
        scores = torch.stack([query @ (weights["objectives.dwa.key.weight"] @ states[other]) for other in others])
        losses.append(F.cross_entropy(scores / math.sqrt(states.size(1)), torch.tensor(others.index(label))))
    return losses


@pytest.mark.parametrize(("rounds", "iterations"), [(2, 2), (1, 0)])
def test_losses_and_gradients_are_those_of_the_formula(
    recipe: Recipe, data: PhaseData, rounds: int, iterations: int
) -> None:
    config = objective_of(recipe).model_copy(update={"rounds": rounds, "sinkhorn_iterations": iterations})
    model = PretrainingModel(Encoder(recipe.model, recipe.seed), [config]).double()
    batch = data.batch(config, 40, 8)
    labels = reference_labels(model.encoder, batch, config)
    assert sum(len(pair) > 0 for pair in pairs_of(batch)) > 8, "several pairs must share a window"
    model.train()
    reference = reference_losses(model, model.encoder(batch, step=3, objective=config.name), batch, labels)
    total = torch.stack(reference).sum()
    expected = torch.autograd.grad(total, list(model.parameters()), allow_unused=True)
    loss, losses, languages = model(batch, config, 3)
    torch.testing.assert_close(losses, torch.stack(reference).detach())
    assert losses.numel() == languages.numel() == batch.targets.numel()
    assert 0.3 < float((losses > 0).double().mean()) < 1
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    for (name, _), ours, theirs in zip(model.named_parameters(), found, expected, strict=True):
        assert (ours is None) == (theirs is None), name
        if ours is not None:
            torch.testing.assert_close(ours, theirs, msg=lambda text, name=name: f"{name}: {text}")


def test_labels_are_made_without_masks_and_dropout_and_leave_the_mode_as_it_was(recipe: Recipe, data: PhaseData) -> None:
    config, encoder = objective_of(recipe), Encoder(recipe.model, recipe.seed)
    batch = data.batch(config, 0, 4)
    quiet, sides = self_labels(encoder.eval(), batch, config)
    assert not encoder.training
    loud, _ = self_labels(encoder.train(), batch, config)
    assert encoder.training
    assert all(block.training for block in encoder.blocks)
    assert torch.equal(quiet, loud)
    bare = replace(batch, tokens=unmasked(batch))
    assert torch.equal(quiet, self_labels(encoder, bare, config)[0])
    linked = quiet >= 0
    assert not linked[~(sides.first | sides.second)].any()
    partner = quiet.clamp(min=0)
    assert (sides.first.gather(1, partner) == sides.second)[linked].all()
    assert (sides.pair.gather(1, partner) == sides.pair)[linked].all()


def test_the_sum_does_not_depend_on_how_windows_are_cut_into_batches(recipe: Recipe, data: PhaseData) -> None:
    config = objective_of(recipe)
    model = PretrainingModel(Encoder(recipe.model, recipe.seed), [config]).double().eval()
    whole = model(data.batch(config, 8, 8), config, 0)[1]
    parts = torch.cat([model(data.batch(config, first, 2), config, 0)[1] for first in (8, 10, 12, 14)])
    torch.testing.assert_close(parts, whole)


def test_a_sample_names_where_its_pairs_stand_in_the_store(recipe: Recipe, data: PhaseData) -> None:
    name, runs = data.origin(objective_of(recipe), 5)
    batch = data.batch(objective_of(recipe), 5, 1)
    assert name == data.pairs[int(batch.languages[0])]
    assert [place + 1 for place, _ in runs] == [left[0] for left, _ in pairs_of(batch)]


def test_a_window_of_padding_costs_nothing_and_has_finite_gradients(recipe: Recipe, data: PhaseData) -> None:
    config = objective_of(recipe)
    model = PretrainingModel(Encoder(recipe.model, recipe.seed), [config])
    batch = data.batch(config, 0, 1)
    empty = replace(batch, tokens=torch.ones_like(batch.tokens), target_tokens=torch.ones_like(batch.target_tokens))
    loss, losses, _ = model(empty, config, 0)
    loss.backward()
    assert not losses.any()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_other_objectives_bring_no_parameters(recipe: Recipe) -> None:
    names = [name for name, _ in PretrainingModel(Encoder(recipe.model, recipe.seed)).named_parameters()]
    assert all(name.startswith("encoder.") for name in names)


def test_half_precision_is_near(recipe: Recipe, data: PhaseData) -> None:
    config = objective_of(recipe)
    batch, sums = data.batch(config, 0, 8), []
    for dtype in (torch.float32, torch.bfloat16):
        model = PretrainingModel(Encoder(recipe.model, recipe.seed), [config]).to(dtype).eval()
        loss, losses, _ = model(batch, config, 0)
        assert losses.dtype == torch.float32
        loss.backward()
        sums.append(float(loss))
    assert sums[1] == pytest.approx(sums[0], rel=0.1)


def test_nothing_of_it_waits_for_the_device(recipe: Recipe, data: PhaseData) -> None:
    """On the meta device no number can be read: whatever depended on one would fail here."""
    config, hidden = objective_of(recipe), recipe.model.hidden
    batch = data.batch(config, 0, 8).to("meta")

    class States(torch.nn.Module):
        def forward(self, batch: PackedBatch, last_layer: int) -> torch.Tensor:
            return torch.empty(batch.tokens.numel(), hidden, device="meta")

    states, encoder = States(), cast(Encoder, States())
    pointer = Pointer(Encoder(recipe.model, recipe.seed)).to("meta")
    losses, languages = denoising_losses(encoder, pointer, states(batch, 0), batch, config)
    assert losses.shape == languages.shape == batch.targets.shape
    losses.sum().backward()
