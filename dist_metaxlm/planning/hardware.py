"""Data of accelerators: memory, and the dense bf16 peak that MFU is relative to."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dist_metaxlm.errors import UserError


@dataclass(frozen=True)
class Device:
    """One kind of accelerator."""

    name: str
    """Short name, as in a cluster string."""
    memory: int
    """Nominal memory in bytes."""
    bf16_flops: float
    """Peak of dense bf16 matrix products with fp32 accumulation, floating-point operations per second."""


# Dense figures; the data sheets of H100 and later print the double, "with sparsity".
# NVIDIA data sheets: A100 (312), H100 (SXM 989.4, PCIe 756), H200 (SXM 989), HGX/DGX B200 (2,250 a GPU).
DEVICES = {
    device.name: device
    for device in (
        Device("A100-40GB", 40 * 10**9, 312e12),
        Device("A100-80GB", 80 * 10**9, 312e12),
        Device("H100", 80 * 10**9, 989e12),
        Device("H100-PCIe", 80 * 10**9, 756e12),
        Device("H200", 141 * 10**9, 989e12),
        Device("B200", 180 * 10**9, 2250e12),
    )
}

# Result of torch.cuda.get_device_name without "NVIDIA "; an unlisted name (MIG slice, H100 NVL, GH200) has no peak.
_TORCH_NAMES = (
    (r"A100-(SXM4|PCIE)-40GB", "A100-40GB"),
    (r"A100-SXM4-80GB|A100 80GB PCIe", "A100-80GB"),
    (r"H100( 80GB HBM3)?", "H100"),
    (r"H100 PCIe", "H100-PCIe"),
    (r"H200", "H200"),
    (r"B200", "B200"),
)


def device_named(name: str) -> Device:
    """The device of a cluster string; UserError for an unknown one."""
    known = {device.lower(): DEVICES[device] for device in DEVICES}
    if name.lower() not in known:
        raise UserError(f"unknown device {name!r}; known: {', '.join(DEVICES)}")
    return known[name.lower()]


def device_of(torch_name: str) -> Device | None:
    """The device that `torch.cuda.get_device_name()` names, or None if it is not in the table."""
    plain = torch_name.removeprefix("NVIDIA ").strip()
    for pattern, name in _TORCH_NAMES:
        if re.fullmatch(pattern, plain):
            return DEVICES[name]
    return None


def model_flops_utilisation(flops_per_second: float, torch_name: str) -> float | None:
    """`flops_per_second` (of one device) as a share of its dense bf16 peak; None for an unknown device."""
    device = device_of(torch_name)
    return None if device is None else flops_per_second / device.bf16_flops
