"""Weights that a checkpoint would hold otherwise than the model are seen; with DeepSpeed itself in tests/distributed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from dist_metaxlm.deepspeed_adapter.weight_check import ELEMENTS, check_all_weights, check_saved_weights
from dist_metaxlm.errors import UserError


def sharded_engine(dtype: torch.dtype = torch.float32) -> tuple[Any, dict[str, torch.Tensor]]:
    """An engine whose fp32 weights are beside the model's, as ZeRO-1 and 2 have them on the second of two ranks."""
    model = nn.ModuleDict({"lower": nn.Linear(40, 100), "upper": nn.Linear(3, 5)})
    masters = {}
    for name, param in model.named_parameters():
        start = param.numel() // 2
        masters[name] = param.detach().flatten()[start:].clone()
        param.data = param.data.to(dtype)
        mapping: Any = SimpleNamespace(
            lp_fragment_address=SimpleNamespace(start=start), get_hp_fragment=lambda _, name=name: masters[name]
        )
        param._hp_mapping = mapping  # type: ignore[attr-defined]
    return SimpleNamespace(module=model, device=torch.device("cpu")), masters


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masters_that_round_to_the_weights_pass(dtype: torch.dtype) -> None:
    engine, _ = sharded_engine(dtype)
    check_all_weights(engine, [])
    check_saved_weights(engine)


def test_one_other_element_is_refused_with_the_settings_and_the_weight() -> None:
    engine, masters = sharded_engine()
    masters["lower.weight"][-1] += 1
    with pytest.raises(
        UserError, match=r"^with a\.b, c DeepSpeed keeps the fp32 weights \(lower\.weight\) at other addresses"
    ):
        check_all_weights(engine, ["a.b", "c"])


def test_a_save_looks_at_the_first_elements_of_each_weight() -> None:
    engine, masters = sharded_engine()
    assert masters["lower.weight"].numel() > ELEMENTS
    masters["lower.weight"][-1] += 1
    check_saved_weights(engine)
    masters["upper.bias"][0] += 1
    with pytest.raises(
        UserError, match=r"fp32 weights \(upper\.bias\) no longer match those .*resume from the previous one"
    ):
        check_saved_weights(engine)


def test_what_is_not_a_number_in_both_is_no_difference() -> None:
    engine, masters = sharded_engine()
    masters["upper.bias"][0] = torch.nan
    with pytest.raises(UserError):
        check_saved_weights(engine)
    engine.module["upper"].bias.data[:] = torch.nan
    masters["upper.bias"][:] = torch.nan
    check_saved_weights(engine)
