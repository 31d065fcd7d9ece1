from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dist_metaxlm.benchmarking.kernels import attention_cases as module
from dist_metaxlm.kernels import registry

CPU = torch.device("cpu")


def test_operations_count_the_pairs_that_see_each_other() -> None:
    whole, short, local, *dropping = module.attention_cases(True, CPU)
    assert whole.operations == 14 * 2 * 64 * 64 * 2 * 32
    assert 0 < short.operations < whole.operations
    # A window of 16 reaches 8 tokens to each side, less at the ends of two windows of 64.
    assert local.operations == 14 * 2 * (64 * 17 - 2 * 36) * 2 * 32
    assert [case.operations for case in dropping] == [whole.operations, short.operations]


def test_peers_compute_the_same_attention() -> None:
    lengths = module._document_lengths(2, 64, 8)
    assert sum(lengths) == 128
    tensors = [torch.randn(128, 2, 32) for _ in range(3)]
    ours = module._case("", lengths, 64, None, 2, 32, CPU).call(*tensors)
    torch.testing.assert_close(module._padded(lengths, 64, CPU)(*tensors), ours)


def test_dropping_cases_drop() -> None:
    *_, whole, short = module.attention_cases(True, CPU)
    tensors = [torch.randn(128, 2, 32) for _ in range(2)]
    for case in (whole, short):
        mixed = case.call(*tensors, torch.ones(128, 2, 32))  # the sum of the weights that stayed
        assert 0.05 < mixed.std() < 0.5
        assert abs(mixed.mean() - 1) < 0.05
        peer = case.peers["SDPA efficient" if case is whole else "SDPA on the padded batch"]
        if case is short:  # on a CPU no backend but the plain one drops anything
            assert peer(*tensors, torch.ones(128, 2, 32)).std() > 0.05


def test_the_cuda_library_is_measured_where_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from dist_metaxlm.kernels.attention import cuda as attention_cuda

    cases = module.attention_cases(True, CPU)
    assert module._cuda_library(cases, False) == []
    entry = registry.implementation("attention", "cuda")
    monkeypatch.setitem(registry._REGISTRY["attention"], "cuda", replace(entry, available=lambda: None))
    forced = module._cuda_library([replace(cases[0], call=lambda: registry.forced())], False)
    assert [case.name for case in forced] == ["attention, one document a window, CUDA C++"]
    assert forced[0].call() == "cuda"
    with registry.forcing("reference"):
        assert forced[0].call() == "reference"
    both = module._cuda_library([replace(cases[0], call=lambda: attention_cuda._variant)], True)
    assert [case.name.split(", ")[2] for case in both] == ["CUDA C++", "CUDA C++ portable"]
    assert (both[0].call(), both[0].peers["CUDA C++ portable"](), both[1].call()) == ("automatic", "portable", "portable")
    assert attention_cuda._variant == "automatic"
