"""Data of accelerators and links, each with its source: memory, bandwidths, the dense bf16 peak that MFU is relative to.

The efficiencies are not in any data sheet. `planning/speed/check.py` names the published runs on which they were fitted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from dist_metaxlm.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Link:
    """A connection between devices."""

    name: str
    """Such as `NVLink 4`."""
    bandwidth: float
    """Bytes per second that a device sends, one way, by the data sheet."""
    latency: float
    """Seconds of one message: one step of a ring."""
    efficiency: float
    """Share of the bandwidth that collectives reach with large messages."""
    source: str
    """Origin of the bandwidth."""

    @property
    def speed(self) -> float:
        """Bytes per second with large messages."""
        return self.bandwidth * self.efficiency


@dataclass(frozen=True, kw_only=True)
class Device:
    """One kind of accelerator."""

    name: str
    """Short name, as in a cluster string."""
    memory: int
    """Nominal memory in bytes."""
    bf16_flops: float
    """Peak of dense bf16 matrix products with fp32 accumulation, floating-point operations per second."""
    fp8_flops: float
    """Peak of dense fp8 products; that of bf16 where the device has no fp8."""
    fp32_flops: float
    """Peak of fp32 matrix products (TF32 off)."""
    memory_bandwidth: float
    """Bytes per second."""
    processors: int
    """Streaming multiprocessors or compute units: tiles of a product that run at the same time."""
    inside: str
    """Name of the link between devices of a node."""
    between: str
    """Name of the usual link between nodes, for each device."""
    product_efficiency: float
    """Share of the peak that a large matrix product reaches."""
    attention_efficiency: float
    """Share of the peak that memory-linear attention reaches on long documents."""
    memory_efficiency: float
    """Share of the memory bandwidth that elementwise kernels reach."""
    launch: float
    """Seconds between the starts of two kernels."""
    source: str
    """Origin of memory, peaks, bandwidth and number of processors."""


LINKS = {
    link.name: link
    for link in (
        Link(
            name="NVLink 2",
            bandwidth=150e9,
            latency=4e-6,
            efficiency=0.78,
            source="NVIDIA V100 data sheet, 300 GB/s both ways",
        ),
        Link(
            name="NVLink 3",
            bandwidth=300e9,
            latency=4e-6,
            efficiency=0.78,
            source="NVIDIA A100 data sheet, 600 GB/s both ways",
        ),
        Link(
            name="NVLink 4",
            bandwidth=450e9,
            latency=4e-6,
            efficiency=0.78,
            source="NVIDIA H100 data sheet, 900 GB/s both ways",
        ),
        Link(
            name="NVLink 5",
            bandwidth=900e9,
            latency=4e-6,
            efficiency=0.78,
            source="NVIDIA DGX B200 data sheet, 1.8 TB/s both ways",
        ),
        Link(
            name="Infinity Fabric",
            bandwidth=448e9,
            latency=6e-6,
            efficiency=0.7,
            source="AMD Instinct MI300X data sheet, 7 links of 128 GB/s both ways",
        ),
        Link(name="PCIe 4", bandwidth=32e9, latency=8e-6, efficiency=0.7, source="PCI Express 4.0, 16 lanes of 16 GT/s"),
        Link(name="PCIe 5", bandwidth=64e9, latency=8e-6, efficiency=0.7, source="PCI Express 5.0, 16 lanes of 32 GT/s"),
        Link(
            name="InfiniBand EDR",
            bandwidth=6.25e9,
            latency=12e-6,
            efficiency=0.85,
            source="100 Gb/s a port, four on 8 devices",
        ),
        Link(name="InfiniBand HDR", bandwidth=25e9, latency=12e-6, efficiency=0.85, source="200 Gb/s a port, one a device"),
        Link(name="InfiniBand NDR", bandwidth=50e9, latency=12e-6, efficiency=0.85, source="400 Gb/s a port, one a device"),
        Link(name="Ethernet 100", bandwidth=12.5e9, latency=30e-6, efficiency=0.8, source="100 Gb/s a port"),
        Link(name="Ethernet 10", bandwidth=1.25e9, latency=50e-6, efficiency=0.8, source="10 Gb/s a port"),
        Link(
            name="shared memory", bandwidth=5e9, latency=50e-6, efficiency=0.5, source="gloo over the memory of one machine"
        ),
    )
}


_FITTED = {"V": (0.745, 0.52), "A": (0.745, 0.52), "H": (0.62, 0.3), "B": (0.62, 0.3), "M": (0.47, 0.23)}
"""Efficiency of products and of attention by the first letter of the name. A and H are fitted (`planning/speed/check.py`); V
has those of A, B those of H; the products of M are the 620 TFLOP/s that SemiAnalysis measured on MI300X (December 2024), its
attention is in proportion."""


def _gpu(
    name: str,
    memory: float,
    tera: tuple[float, float, float],
    bandwidth: float,
    processors: int,
    links: tuple[str, str],
    source: str,
) -> Device:
    """tera: peaks in bf16, fp8 and fp32, in 10^12 operations per second; memory in GB; bandwidth in GB/s."""
    products, attention = _FITTED[name[0]]
    return Device(
        name=name,
        memory=round(memory * 1e9),
        bf16_flops=tera[0] * 1e12,
        fp8_flops=tera[1] * 1e12,
        fp32_flops=tera[2] * 1e12,
        memory_bandwidth=bandwidth * 1e9,
        processors=processors,
        inside=links[0],
        between=links[1],
        product_efficiency=products,
        attention_efficiency=attention,
        memory_efficiency=0.8,
        launch=5e-6,
        source=source,
    )


# Dense figures; the data sheets of H100 and later print the double, "with sparsity".
DEVICES = {
    device.name: device
    for device in (
        _gpu(
            "V100-16GB", 16, (125, 125, 15.7), 900, 80, ("NVLink 2", "InfiniBand EDR"), "NVIDIA V100 data sheet, SXM2, fp16"
        ),
        _gpu(
            "V100-32GB", 32, (125, 125, 15.7), 900, 80, ("NVLink 2", "InfiniBand EDR"), "NVIDIA V100 data sheet, SXM2, fp16"
        ),
        _gpu("A100-40GB", 40, (312, 312, 19.5), 1555, 108, ("NVLink 3", "InfiniBand HDR"), "NVIDIA A100 data sheet, SXM"),
        _gpu("A100-80GB", 80, (312, 312, 19.5), 2039, 108, ("NVLink 3", "InfiniBand HDR"), "NVIDIA A100 data sheet, SXM"),
        _gpu("H100", 80, (989, 1979, 67), 3350, 132, ("NVLink 4", "InfiniBand NDR"), "NVIDIA H100 data sheet, SXM"),
        _gpu("H100-PCIe", 80, (756, 1513, 51), 2000, 114, ("PCIe 5", "InfiniBand HDR"), "NVIDIA H100 data sheet, PCIe"),
        _gpu("H200", 141, (989, 1979, 67), 4800, 132, ("NVLink 4", "InfiniBand NDR"), "NVIDIA H200 data sheet, SXM"),
        _gpu("B200", 180, (2250, 4500, 75), 8000, 148, ("NVLink 5", "InfiniBand NDR"), "NVIDIA DGX B200 data sheet, a GPU"),
        _gpu(
            "MI300X",
            192,
            (1307.4, 2614.9, 163.4),
            5300,
            304,
            ("Infinity Fabric", "InfiniBand NDR"),
            "AMD Instinct MI300X data sheet",
        ),
        Device(
            name="CPU-core",
            memory=4 * 10**9,
            bf16_flops=96e9,
            fp8_flops=96e9,
            fp32_flops=96e9,
            memory_bandwidth=5e9,
            processors=1,
            inside="shared memory",
            between="Ethernet 10",
            product_efficiency=0.6,
            attention_efficiency=0.2,
            memory_efficiency=0.6,
            launch=20e-6,
            source="a core of 3 GHz with two AVX2 units of 8 fp32 products and sums (Intel optimization manual)",
        ),
        Device(
            name="Xeon-8480",
            memory=512 * 10**9,
            bf16_flops=458e12,
            fp8_flops=458e12,
            fp32_flops=14.3e12,
            memory_bandwidth=614e9,
            processors=112,
            inside="Ethernet 100",
            between="Ethernet 100",
            product_efficiency=0.3,
            attention_efficiency=0.1,
            memory_efficiency=0.5,
            launch=20e-6,
            source="a node of two Intel Xeon 8480+: 56 cores of 2.0 GHz with AMX, 8 channels of DDR5-4800 each (Intel ARK)",
        ),
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


def link_named(name: str) -> Link:
    """The link of that name; UserError for an unknown one."""
    known = {link.lower(): LINKS[link] for link in LINKS}
    if name.lower() not in known:
        raise UserError(f"unknown link {name!r}; known: {', '.join(LINKS)}")
    return known[name.lower()]


def host_link(device: Device) -> Link:
    """The link between a device and its host: PCIe 5 from H100 on."""
    return LINKS["PCIe 5" if device.bf16_flops > 700e12 else "PCIe 4"]
