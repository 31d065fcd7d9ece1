"""Momentum encoder, queue and what is left out of it, in one process (the formula: tests/distributed/test_xlco.py)."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.objectives.model import PretrainingModel
from dist_metaxlm.objectives.xlco import MomentumContrast, representations, same_text, xlco_losses
from dist_metaxlm.recipe.schema import CrossLingualContrast, ModelConfig

MODEL = ModelConfig(layers=3, hidden=16, heads=2, ffn=32, vocab_size=400, max_positions=32)
L, EXAMPLES = 12, 4


def config(**fields: object) -> CrossLingualContrast:
    return CrossLingualContrast.model_validate(
        {"pairs": EXAMPLES, "queue": 6, "layer": 2, "mixup": "none", "momentum": 0.5, **fields}
    )


def packed(seed: int) -> PackedBatch:
    """One sequence a window, EXAMPLES windows."""
    tokens = torch.randint(10, 390, (EXAMPLES, L), generator=torch.Generator().manual_seed(seed))
    tokens[:, 0] = 0
    bounds, none = torch.arange(0, EXAMPLES * L + 1, L), torch.empty(0, dtype=torch.int64)
    return PackedBatch(
        tokens.view(-1),
        torch.arange(L).repeat(EXAMPLES),
        bounds.to(torch.int32),
        L,
        torch.arange(EXAMPLES),
        torch.zeros(EXAMPLES, dtype=torch.int64),
        none,
        none,
        starts=bounds[:-1],
    )


def example(seed: int) -> PackedBatch:
    texts = torch.arange(2 * EXAMPLES).view(EXAMPLES, 2) + 1000 * seed
    return replace(packed(2 * seed), keys=packed(2 * seed + 1), texts=texts, pair_languages=torch.arange(EXAMPLES))


def model_with(objective: CrossLingualContrast, dropout: float = 0.0) -> PretrainingModel:
    return PretrainingModel(Encoder(MODEL.model_copy(update={"dropout": dropout}), seed=1), [objective])


def memory_of(model: PretrainingModel) -> MomentumContrast:
    assert model.memory is not None
    return model.memory


def test_blocks_above_the_layer_get_no_gradient_and_keys_none_at_all() -> None:
    objective = config()
    model = model_with(objective)
    for seed in range(2):
        loss, losses, languages = model(example(seed), objective, seed)
        assert losses.shape == languages.shape == (EXAMPLES,)
        loss.backward()
        model.after_step()
    assert all(p.grad is None for p in model.encoder.blocks[2].parameters())
    assert all(p.grad is not None for p in model.encoder.blocks[1].parameters())
    assert model.get_parameter("objectives.xlco.projection.weight").grad.abs().sum() > 0
    assert not any(value.requires_grad for value in memory_of(model).large().values())
    assert not any("memory" in name for name, _ in model.named_parameters())


def test_the_momentum_encoder_starts_from_the_weights_and_runs_without_dropout() -> None:
    objective = config(projection=False, normalise=True)
    model, batch = model_with(objective, dropout=0.5).train(), example(1)
    memory = memory_of(model)
    model(batch, objective, 0)
    [(keys, _)] = memory._waiting
    with torch.no_grad():
        states = model.encoder.eval()(batch.keys, last_layer=2)
    assert torch.equal(keys, representations(states, batch.keys, None, objective))
    assert keys.norm(dim=-1) == pytest.approx(torch.ones(EXAMPLES))


def test_averages_are_fp32_where_the_model_is_not() -> None:
    objective = config(momentum=0.999)
    model = model_with(objective).bfloat16()
    memory = memory_of(model)
    name = "blocks.0.mlp.up.weight"
    before = memory.average[name].clone()
    with torch.no_grad():
        model.get_parameter(f"encoder.{name}").add_(0.5)
    model.after_step()
    after, moved = memory.average[name], model.get_parameter(f"encoder.{name}").float()
    assert after.dtype == memory.queue.dtype == torch.float32
    torch.testing.assert_close(after, 0.999 * before + 0.001 * moved)
    running = memory.encoder.get_parameter(name)
    assert running.dtype == torch.bfloat16
    assert torch.equal(running, after.bfloat16())


@pytest.mark.parametrize("places", [3, 4, 6, 100])
def test_the_queue_holds_the_newest_keys_in_order(places: int) -> None:
    objective = config(queue=places)
    model = model_with(objective)
    memory, all_keys = memory_of(model), []
    for seed in range(4):
        model(example(seed), objective, seed)
        all_keys.append(memory._waiting[0][0])
        assert memory.enqueued == seed * EXAMPLES, "keys join after the step"
        model.after_step()
    newest = torch.cat(all_keys)[-places:]
    filled = min(16, places)
    kept = memory.queue[:filled].roll(-(16 % places) if places < 16 else 0, 0)
    assert torch.equal(kept, newest)
    assert not memory.queue[filled:].any()


def test_without_a_queue_the_keys_of_the_group_are_the_only_negatives() -> None:
    objective = config(queue=0, group=EXAMPLES)
    model, losses = model_with(objective), []
    memory = memory_of(model)
    for _ in range(2):
        losses.append(model(example(1), objective, 1)[1].detach())
        model.after_step()
    assert torch.equal(*losses)  # no key of the first step is one of the second's
    assert losses[0] == pytest.approx(torch.full([EXAMPLES], math.log(EXAMPLES)), rel=0.2)
    assert set(memory.large()) == set(memory.average)
    memory.restore(memory.large(), memory.small())


def test_a_step_without_the_objective_moves_the_encoder_and_leaves_the_queue() -> None:
    model = model_with(config())
    memory = memory_of(model)
    before = memory.average["embedding.norm.weight"].clone()
    with torch.no_grad():
        model.encoder.get_parameter("embedding.norm.weight").add_(1.0)
    model.after_step()
    torch.testing.assert_close(memory.average["embedding.norm.weight"], before + 0.5)
    assert memory.enqueued == 0


def test_the_same_words_are_no_negative_on_whichever_side() -> None:
    texts = torch.tensor([[1, 2], [3, 4]])
    queue = torch.tensor([[5, 6], [2, 7], [8, 3], [1, 2]])
    left_out = same_text(texts, queue)
    assert left_out.tolist() == [[False, True, False, True], [False, False, True, False]]
    query, key, others = torch.randn(2, 5), torch.randn(2, 5), torch.randn(4, 5)
    losses = xlco_losses(query, key, [(others, left_out)], 0.25)
    for index, kept in enumerate([[0, 2], [0, 1, 3]]):
        scores = torch.stack([query[index] @ key[index], *(query[index] @ others[place] for place in kept)]) / 0.25
        torch.testing.assert_close(losses[index], -torch.log_softmax(scores, 0)[0])
