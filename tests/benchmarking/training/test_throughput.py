"""Our training step against Hugging Face's on generated documents, with DeepSpeed and without."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch

from dist_metaxlm.benchmarking.training import throughput
from dist_metaxlm.benchmarking.training.baseline import Baseline
from dist_metaxlm.benchmarking.training.documents import generated_batches
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.recipe.load import load_recipe

CPU = torch.device("cpu")
SMALL = ["model.layers=3", "model.vocab_size=320", "model.hidden=32", "model.ffn=48"]


def test_generated_batches_are_full_windows_with_the_share_of_targets() -> None:
    recipe = load_recipe("quickstart", SMALL)
    one, other = generated_batches(recipe, 512, 2)
    assert one.tokens.numel() == 512
    assert one.targets.numel() == 4 * round(recipe.phase("cross").mask_rate * 128)
    assert (one.tokens[one.targets] == 319).all()
    assert one.cu_seqlens.tolist()[-1] == 512
    assert {0, 128, 256, 384} <= set(one.cu_seqlens.tolist())
    starts = one.cu_seqlens[:-1].long()
    assert (one.positions[starts] == 0).all()
    assert not torch.equal(one.tokens, other.tokens)


def test_without_deepspeed_the_same_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    importlib.import_module("accelerate.utils")  # imported first, it looks for DeepSpeed in vain, and later tests go without
    plain = importlib.util.find_spec
    monkeypatch.setattr(
        throughput.importlib.util, "find_spec", lambda name, *rest: None if name == "deepspeed" else plain(name, *rest)
    )
    setting = throughput.Setting(load_recipe("quickstart", SMALL), 2, 256, 4, "generated")
    found = throughput.compare_with_huggingface(setting, CPU)
    assert found["engine"] == "torch AdamW"
    assert found["largest_loss_difference"] < 1e-4
    assert found["wrong"] == found["slower"] == []
    assert found["ours_flops_per_second"] > 0
    assert found["ours_mfu"] is None


def rows_of(ours: float, theirs: float, our_loss: float) -> list[Any]:
    batch = generated_batches(load_recipe("quickstart", SMALL), 128, 1)[0]
    return [(ours, theirs, our_loss, 9.0, batch)] * 3


@pytest.mark.parametrize(
    ("rows", "device", "verdict"),
    [
        (rows_of(1.0, 2.0, 9.0), "cpu", (False, False)),
        (rows_of(1.0, 2.0, 9.1), "cpu", (True, False)),
        (rows_of(1.0, 2.0, float("nan")), "cpu", (True, False)),
        (rows_of(2.0, 1.0, 9.0), "cpu", (False, False)),
        (rows_of(2.0, 1.0, 9.1), "cuda", (False, True)),
        (rows_of(1.0, 2.0, 9.5), "cuda", (True, False)),
    ],
    ids=["well", "wrong", "nan", "slow on a CPU", "slow on a GPU", "wrong in bf16"],
)
def test_verdicts(rows: list[Any], device: str, verdict: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    setting = throughput.Setting(load_recipe("quickstart", SMALL), 3, 128, 4, "generated")
    found = throughput.figures(rows, setting, torch.device(device))
    assert (bool(found["wrong"]), bool(found["slower"])) == verdict
    assert (found["ours_mfu"] is None) == (device == "cpu")


class Instant:
    """A baseline that takes no time."""

    rows, compiled, problem, lost = 4, False, None, 0.0

    def __init__(self, *_: object) -> None:
        pass

    def load(self, batch: object) -> None:
        pass

    def step(self) -> float:
        return 1.0


def test_time_runs_out_after_the_first_timed_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "_our_step", lambda *_: lambda batch: 1.0)
    monkeypatch.setattr(throughput, "Baseline", Instant)
    setting = throughput.Setting(load_recipe("quickstart", SMALL), 5, 128, 4, "generated", seconds=0.0)
    kept: list[dict[str, Any]] = []
    assert throughput.compare_with_huggingface(setting, CPU, kept.append)["steps"] == 1
    assert kept[0]["ours_tokens_per_second"] > 0
    assert kept[0]["unfinished"] == ["the baseline was not reached"]


def test_the_baseline_takes_fewer_rows_where_memory_ends_and_goes_on_where_nothing_compiles() -> None:
    recipe = load_recipe("quickstart", SMALL)
    (batch,) = generated_batches(recipe, 512, 1)
    baseline = Baseline(Encoder(recipe.model, seed=1), recipe, 8, 1e-4, CPU)
    baseline.load(batch)
    whole, plain = baseline.step(), baseline._forward

    def failing(**inputs: torch.Tensor) -> Any:
        if inputs["labels"].shape[0] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        raise RuntimeError("no C compiler")

    other = Baseline(Encoder(recipe.model, seed=1), recipe, 8, 1e-4, CPU)
    other.load(batch)
    other._forward, other.compiled = failing, True
    assert other.step() == pytest.approx(whole, abs=1e-5)
    assert (other.rows, other.compiled, other.problem) == (2, False, "RuntimeError: no C compiler")
    assert other.lost > 0
    other._forward = failing
    with pytest.raises(RuntimeError, match="no C compiler"):
        other.step()
    for one, another in zip(baseline.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(one, another, atol=1e-5, rtol=1e-4)
    assert plain is baseline.model
