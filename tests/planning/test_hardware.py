"""Device names of clusters and of torch."""

from __future__ import annotations

import pytest

from dist_metaxlm.errors import UserError
from dist_metaxlm.planning.hardware import device_named, device_of, model_flops_utilisation


@pytest.mark.parametrize(
    ("torch_name", "name", "peak"),
    [
        ("NVIDIA A100-SXM4-40GB", "A100-40GB", 312e12),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB", 312e12),
        ("NVIDIA A100 80GB PCIe", "A100-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", "H100", 989e12),
        ("NVIDIA H100 PCIe", "H100-PCIe", 756e12),
        ("NVIDIA H200", "H200", 989e12),
    ],
)
def test_torch_names(torch_name, name, peak):
    device = device_of(torch_name)
    assert device is not None
    assert device.name == name
    assert model_flops_utilisation(peak / 2, torch_name) == 0.5


@pytest.mark.parametrize("name", ["NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA H100 NVL", "Tesla V100-SXM2-32GB", "cpu", ""])
def test_no_peak_is_guessed(name):
    assert device_of(name) is None
    assert model_flops_utilisation(1e12, name) is None


def test_cluster_names_ignore_case_and_name_the_known_ones():
    assert device_named("h100") is device_named("H100")
    with pytest.raises(UserError, match=r"unknown device 'H10'.*A100-80GB"):
        device_named("H10")
