"""Loss and every gradient of one step over gloo ranks equal those of one process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

WORKER = Path(__file__).with_name("worker_gradients.py")


@pytest.fixture(scope="module")
def single(
    tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory, run_ranks: Callable[..., str]
) -> dict[str, torch.Tensor]:
    output = tmp_path_factory.mktemp("single") / "gradients.safetensors"
    run_ranks(1, WORKER, tiny_recipe, output, 10**9)
    return load_file(output)


@pytest.mark.parametrize(("ranks", "micro_batch_tokens"), [(1, 32), (2, 10**9), (4, 32)])
def test_gradients_equal_one_process(
    single: dict[str, torch.Tensor],
    tiny_recipe: Path,
    tmp_path: Path,
    ranks: int,
    micro_batch_tokens: int,
    run_ranks: Callable[..., str],
) -> None:
    output = tmp_path / "gradients.safetensors"
    run_ranks(ranks, WORKER, tiny_recipe, output, micro_batch_tokens)
    spread = load_file(output)
    assert set(spread) == set(single)
    assert spread["loss"].item() == pytest.approx(single["loss"].item(), rel=1e-12)
    for name, expected in single.items():
        error = (spread[name] - expected).norm() / expected.norm().clamp(min=1e-12)
        assert error < 1e-10, f"{name}: relative error {error:.1e}"
