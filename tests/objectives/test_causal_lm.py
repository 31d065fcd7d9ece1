"""Causal language modelling: a plain causal model, nothing from the future, targets inside documents, bad values."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.data.inspection import inspect
from dist_metaxlm.data.loader import PhaseData
from dist_metaxlm.data.packing.next_token import NextTokens
from dist_metaxlm.data.tokenizer import Tokenizer
from dist_metaxlm.data.tokens.store import TokenStore
from dist_metaxlm.errors import UserError
from dist_metaxlm.modeling.checkpointing import set_recompute
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.objectives.model import PretrainingModel
from dist_metaxlm.planning.flops import objective_flops, training_flops
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.recipe.schema import CausalLM, MaskedLM, ModelConfig, ParallelConfig, PhaseConfig

VOCAB, WINDOW, WIDTH = 320, 32, 8
LENGTHS = [32, 1, 14, 17, 9, 23]
OBJECTIVE = CausalLM(batch_tokens=3 * WINDOW)
FAMILIES: dict[str, dict[str, Any]] = {
    "xlmr": {},
    "modern": {"family": "modern", "norm": "pre", "local_window": 8, "global_every": 2},
}


def config_of(family: str) -> ModelConfig:
    shape = {"layers": 3, "hidden": 4 * WIDTH, "heads": 4, "ffn": 64, "vocab_size": VOCAB, "init_std": 0.2}
    return ModelConfig(**(shape | FAMILIES[family]))


def a_batch() -> PackedBatch:
    """Three windows of documents of many lengths, and the targets that the objective draws in them."""
    tokens = torch.randint(5, VOCAB, (3, WINDOW), generator=torch.Generator().manual_seed(3))
    cuts = torch.tensor([0, *np.cumsum(LENGTHS).tolist()], dtype=torch.int32)
    samples = torch.arange(3) + 50
    chooser = NextTokens(np.arange(VOCAB) < 5, OBJECTIVE.targets_per_window(WINDOW, 0.15), 7)
    targets, predicted = chooser.choose(tokens.numpy(), samples.numpy(), cuts[:-1].numpy().astype(np.int64))
    return PackedBatch(
        tokens=tokens.flatten(),
        positions=torch.cat([torch.arange(length) for length in LENGTHS]),
        cu_seqlens=cuts,
        window=WINDOW,
        samples=samples,
        languages=torch.tensor([0, 1, 0]),
        targets=torch.from_numpy(targets),
        target_tokens=torch.from_numpy(predicted),
    )


def turned(states: torch.Tensor, theta: float) -> torch.Tensor:
    """Rotary positions from 0 for [length, heads, D], as products of complex numbers."""
    angles = torch.outer(torch.arange(len(states)).float(), 1 / theta ** (torch.arange(0, WIDTH, 2).float() / WIDTH))
    rotated = torch.complex(*states.chunk(2, -1)) * torch.complex(angles.cos().double(), angles.sin().double())[:, None]
    return torch.cat([rotated.real, rotated.imag], -1)


def plain_logits(encoder: Encoder, document: torch.Tensor) -> torch.Tensor:
    """[length, V] of one document: the model written out with the encoder's weights, mask and all."""
    config, weights = encoder.config, dict(encoder.named_parameters())
    modern = config.family == "modern"

    def norm(name: str, states: torch.Tensor) -> torch.Tensor:
        scale, bias = weights[f"{name}.weight"], weights.get(f"{name}.bias")
        return F.layer_norm(states, (config.hidden,), scale, bias, config.norm_eps)

    def linear(name: str, states: torch.Tensor) -> torch.Tensor:
        return F.linear(states, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    offsets = torch.arange(len(document))
    before = offsets[:, None] - offsets[None]

    def attention(index: int, states: torch.Tensor) -> torch.Tensor:
        mixed = linear(f"blocks.{index}.attention.qkv", states).view(len(states), config.heads, 3, WIDTH)
        queries, keys, values = mixed.unbind(2)
        local = modern and index % config.global_every != 0
        if modern:
            theta = config.rope_theta_local if local else config.rope_theta
            queries, keys = turned(queries, theta), turned(keys, theta)
        hidden = (before < 0) | (before > config.local_window // 2) if local else before < 0
        scores = torch.einsum("qhd,khd->hqk", queries, keys) / WIDTH**0.5
        scores = scores.masked_fill(hidden, float("-inf"))
        mixed = torch.einsum("hqk,khd->qhd", scores.softmax(-1), values).flatten(1)
        return linear(f"blocks.{index}.attention.out", mixed)

    def mlp(index: int, states: torch.Tensor) -> torch.Tensor:
        inner = F.gelu(linear(f"blocks.{index}.mlp.up", states))
        if modern:
            inner = inner * linear(f"blocks.{index}.mlp.gate", states)
        return linear(f"blocks.{index}.mlp.down", inner)

    states = weights["embedding.tokens.weight"][document]
    if not modern:
        states = states + weights["embedding.positions.weight"][offsets + 2] + weights["embedding.token_type"]
    states = norm("embedding.norm", states)
    for index in range(config.layers):
        here = f"blocks.{index}"
        if modern:
            states = states + attention(index, norm(f"{here}.attention_norm", states) if index else states)
            states = states + mlp(index, norm(f"{here}.mlp_norm", states))
        else:
            states = norm(f"{here}.attention_norm", states + attention(index, states))
            states = norm(f"{here}.mlp_norm", states + mlp(index, states))
    states = norm("final_norm", states) if modern else states
    states = norm("head.norm", F.gelu(linear("head.dense", states)))
    return F.linear(states, weights["embedding.tokens.weight"], weights["head.bias"])


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_loss_and_gradients_are_those_of_a_plain_causal_model(family: str) -> None:
    encoder, batch = Encoder(config_of(family)).double(), a_batch()
    documents = batch.tokens.split(LENGTHS)
    expected = torch.cat([plain_logits(encoder, document) for document in documents])
    torch.testing.assert_close(encoder.logits(encoder(batch, causal=True)), expected, rtol=1e-10, atol=1e-10)
    wanted = F.cross_entropy(expected[batch.targets], batch.target_tokens, reduction="none")
    model = PretrainingModel(encoder, [OBJECTIVE])
    total, each, languages = model(batch, OBJECTIVE, 0)
    torch.testing.assert_close(each.double(), wanted, rtol=1e-6, atol=1e-6)
    assert torch.equal(languages, batch.languages[batch.targets // WINDOW])
    parameters = list(encoder.parameters())
    ours, theirs = torch.autograd.grad(total, parameters), torch.autograd.grad(wanted.sum(), parameters)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("touched", [20, 36, 40, 95])
def test_a_later_token_changes_no_bit_of_an_earlier_state(family: str, touched: int) -> None:
    encoder, batch = Encoder(config_of(family)), a_batch()
    tokens = batch.tokens.clone()
    tokens[touched] = (tokens[touched] + 7) % VOCAB
    affected = (batch.document_ids == batch.document_ids[touched]) & (torch.arange(len(tokens)) >= touched)
    for layer in (1, 2, 3, None):
        before, after = (encoder(one, layer, causal=True) for one in (batch, replace(batch, tokens=tokens)))
        assert torch.equal(before[~affected], after[~affected])
        assert not torch.equal(before[affected], after[affected])
    assert not torch.equal(encoder(batch)[~affected], encoder(replace(batch, tokens=tokens))[~affected])


@pytest.mark.parametrize("family", FAMILIES)
def test_recomputed_blocks_are_causal_too(family: str) -> None:
    batch, gradients = a_batch(), []
    for recompute in ("none", "blocks"):
        model = PretrainingModel(Encoder(config_of(family)), [OBJECTIVE])
        set_recompute(model, ParallelConfig(recompute=recompute))
        gradients.append(torch.autograd.grad(model(batch, OBJECTIVE, 0)[0], list(model.parameters())))
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_mlm_beside_it_stays_bidirectional() -> None:
    batch, masked = a_batch(), MaskedLM(batch_tokens=3 * WINDOW)
    model = PretrainingModel(Encoder(config_of("xlmr")), [masked, OBJECTIVE])
    alone = model.encoder.masked_lm_loss(model.encoder(batch), batch.targets, batch.target_tokens)
    assert torch.equal(model(batch, masked, 0)[1], alone.detach())
    assert not torch.equal(model(batch, OBJECTIVE, 0)[1], alone.detach())


def phase_data(tiny_recipe: Path, share: float) -> tuple[PhaseData, PhaseConfig, Tokenizer]:
    recipe = load_recipe(tiny_recipe, [f"phases.meta.objectives=[{{name: clm, batch_tokens: 512, target_share: {share}}}]"])
    tokenizer = Tokenizer.load(f"{recipe.data.directory}/tokenizer.model")
    store = TokenStore.open(f"{recipe.data.directory}/store")
    return PhaseData(store, tokenizer, "meta", recipe.phases["meta"], recipe.seed), recipe.phases["meta"], tokenizer


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_targets_are_the_next_tokens_of_the_same_document(tiny_recipe: Path, share: float) -> None:
    data, phase, tokenizer = phase_data(tiny_recipe, share)
    batch, length = data.batch(phase.objectives[0], 5, 60), phase.sequence_length
    assert torch.equal(batch.tokens[batch.targets + 1], batch.target_tokens)
    assert torch.equal(batch.document_ids[batch.targets + 1], batch.document_ids[batch.targets])
    assert not tokenizer.special[batch.target_tokens.numpy()].any()
    assert bool((batch.targets.diff() > 0).all())
    eligible = torch.from_numpy(~tokenizer.special[batch.tokens.numpy()]) & (batch.positions > 0)
    counts = torch.bincount(batch.targets // length, minlength=60)
    assert torch.equal(counts, eligible.view(60, length).sum(1).clamp(max=round(share * length)))
    for start, count in ((5, 10), (15, 50)):  # any cut of the samples gives the same
        part, first = data.batch(phase.objectives[0], start, count), (start - 5) * length
        inside = (batch.targets >= first) & (batch.targets < first + count * length)
        assert torch.equal(part.targets + first, batch.targets[inside])
        assert torch.equal(part.target_tokens, batch.target_tokens[inside])


def test_inspection_shows_the_text_and_the_token_after_each_target(tiny_recipe: Path) -> None:
    shown = inspect(load_recipe(tiny_recipe, ["phases.meta.objectives=[{name: clm, batch_tokens: 512}]"]), "meta", None, 3)
    targets = [(document, target) for document in shown["documents"] for target in document["targets"]]
    assert len(targets) == shown["targets"] == round(0.3 * 32)
    for document, target in targets:
        pieces, place = document["seen"].split(" "), target["position"] - document["positions"][0]
        assert (pieces[place], pieces[place + 1]) == (target["seen"], target["piece"])


def test_work_and_denominator_follow_from_the_recipe(tiny_recipe: Path) -> None:
    model = config_of("xlmr")
    assert OBJECTIVE.denominator(WINDOW, 0.15) == 3 * round(0.3 * WINDOW)
    expected = training_flops(model, 96, 96 * WINDOW / 2, 3 * round(0.3 * WINDOW))
    assert objective_flops(model, OBJECTIVE, WINDOW, 0.15) == expected
    both = "phases.meta.objectives=[{name: mlm, batch_tokens: 256}, {name: clm, batch_tokens: 512, target_share: 0.4}]"
    phase = load_recipe(tiny_recipe, [both]).phases["meta"]
    assert (phase.tokens_per_step, phase.targets_per_token) == (768, 0.4)
    assert load_recipe(tiny_recipe).phases["meta"].targets_per_token == 0.2


@pytest.mark.parametrize(
    ("fields", "extra", "words"),
    [
        ("target_share: 0", [], r"objectives.0.clm.target_share: Input should be greater than 0 \(got 0\)"),
        ("target_share: -0.1", [], "target_share: Input should be greater than 0"),
        ("target_share: 1.5", [], "target_share: Input should be less than or equal to 1"),
        ("target_share: .nan", [], "target_share"),
        ("target_share: 0.01", [], "clm target_share 0.01 of sequence_length 32 is less than one target a window; set"),
        ("mask_rate: 0.3", [], "unknown key phases.meta.objectives.0.clm.mask_rate"),
        ("batch_tokens: 500", [], "clm batch_tokens 500 is not a multiple of sequence_length 32; nearest: 512"),
        (
            "weight: 1",
            ["model.family=modern", "model.norm=pre", "model.local_window=1"],
            "phases.meta clm: with model.local_window 1 a local layer shows a token no earlier one; set it to at least 2",
        ),
    ],
)
def test_bad_values_end_in_one_sentence(tiny_recipe: Path, fields: str, extra: list[str], words: str) -> None:
    given = fields if "batch_tokens" in fields else f"batch_tokens: 512, {fields}"
    with pytest.raises(UserError, match=words):
        load_recipe(tiny_recipe, [f"phases.meta.objectives=[{{name: clm, {given}}}]", *extra])
