"""A published run as input of the speed model: device, shape, batch, layout and software, from what its row states.

Software is known by its system's name and generation only: kernels of attention, fusion, overlap. No constant is tied to a
row or to the results of a system.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Literal

from dist_metaxlm.errors import UserError
from dist_metaxlm.planning.cluster import Cluster
from dist_metaxlm.planning.hardware import DEVICES, Device, device_named, link_named
from dist_metaxlm.planning.speed.rows import Row, leading_number
from dist_metaxlm.planning.speed.step import step_time
from dist_metaxlm.planning.speed.work import Method, Shape, Software, StepTime, Work

WHOLE_RUN = 0.85
"""Share of a run's hours in which it trains at full speed: a rate derived from hours includes evaluations and restarts."""
NOMINAL_WATTS = {"H100": 700, "H200": 700, "A100-80GB": 400, "A100-40GB": 400, "B200": 1000}
"""Power of the SXM modules in NVIDIA's data sheets."""
POWER_EXPONENT = 0.62
"""Exponent of power in the speed of large products below the nominal power."""
STEP_OVERHEAD = {"nemo": 0.05, "graph": 0.002, "usual": 0.01}
"""Seconds of host work in a step: training loops of one callback an event, captured graphs, others."""
PACKING = 1.15e-6
"""Seconds a token in which a Python loader packs documents without padding."""
OVERLAP_TENSOR = 0.6
"""Share of tensor-parallel communication that asynchronous tensor parallelism hides."""
_NAMES = (
    (r"a100.*40\s*gb", "A100-40GB"),
    (r"a100", "A100-80GB"),
    (r"h100.*pcie", "H100-PCIe"),
    (r"h100|h800", "H100"),
    (r"h200", "H200"),
    (r"b200", "B200"),
    (r"mi300x", "MI300X"),
    (r"v100.*32", "V100-32GB"),
    (r"v100", "V100-16GB"),
    (r"xeon.*8480", "Xeon-8480"),
)


def predict(row: Row) -> tuple[StepTime, float]:
    """The time of a step, and tokens per second and device, averaged over the run if the row says that it is."""
    cluster = cluster_of(row)
    shape, method = shape_of(row), method_of(row)
    time = step_time(shape, [work_of(row, method)], method, cluster)
    rate = time.tokens / time.seconds / row.devices
    return time, rate * (WHOLE_RUN if whole_run(row) else 1.0)


def published_rate(row: Row) -> float:
    """Tokens per second and device; from TFLOP/s by the row's convention if it gives no tokens."""
    rate = leading_number(row.texts["tok_s_dev"])
    if rate is not None:
        return rate
    tera = leading_number(row.texts.get("tflops_dev", "")) or 0.0
    convention = row.text("flops_convention")
    block = row.hidden * row.head_dim * 2 * (row.heads + row.kv_heads) + row.hidden * row.ffn * (3 if row.gated else 2)
    attention = (
        12
        * row.length
        * row.heads
        * row.head_dim
        * (0.5 if "halved" in convention and "not halved" not in convention else 1)
    )
    # Hardware operations count the forward pass of the blocks twice (arXiv 2104.04473, section 3): four thirds.
    again = 4 / 3 if "hardware" in convention or "96" in convention else 1.0
    flops = row.layers * (6 * block + attention) * again + 6 * row.vocab * row.hidden * _targets(row)
    return tera * 1e12 / flops


def whole_run(row: Row) -> bool:
    """Whether the published rate is an average over a whole run, evaluations and restarts included."""
    return "derived" in row.text("note")


def device_of_row(row: Row) -> Device:
    """The device, with the memory bandwidth and the power limit that the row states.

    Raises:
        UserError: when it is not in the hardware table.
    """
    text = row.text("device")
    name = next((name for pattern, name in _NAMES if re.search(pattern, text)), None)
    if name is None:
        try:
            return device_named(row.texts["device"])
        except UserError as error:
            raise UserError(f"line {row.number}: {error}") from error
    device = DEVICES[name]
    bandwidth = re.search(r"([\d.]+)\s*tb/s", text)
    if bandwidth:
        device = replace(device, memory_bandwidth=float(bandwidth[1]) * 1e12)
    power = re.search(r"(\d+)\s*w\b", text)
    if power and name in NOMINAL_WATTS:
        share = min(1.0, int(power[1]) / NOMINAL_WATTS[name]) ** POWER_EXPONENT
        device = replace(
            device,
            product_efficiency=device.product_efficiency * share,
            attention_efficiency=device.attention_efficiency * share,
        )
    return device


def cluster_of(row: Row) -> Cluster:
    """Nodes of eight devices; a CPU node is one device."""
    device = device_of_row(row)
    on_node = 1 if device.name == "Xeon-8480" else min(8, row.devices)
    cluster = Cluster(-(-row.devices // on_node), on_node, device)
    if "ethernet" in row.text("device") and device.name != "Xeon-8480":
        return replace(cluster, links=(cluster.inside, link_named("Ethernet 100")))
    return cluster


def shape_of(row: Row) -> Shape:
    """The model."""
    alternating = "modernbert" in row.text("system", "model") or "alternating" in row.text("note")
    return Shape(
        layers=row.layers,
        hidden=row.hidden,
        ffn=row.ffn,
        gated=row.gated,
        heads=row.heads,
        kv_heads=row.kv_heads,
        head_dim=row.head_dim,
        vocab=row.vocab,
        rotary=row.gated,
        window=128 if alternating else None,
        global_every=3 if alternating else 1,
        dense_head=row.kind == "encoder",
        tied=not row.gated or row.kind == "encoder",
    )


def method_of(row: Row) -> Method:
    """Layout, micro-batch and software."""
    tokens = _micro_batch(row) * _tokens_of_sequence(row) / row.context
    return Method(
        tensor=row.tensor,
        pipeline=row.pipeline,
        data=row.data * row.context,
        zero_stage=_zero(row),
        sequence=row.tensor > 1 and not _without_sequence(row),
        micro_batch_tokens=max(1, round(tokens)),
        recompute=_recompute(row),
        precision=_precision(row),
        software=software_of(row),
    )


def work_of(row: Row, method: Method) -> Work:
    """The passes of a step."""
    sequences = row.global_batch or _micro_batch(row) * row.data
    sequences = max(sequences, row.data * 1.0)
    attended = re.search(r"mean attended length of (\d+)", row.text("note"))
    return Work(
        tokens=max(1, round(sequences * _tokens_of_sequence(row))),
        length=float(attended[1]) if attended else row.length,
        targets=_targets(row),
        causal=row.decoder,
    )


def software_of(row: Row) -> Software:
    """The generation of the kernels."""
    text, hopper = row.text("system", "precision", "note"), re.search(r"h100|h200|h800|b200", row.text("device"))
    flash: Literal[0, 1, 2, 3] = 2
    if "fa3" in text or "fmha" in text or (hopper and re.search(r"megatron-core|nemo|mlperf|bridge", text)):
        flash = 3
    elif re.search(r"deeplearningexamples|megatron-lm|nemo-megatron", text) or "xeon" in row.text("device"):
        flash = 0
    fused = re.search(r"megatron|nemo|compile|mlperf|deepspeed|modernbert", text) is not None
    graph = "graph" in text or "mlperf" in text
    chunks = row.chunks or 1
    if row.chunks is None and row.pipeline > 1 and "megatron-core" in text:
        chunks = max(1, min(4, row.layers // row.pipeline))
    return Software(
        flash=flash,
        fused=fused,
        fused_loss=re.search(r"compile|mlperf|megatron|modernbert", text) is not None,
        overlap_tensor=OVERLAP_TENSOR if re.search(r"async tp|megatron-core|nemo 2[4-9]|bridge", text) else 0.0,
        chunks=chunks,
        overlap_gather=re.search(r"megatron-core|nemo 2[4-9]|bridge", text) is not None,
        step_overhead=STEP_OVERHEAD["nemo" if "nemo-megatron" in text else "graph" if graph else "usual"],
        loader=PACKING if "varlen" in text or "modernbert" in text else 0.0,
        kernels="graph" if graph else "eager",
    )


def _micro_batch(row: Row) -> float:
    """Sequences; not stated: one of 4,096 tokens or more, or as many as 16,384 tokens hold, at most the share of a step."""
    share = row.global_batch / row.data if row.global_batch else None
    stated = row.micro_batch or max(1.0, 1.0 if row.tensor * row.pipeline > 1 else 65536 // row.length)
    return max(1.0, min(stated, share)) if share else stated


def _tokens_of_sequence(row: Row) -> float:
    """Tokens that are trained on: a row may count without padding."""
    real = re.search(r"x ([\d.]+) real tokens a sample", row.text("note"))
    return float(real[1]) if real else row.length


def _targets(row: Row) -> float:
    """Share of tokens that reach the vocabulary."""
    text = row.text("masked_head")
    if not text.startswith("yes"):
        return 1.0
    percent = re.search(r"([\d.]+)(?:\s*-\s*([\d.]+))?\s*%", text)
    if percent:
        return (float(percent[1]) + float(percent[2] or percent[1])) / 200
    for targets, length in re.findall(r"(\d+) of (\d+)", text):
        if int(length) == row.length:
            return int(targets) / int(length)
    return 0.15


def _without_sequence(row: Row) -> bool:
    """Whether the system has no sequence parallelism: Megatron-LM before arXiv 2205.05198."""
    text = row.text("system", "source")
    return re.search(r"sc21|2104\.04473|1909\.08053", text) is not None and "2205.05198" not in text


def _zero(row: Row) -> int:
    text = row.text("shard")
    stated = re.search(r"zero-?\s*([0-3])", text)
    if stated:
        return int(stated[1])
    if "grad-op" in text:
        return 2
    if "fsdp" in text:
        return 3
    return 1 if "distributed" in text else 0


def _recompute(row: Row) -> Literal["none", "selective", "blocks"]:
    text = row.text("recompute")
    if "selective" in text:
        return "selective"
    return "blocks" if re.search(r"full|blocks|yes|all", text) else "none"


def _precision(row: Row) -> Literal["fp32", "bf16", "fp16", "fp8"]:
    text = row.text("precision")
    if re.search(r"fp8|float8|mxfp8", text):
        return "fp8"
    return "fp32" if re.search(r"fp32|tf32", text) else "bf16"
