from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.modeling.layers import Norm
from dist_metaxlm.recipe.schema import ModelConfig

VOCAB, WINDOW = 320, 32
LENGTHS = [[32], [1, 14, 17], [9, 23], [32]]
FAMILIES: dict[str, dict[str, Any]] = {
    "xlmr": {},
    "xlmr-pre": {"norm": "pre"},
    "modern": {"family": "modern", "norm": "pre", "local_window": 8, "global_every": 2},
}
FAMILIES["modern-rms"] = {**FAMILIES["modern"], "norm_type": "rms"}


def config_of(family: str, **fields: Any) -> ModelConfig:
    shape = {"layers": 3, "hidden": 32, "heads": 4, "ffn": 64, "vocab_size": VOCAB, "init_std": 0.2}
    return ModelConfig(**(shape | FAMILIES[family] | fields))


def packed_batch(windows: slice = slice(None)) -> PackedBatch:
    """The chosen ones of four windows with documents of many lengths; every fifth token is a target."""
    generator = torch.Generator().manual_seed(3)
    numbers = torch.arange(len(LENGTHS))[windows]
    tokens = torch.randint(5, VOCAB, (len(LENGTHS), WINDOW), generator=generator)[windows].flatten()
    lengths = [length for number in numbers for length in LENGTHS[number]]
    targets = torch.arange(0, tokens.numel(), 5)
    return PackedBatch(
        tokens=tokens,
        positions=torch.cat([torch.arange(length) for length in lengths]),
        cu_seqlens=torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32),
        window=WINDOW,
        samples=numbers + 50,
        languages=torch.zeros_like(numbers),
        targets=targets,
        target_tokens=torch.full_like(targets, 9),
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_document_never_sees_another(family: str) -> None:
    encoder, batch = Encoder(config_of(family)), packed_batch()
    spans = [slice(*pair) for pair in zip(batch.cu_seqlens.tolist(), batch.cu_seqlens.tolist()[1:], strict=False)]
    before = encoder.hidden_states(batch)
    for touched in spans:
        tokens = batch.tokens.clone()
        tokens[touched] = (tokens[touched] + 7) % VOCAB
        after = encoder.hidden_states(replace(batch, tokens=tokens))
        rest = torch.ones(tokens.numel(), dtype=torch.bool)
        rest[touched] = False
        for one, other in zip(before, after, strict=True):
            assert torch.equal(one[rest], other[rest])
            assert not torch.equal(one[touched], other[touched])


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_and_final_norm(family: str) -> None:
    encoder, batch = Encoder(config_of(family)), packed_batch()
    states = encoder.hidden_states(batch)
    assert [tuple(state.shape) for state in states] == [(128, 32)] * 4
    for layer, state in enumerate(states):
        assert torch.equal(encoder(batch, last_layer=layer), state)
    last = encoder(batch)
    assert torch.equal(last, encoder.final_norm(states[-1]))
    assert torch.equal(last, states[-1]) == (family == "xlmr")
    encoder(batch, last_layer=1).square().sum().backward()
    assert encoder.blocks[0].mlp.up.weight.grad is not None
    assert encoder.blocks[1].mlp.up.weight.grad is None


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_is_the_cross_entropy_of_the_logits(family: str) -> None:
    encoder, batch = Encoder(config_of(family)), packed_batch()
    states = encoder(batch)
    losses = encoder.masked_lm_loss(states, batch.targets, batch.target_tokens)
    logits = encoder.logits(states[batch.targets])
    plain = torch.nn.functional.cross_entropy(logits, batch.target_tokens, reduction="none")
    torch.testing.assert_close(losses, plain, atol=1e-5, rtol=1e-5)
    names = [name for name, _ in encoder.named_parameters()]
    ours = torch.autograd.grad(losses.sum(), list(encoder.parameters()), retain_graph=True)
    theirs = torch.autograd.grad(plain.sum(), list(encoder.parameters()))
    for name, one, other in zip(names, ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_windows_add_up_with_dropout(family: str) -> None:
    encoder = Encoder(config_of(family, dropout=0.2, attention_dropout=0.2)).train()

    def gradients(batch: PackedBatch) -> list[torch.Tensor]:
        rows = torch.arange(0, batch.tokens.numel(), 4)
        losses = encoder.masked_lm_loss(encoder(batch, step=11), rows, torch.full_like(rows, 9))
        return list(torch.autograd.grad(losses.sum(), list(encoder.parameters())))

    whole = gradients(packed_batch(slice(0, 2)))
    parts = [gradients(packed_batch(slice(index, index + 1))) for index in range(2)]
    for one, *others in zip(whole, *parts, strict=True):
        torch.testing.assert_close(one, sum(others), atol=2e-3, rtol=1e-3)


def test_dropout_follows_training_mode_step_and_objective() -> None:
    encoder, batch = Encoder(config_of("xlmr", dropout=0.3)), packed_batch()
    assert torch.equal(encoder(batch, step=4), encoder(batch, step=4))
    assert not torch.equal(encoder(batch, step=4), encoder(batch, step=5))
    # Each objective numbers its samples from 0.
    assert not torch.equal(encoder(batch, step=4, objective="mlm"), encoder(batch, step=4, objective="tlm"))
    encoder.eval()
    assert torch.equal(encoder(batch, step=4), encoder(batch, step=5))
    plain = Encoder(config_of("xlmr")).train()
    assert torch.equal(plain(batch), encoder(batch))


def test_bf16_states_and_fp32_losses() -> None:
    for family in FAMILIES:
        exact, batch = Encoder(config_of(family, init_std=0.05)), packed_batch()
        encoder = Encoder(config_of(family, init_std=0.05)).to(torch.bfloat16)
        states = encoder(batch)
        assert states.dtype == torch.bfloat16
        losses = encoder.masked_lm_loss(states, batch.targets, batch.target_tokens)
        assert losses.dtype == torch.float32
        losses.sum().backward()
        assert all(parameter.grad.dtype == torch.bfloat16 for parameter in encoder.parameters())
        expected = exact.masked_lm_loss(exact(batch), batch.targets, batch.target_tokens)
        torch.testing.assert_close(losses, expected, atol=0.1, rtol=0.05)


def test_every_norm_of_an_rms_model_divides_by_the_root_of_the_mean_square() -> None:
    layer, rms = (Encoder(config_of(family)) for family in ("modern", "modern-rms"))
    assert all(torch.equal(value, layer.state_dict()[name]) for name, value in rms.state_dict().items())
    norms = [module for module in rms.modules() if isinstance(module, Norm)]
    # embedding, two in each block but the first, final, head
    assert len(norms) == 1 + 2 * 3 - 1 + 2
    states = torch.randn(4, 32, generator=torch.Generator().manual_seed(1)) + 3
    for norm in norms:
        torch.testing.assert_close(norm(states).square().mean(-1), torch.ones(4), atol=1e-4, rtol=1e-4)
        assert norm(states).mean() > 0.8, "the mean is left in"
    embedded = rms.hidden_states(packed_batch())[0]
    torch.testing.assert_close(embedded.square().mean(-1), torch.ones(len(embedded)), atol=1e-3, rtol=1e-3)


def test_meta_device_has_shapes_only() -> None:
    with torch.device("meta"):
        encoder = Encoder(config_of("modern"))
    assert {parameter.device.type for parameter in encoder.parameters()} == {"meta"}
    names = set(encoder.state_dict())
    assert {"embedding.tokens.weight", "blocks.0.attention.qkv.weight", "final_norm.weight", "head.bias"} <= names
    assert [name for name in names if name.endswith("bias")] == ["head.bias"]
