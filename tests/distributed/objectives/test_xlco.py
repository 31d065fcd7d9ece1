"""xlco on 1, 2 and 4 ranks gives losses and gradients of the published formula, which is here in plain PyTorch.

With `group` the keys of a group are negatives of each other too; there a sequence's states are pooled to their mean as well.

The reference encodes one sequence at a time, keeps the queue as a list, and has no packing, ranks or micro-batches.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.data.loader import PhaseData
from dist_metaxlm.data.tokenizer import Tokenizer
from dist_metaxlm.data.tokens.store import TokenStore
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.modeling.initialisation import initial_values
from dist_metaxlm.recipe.load import load_recipe

WORKER = Path(__file__).with_name("worker_xlco.py")
STEPS, RATE = 4, 0.3  # of worker_xlco.py
EXAMPLES, QUEUE, LAYER, MOMENTUM = 8, 20, 1, 0.7
# 8 keys a step and 20 places: the third step wraps around the end of the queue.
XLCO = {
    "name": "xlco",
    "pairs": 2 * EXAMPLES,
    "queue": QUEUE,
    "layer": LAYER,
    "momentum": MOMENTUM,
    "max_tokens": 14,
    "mixup": "sides",
}
GROUPS = {"queue": None, "groups": 4}
"""Examples of a group: four ranks share each of the two, two ranks have one each."""


def sequences(batch: PackedBatch) -> list[torch.Tensor]:
    """Token ids of each example's sequence, in the order of the examples."""
    starts = batch.cu_seqlens.tolist()
    ends = dict(zip(starts, starts[1:], strict=False))
    return [batch.tokens[start : ends[start]] for start in batch.starts.tolist()]


def pooled(encoder: Encoder, tokens: torch.Tensor, mean: bool) -> torch.Tensor:
    """The hidden state of `<s>`, or the mean of all, after block LAYER of a sequence by itself."""
    count, none = len(tokens), torch.empty(0, dtype=torch.int64)
    bounds = torch.tensor([0, count], dtype=torch.int32)
    alone = PackedBatch(tokens, torch.arange(count), bounds, count, none, none, none, none)
    states = encoder.hidden_states(alone)[LAYER]
    return states.mean(0) if mean else states[0]


def reference(recipe_path: Path, group: int | None) -> dict[str, torch.Tensor]:
    """XlCo as InfoXLM defines it: -log exp(q k / tau) / (exp(q k / tau) + sum over the queue), momentum after each step."""
    recipe = load_recipe(recipe_path)
    phase, tokenizer = recipe.phases["joint"], Tokenizer.load(f"{recipe.data.directory}/tokenizer.model")
    data = PhaseData(TokenStore.open(f"{recipe.data.directory}/store"), tokenizer, "joint", phase, recipe.seed)
    fast = Encoder(recipe.model, recipe.seed).double()
    matrix = initial_values("objectives.xlco.projection.weight", (32, 32), recipe.seed, 0.02).double().requires_grad_()
    weights = {**dict(fast.named_parameters()), "objectives.xlco.projection.weight": matrix}
    slow, slow_matrix = copy.deepcopy(fast), matrix.detach().clone()
    queue: list[torch.Tensor] = []
    found: dict[str, torch.Tensor] = {}
    for step in range(STEPS):
        batch = data.batch(phase.objectives[0], step * 2 * EXAMPLES, 2 * EXAMPLES)
        losses = []
        with torch.no_grad():
            keys = [slow_matrix @ pooled(slow, key, bool(group)) for key in sequences(batch.keys)]
        for place, query in enumerate(sequences(batch)):
            q, k = matrix @ pooled(fast, query, bool(group)), keys[place]
            first = place // group * group if group else place
            beside = [keys[other] for other in range(first, first + (group or 1)) if other != place]
            scores = torch.stack([q @ k, *(q @ negative for negative in [*queue, *beside])]) / 0.25
            losses.append(-torch.log(torch.exp(scores[0]) / torch.exp(scores).sum()))
        loss = torch.stack(losses).mean()
        gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        found[f"{step}.loss"] = loss.detach()[None]
        with torch.no_grad():
            for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
                if gradient is not None:
                    found[f"{step}.{name}"] = gradient
                    weight -= RATE * gradient
            for ours, theirs in [*zip(slow.parameters(), fast.parameters(), strict=True), (slow_matrix, matrix)]:
                ours.copy_(MOMENTUM * ours + (1 - MOMENTUM) * theirs)
        queue = (queue + keys)[-QUEUE:]
    found["queue"] = torch.stack(queue)
    return found | {
        f"momentum.{name}": value
        for name, value in [*slow.named_parameters(), ("objectives.xlco.projection.weight", slow_matrix)]
    }


@pytest.fixture(scope="module", params=GROUPS.values(), ids=GROUPS)
def trained(
    tiny_recipe: Path,
    tmp_path_factory: pytest.TempPathFactory,
    run_ranks: Callable[..., str],
    request: pytest.FixtureRequest,
) -> Any:
    """(what `reference` finds, by number of ranks what those found, examples of a group)"""
    tree, group = yaml.safe_load(tiny_recipe.read_text()), request.param
    tree["phases"]["joint"]["objectives"] = [XLCO | ({"group": 2 * group, "pooling": "mean"} if group else {})]
    folder = tmp_path_factory.mktemp("xlco")
    recipe = folder / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(tree))
    run_ranks(4, WORKER, recipe, folder / "found")
    return reference(recipe, group), {ranks: load_file(folder / f"found.{ranks}") for ranks in (1, 2, 4)}, group


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_losses_and_gradients_are_those_of_the_formula(trained: Any, ranks: int) -> None:
    expected, found = trained[0], trained[1][ranks]
    names = [name for name in expected if name[0].isdigit()]
    assert {name for name in found if name[0].isdigit()} == set(names)
    for name in names:
        difference = (found[name] - expected[name]).norm() / expected[name].norm().clamp(min=1e-12)
        assert difference < 1e-9, f"{name}: relative difference {difference:.1e}"
    losses = [float(found[f"{step}.loss"]) for step in range(STEPS)]
    beside = (trained[2] or 1) - 1
    assert losses[0] == pytest.approx(math.log(1 + beside), rel=0.2), "an empty queue has no negatives"
    assert losses[1] == pytest.approx(math.log(9 + beside), rel=0.2)
    if not beside:
        assert losses[2] > losses[1], "more negatives"


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_momentum_encoder_and_the_queue_follow(trained: Any, ranks: int) -> None:
    expected, found = trained[0], trained[1][ranks]
    averages = {name for name in found if name.startswith("momentum.") and name != "momentum.queue"}
    assert averages < set(expected)
    assert not any(name.startswith(("momentum.blocks.1", "momentum.head")) for name in averages), "it ends at the layer"
    for name in averages:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-10, atol=1e-12)
    # A ring: the place after the newest key holds the oldest.
    newest = STEPS * EXAMPLES % QUEUE
    torch.testing.assert_close(found["momentum.queue"].roll(-newest, 0), expected["queue"], rtol=1e-10, atol=1e-12)
