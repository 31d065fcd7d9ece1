"""The planner's output: the recipe's work, and the layouts with memory and time, for a terminal and as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypedDict

from dist_metaxlm.errors import UserError
from dist_metaxlm.planning.cluster import Cluster
from dist_metaxlm.planning.flops import phase_flops
from dist_metaxlm.planning.parameters import count_parameters
from dist_metaxlm.planning.plan import MEMORY_SHARE, Plan, plan, plan_overrides
from dist_metaxlm.planning.speed.reasons import Advice, reason_against, tokens_of
from dist_metaxlm.recipe.schema import Recipe
from dist_metaxlm.text import pluralize

if TYPE_CHECKING:
    from rich.console import RenderableType

SENTENCES = 3
"""Refusals that the table shows; --json has all."""
_COLUMNS = (
    *("TP", "PP", "DP", "SP", "ZeRO", "tokens", "passes", "states", "act.", "total", "host", "idle", "fits"),
    *("tokens/s", "MFU", "days", "loses by"),
)


class Work(TypedDict):
    """Work of a phase."""

    steps: int
    tokens_per_step: int
    tokens: int
    flops: float


class PlanInput(TypedDict):
    """What is planned for."""

    recipe: str
    parameters: int
    parameters_without_embeddings: int
    cluster: dict[str, object]
    phases: dict[str, Work]


def summary(recipe: Recipe, cluster: Cluster) -> PlanInput:
    """Summary of the input: the recipe's size, its work by phase, the cluster."""
    counts = count_parameters(recipe.model)
    return {
        "recipe": recipe.name,
        "parameters": counts.total,
        "parameters_without_embeddings": counts.without_embeddings,
        "cluster": {
            "nodes": cluster.nodes,
            "devices_per_node": cluster.devices_per_node,
            "device": cluster.device.name,
            "device_memory": cluster.device.memory,
            "memory_share": MEMORY_SHARE,
            "inside": cluster.inside.name,
            "between": cluster.between.name,
        },
        "phases": {
            name: {
                "steps": phase.total_steps,
                "tokens_per_step": phase.tokens_per_step,
                "tokens": phase.total_tokens,
                "flops": phase_flops(recipe.model, phase),
            }
            for name, phase in recipe.phases.items()
        },
    }


class Cost(TypedDict):
    """What a run in a layout takes, predicted."""

    tokens_per_second: float
    mfu: float
    days: float
    device_hours: float
    price: float | None


def cost(recipe: Recipe, cluster: Cluster, candidate: Plan, price_per_hour: float | None = None) -> Cost:
    """Speed over all phases, duration and price; `price_per_hour`: of one device.

    MFU is relative to the dense bf16 peak, of the operations of forward and backward with the head on targets only.
    """
    hours = candidate.seconds * cluster.world_size / 3600
    flops = sum(phase.total_steps * candidate.times[name].flops for name, phase in recipe.phases.items())
    return {
        "tokens_per_second": tokens_of(recipe) / candidate.seconds,
        "mfu": flops / (candidate.seconds * cluster.world_size * cluster.device.bf16_flops),
        "days": candidate.seconds / 86400,
        "device_hours": hours,
        "price": None if price_per_hour is None else hours * price_per_hour,
    }


def plan_values(
    recipe: Recipe, cluster: Cluster, plans: Sequence[Plan], price_per_hour: float | None = None
) -> list[dict[str, object]]:
    """Every layout with its memory, its cost and why it loses, as plain values."""
    return [
        {
            **candidate.as_dict(),
            **cost(recipe, cluster, candidate, price_per_hour),
            "loses_by": reason_against(plans[0], candidate),
        }
        for candidate in plans
    ]


def plan_table(
    recipe: Recipe,
    cluster: Cluster,
    plans: list[Plan],
    top: int,
    advice: Sequence[Advice] = (),
    refused: Mapping[str, str] | None = None,
    price_per_hour: float | None = None,
) -> list[RenderableType]:
    """Lines and one table for a terminal (rich renderables)."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    where = f"{cluster.nodes} x {cluster.devices_per_node} x {cluster.device.name}"
    table = Table(title=f"{recipe.name} on {where}, GB a device", pad_edge=False, padding=0, box=SIMPLE_HEAD)
    for heading in _COLUMNS:
        table.add_column(heading, justify="right", no_wrap=True)
    for candidate in plans[:top]:
        table.add_row(*_cells(recipe, cluster, plans[0], candidate))
    fitting = sum(candidate.fits for candidate in plans)
    closing = f"{fitting} of {pluralize(len(plans), 'legal layout')} fit."
    if fitting:
        words = " ".join(plan_overrides(plans[0].layout))
        closing += f" Take the first: {words}"
    else:
        closing += " Take more or larger devices."
    return [
        *_facts(recipe, cluster),
        table,
        *_advised(recipe, cluster, plans[0], advice, price_per_hour),
        *_refused(refused or {}),
        closing,
    ]


def _facts(recipe: Recipe, cluster: Cluster) -> list[str]:
    """The input in lines, and the columns."""
    facts = summary(recipe, cluster)
    lines = [
        f"{facts['parameters'] / 1e6:,.1f} M parameters, {facts['parameters_without_embeddings'] / 1e6:,.1f} M without "
        "embeddings; memory and time are estimates (docs/planning.md)"
    ]
    lines += [
        f"{name}: {pluralize(work['steps'], 'step', ',')}, {work['tokens'] / 1e9:,.1f} G tokens, {work['flops']:.2e} FLOP"
        for name, work in facts["phases"].items()
    ]
    if cluster.device.source.startswith("memory by hand"):
        lines.append(f"device {cluster.device.name}: {cluster.device.source}; other figures: --hardware")
    lines.append(
        "TP, PP, DP: tensor, pipeline, data parallel ranks; SP: sequence parallelism; tokens: of a micro-batch; "
        "host: host memory of a rank at the start, and for saving and offload, at most; idle: share of a step lost while "
        "a pipeline fills and drains; tokens/s of all devices, MFU and days: predicted"
    )
    return lines


def _cells(recipe: Recipe, cluster: Cluster, best: Plan, candidate: Plan) -> list[str]:
    """A layout's row."""
    memory, layout, gigabyte = candidate.memory, candidate.layout, 1e9
    states = memory.weights + memory.gradients + memory.optimizer + memory.buffers
    predicted = cost(recipe, cluster, candidate)
    extra = "" if layout.recompute == "none" else f" ({layout.recompute})"
    extra += " (offload)" if layout.offload_optimizer else ""
    return [
        str(layout.tensor),
        str(layout.pipeline),
        str(layout.data),
        "yes" if layout.sequence else "no",
        f"{layout.zero_stage}{extra}",
        f"{candidate.micro_batch_tokens:,}",
        str(candidate.micro_batches),
        f"{states / gigabyte:.1f}",
        f"{(memory.activations + memory.head) / gigabyte:.1f}",
        f"{memory.total / gigabyte:.1f}",
        f"{candidate.host.total / gigabyte:.1f}",
        f"{candidate.idle:.0%}",
        "yes" if candidate.fits else "no",
        _rate(predicted["tokens_per_second"]),
        f"{predicted['mfu']:.0%}",
        f"{predicted['days']:.3g}",
        reason_against(best, candidate),
    ]


def _rate(rate: float) -> str:
    """Three digits with k or M."""
    unit, name = (1e6, "M") if rate >= 1e6 else (1e3, "k") if rate >= 1e3 else (1.0, "")
    return f"{rate / unit:.3g}{name}"


def _refused(refused: Mapping[str, str]) -> list[str]:
    """One line for each sentence, with the first of its layouts."""
    first: dict[str, str] = {}
    for name, sentence in refused.items():
        first.setdefault(sentence, name)
    lines = [f"not legal: {name}: {sentence}" for sentence, name in first.items()]
    more = len(lines) - SENTENCES
    return lines[:SENTENCES] + ([f"{pluralize(more, 'more reason')} in --json"] if more > 0 else [])


def _advised(
    recipe: Recipe, cluster: Cluster, best: Plan, advice: Sequence[Advice], price_per_hour: float | None
) -> list[str]:
    """What the best layout takes, and changes that gain."""
    if not best.fits:
        return []
    predicted = cost(recipe, cluster, best, price_per_hour)
    line = (
        f"predicted: {_rate(predicted['tokens_per_second'])} tokens/s, {predicted['mfu']:.1%} MFU, "
        f"{predicted['days']:.3g} days, {predicted['device_hours']:,.0f} device hours"
    )
    if predicted["price"] is not None:
        line += f", {predicted['price']:,.0f} at {price_per_hour:g} a device hour"
    return [line, *(f"gains {one.gain:.1%}: {one.change}" for one in advice)]


def recipes_markdown(recipes: Sequence[Recipe], clusters: Sequence[Cluster]) -> str:
    """The fastest layout of each recipe on each cluster, as a Markdown table."""
    lines = ["| recipe | devices | layout | tokens/s | MFU | days | device hours | GB a device |"]
    lines.append("|---|---:|---|---:|---:|---:|---:|---:|")
    for recipe in recipes:
        for cluster in clusters:
            where = f"{cluster.world_size:,} {cluster.device.name}"
            lines.append(f"| {recipe.name} | {where} | {_best_cells(recipe, cluster)} |")
    return "\n".join(lines)


def _best_cells(recipe: Recipe, cluster: Cluster) -> str:
    """The cells of the fastest layout, or why the recipe has none."""
    try:
        best = plan(recipe, cluster)[0]
    except UserError:
        return "its batches do not divide | | | | | "
    if not best.fits:
        return "does not fit | | | | | "
    predicted, layout = cost(recipe, cluster, best), best.layout
    extra = "" if layout.recompute == "none" else f", recompute {layout.recompute}"
    extra += ", offload" if layout.offload_optimizer else ""
    name = f"{layout.name()}, {best.micro_batch_tokens:,} tokens{extra}"
    return (
        f"{name} | {_rate(predicted['tokens_per_second'])} | {predicted['mfu']:.0%} | {predicted['days']:.3g} | "
        f"{predicted['device_hours']:,.0f} | {best.memory.total / 1e9:.1f}"
    )
