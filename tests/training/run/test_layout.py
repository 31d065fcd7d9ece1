from __future__ import annotations

import re

import pytest
import torch

from dist_metaxlm.errors import UserError
from dist_metaxlm.parallel.topology import Topology
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.recipe.schema import Recipe
from dist_metaxlm.training.run.layout import automatic_precision, check_layout, layout_name


def recipe(*overrides: str) -> Recipe:
    return load_recipe("quickstart", overrides)


def on(ranks: int, a_node: int | None = None) -> Topology:
    return Topology(0, ranks, 0, a_node or ranks, "single")


def test_a_tensor_group_over_two_nodes_is_refused_unless_asked_for() -> None:
    with pytest.raises(UserError, match=r"parallel\.tensor_across_nodes=true"):
        check_layout(recipe("parallel.tensor=2"), "meta", on(2, 1))
    check_layout(recipe("parallel.tensor=2", "parallel.tensor_across_nodes=true"), "meta", on(2, 1))
    check_layout(recipe("parallel.tensor=2"), "meta", on(4, 2))


def test_legal_layouts_pass_and_have_names() -> None:
    for tensor, ranks in ((1, 1), (1, 2), (2, 2), (2, 4), (4, 4)):
        found = recipe(f"parallel.tensor={tensor}")
        check_layout(found, "meta", on(ranks))
        assert layout_name(found.parallel, ranks).endswith("nothing sharded" if ranks == 1 else "ZeRO-1")
    assert layout_name(recipe("parallel.tensor=2", "parallel.sequence=true").parallel, 8) == (
        "tensor 2 (sequence) x data 4, ZeRO-1"
    )
    deep = recipe("parallel.tensor=2", "parallel.pipeline=2", "parallel.zero_stage=0")
    check_layout(deep, "cross", on(8))
    assert layout_name(deep.parallel, 8) == "tensor 2 x pipeline 2 x data 2, ZeRO-0"


@pytest.mark.parametrize(
    ("overrides", "ranks", "words"),
    [
        (["parallel.tensor=2"], 3, "does not divide 3 ranks; nearest legal layout: parallel.tensor=1 parallel.pipeline=3"),
        (["parallel.tensor=3"], 4, "4 ranks nor model.heads=4 nor model.ffn=512; nearest legal layout: parallel.tensor=2"),
        (["parallel.tensor=8"], 8, "model.heads=4; nearest legal layout: parallel.tensor=4"),
        (["parallel.tensor=4", "model.ffn=510"], 8, "model.ffn=510; nearest legal layout: parallel.tensor=2"),
        (
            [
                "parallel.tensor=4",
                "parallel.sequence=true",
                "phases.meta.sequence_length=126",
                "phases.meta.objectives=[{name: mlm, batch_tokens: 1008}]",
            ],
            4,
            "sequence_length=126 (parallel.sequence cuts it); nearest",
        ),
        (["parallel.tensor=2", "phases.meta.objectives=[{name: mlm, batch_tokens: 384}]"], 4, "not a multiple of 2 ranks"),
        (
            ["parallel.pipeline=2"],
            3,
            "parallel.pipeline=2 does not divide 3 ranks; nearest legal layout: parallel.pipeline=3",
        ),
        (
            ["parallel.pipeline=4", "parallel.tensor=2"],
            4,
            "does not divide the 2 ranks left by parallel.tensor=2 of 4; nearest legal layout: parallel.pipeline=2",
        ),
        (["parallel.pipeline=8"], 8, "embedding and head of the model can fill; nearest legal layout: parallel.pipeline=4"),
    ],
)
def test_refusals_name_the_nearest_legal_layout(overrides: list[str], ranks: int, words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        check_layout(recipe(*overrides), "meta", on(ranks))


def test_auto_precision_without_zero_is_refused_where_the_device_computes_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = recipe("parallel.zero_stage=0")
    assert automatic_precision(plain) is None, "no CUDA device here"
    check_layout(plain, "meta", on(2), automatic_precision(plain))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: not including_emulation)
    assert automatic_precision(plain) == "bf16"
    assert automatic_precision(recipe()) is None, "with ZeRO-1 the layout does not depend on it"
    with pytest.raises(UserError, match=r"zero_stage=0 with bf16 .* set parallel\.zero_stage=1"):
        check_layout(plain, "meta", on(2), automatic_precision(plain))
