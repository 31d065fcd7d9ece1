"""Seconds of kernels on one device: matrix products, attention, elementwise kernels, the loss over the vocabulary.

A product of [m, k] and [k, n] is cut into tiles that run in waves over the processors. Its time is that of its operations at
the device's large-product rate, divided by two smooth efficiencies: half a wave of tiles idle at the end, and the start of
each tile's sum over k; it is never less than the time of its bytes (roofline, Williams et al. 2009,
doi:10.1145/1498765.1498785; tile and wave quantisation: NVIDIA, Matrix Multiplication Background User's Guide).
"""

from __future__ import annotations

from dist_metaxlm.planning.hardware import Device
from dist_metaxlm.planning.speed.work import Software

TILE = 128 * 128
"""Elements of the result that a processor computes at a time."""
START = 160.0
"""Inner size at which filling and draining a tile's pipeline doubles its time."""
FP8_PRODUCTS = 0.86
"""Share of the bf16 efficiency that fp8 products keep: scaling, casts and transposes run besides them."""
FLASH = {1: 0.7, 2: 1.0, 3: 1.5}
"""Speed of memory-linear attention by generation, relative to the second (arXiv 2307.08691, 2407.08608)."""
BACKWARD_ATTENTION = 2.5
"""Operations of attention backward over forward: five products for two (arXiv 2307.08691, section 3.1)."""
MATRIX_PASSES = (6.5, 9.0)
"""Reads and writes of an attention matrix in memory, forward and backward: products, scaled softmax, dropout."""
UNFUSED = 1.9
"""Bytes of one kernel an operation, relative to fused kernels: biases, casts and sums are read and written again."""


def peak(device: Device, precision: str) -> float:
    """Operations per second of large products."""
    if precision == "fp32":
        return device.fp32_flops * device.product_efficiency
    if precision == "fp8" and device.fp8_flops > device.bf16_flops:
        return device.fp8_flops * device.product_efficiency * FP8_PRODUCTS
    return device.bf16_flops * device.product_efficiency


def product_seconds(device: Device, precision: str, m: float, n: float, k: float) -> float:
    """Seconds of a product [m, k] x [k, n]."""
    if min(m, n, k) <= 0:
        return 0.0
    element = 4 if precision == "fp32" else 2
    last_wave = 0.5 * device.processors * TILE / (m * n)
    start = START / k
    operations = 2 * m * n * k / peak(device, precision) * (1 + min(last_wave, 64.0)) * (1 + start)
    return operations + 0.3 * element * (m * k + k * n + m * n) / memory_speed(device)


def product_both_ways(device: Device, precision: str, m: float, n: float, k: float) -> tuple[float, float]:
    """Seconds forward, and backward for the gradients of input and weight."""
    forward = product_seconds(device, precision, m, n, k)
    backward = product_seconds(device, precision, m, k, n) + product_seconds(device, precision, k, n, m)
    return forward, backward


def memory_speed(device: Device) -> float:
    """Bytes per second of elementwise kernels."""
    return device.memory_bandwidth * device.memory_efficiency


def attention_both_ways(
    device: Device,
    software: Software,
    precision: str,
    tokens: float,
    attended: float,
    width: float,
    head_dim: int,
    causal: bool,
) -> tuple[float, float]:
    """Seconds of attention of `tokens` tokens, forward and backward; `width`: heads of the rank times their size."""
    half = 0.5 if causal else 1.0
    operations = 4 * tokens * attended * width
    element = 4 if precision == "fp32" else 2
    if software.flash == 0:
        rate = 0.6 * peak(device, "bf16" if precision == "fp8" else precision)
        matrix = element * tokens * attended * width / head_dim / memory_speed(device)
        forward, backward = MATRIX_PASSES
        return operations / rate + forward * matrix, 2 * operations / rate + backward * matrix
    generation = FLASH[software.flash] if device.bf16_flops > 500e12 else min(1.0, FLASH[software.flash])
    top = device.fp32_flops if precision == "fp32" else device.bf16_flops
    # Short documents leave tiles part empty, small heads the product units.
    rate = top * device.attention_efficiency * generation * 1.25 * head_dim / (head_dim + 32) * attended / (attended + 128)
    moved = 8 * tokens * width * element / memory_speed(device)
    return operations * half / rate + moved, BACKWARD_ATTENTION * operations * half / rate + 2 * moved


def loss_seconds(device: Device, software: Software, logits: float) -> float:
    """Seconds of reading and writing logits, forward and backward, without the products."""
    return logits * (12 if software.fused_loss else 34) / memory_speed(device)
