"""The speed model against a table of published runs: the error of each row, and over groups.

`FITTED` names the rows from which the efficiencies were fitted, at most a third of the rows of a device: products and
attention of A100 and of H100, and what all devices share (`START`, `UNFUSED`, `FP8_PRODUCTS`, `CONTENTION`, `WAITING`, ...).
All other rows are outside that fit, but no blind test: their errors were seen while the model was written, and settled what
`published.py` assumes of a system, `INTERLEAVED` and the host time of a step. The
error is predicted / published - 1, in tokens per second.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING

from dist_metaxlm.errors import UserError
from dist_metaxlm.planning.speed.published import device_of_row, predict, published_rate
from dist_metaxlm.planning.speed.rows import Row
from dist_metaxlm.text import pluralize

if TYPE_CHECKING:
    from rich.console import RenderableType

FITTED = {
    "A100": ("115", "212", "225", "284"),
    "H100": ("10", "36", "60", "206", "209", "258", "261", "328", "330"),
    "H100 fp8": ("236", "303", "316"),
    "Xeon-8480": ("325",),
}
"""Ids of the rows of the table that the constants were fitted on. The one row of the CPU node is fitted, not checked."""


@dataclass(frozen=True, kw_only=True)
class Checked:
    """One row, predicted."""

    id: str
    model: str
    system: str
    kind: str
    device: str
    devices: int
    fp8: bool
    fitted: bool
    published: float
    """Tokens per second and device."""
    predicted: float
    mfu: float
    """Predicted share of the dense bf16 peak."""
    limits: dict[str, float]
    """Shares of the predicted step by item, largest first, those above 2 %."""
    source: str

    @property
    def error(self) -> float:
        """Relative."""
        return self.predicted / self.published - 1


@dataclass(frozen=True, kw_only=True)
class Group:
    """Errors of several rows."""

    name: str
    rows: int
    mean: float
    """Mean absolute error."""
    worst: float
    """Largest absolute error."""
    worst_id: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """All rows of a table."""

    rows: list[Checked]
    groups: list[Group]
    skipped: dict[str, str]
    """Rows of devices that the hardware table lacks: id and reason."""

    def as_dict(self) -> dict[str, object]:
        """Plain values."""
        return {
            "rows": [{**asdict(row), "error": row.error} for row in self.rows],
            "groups": [asdict(group) for group in self.groups],
            "skipped": self.skipped,
        }


def check_rows(rows: Sequence[Row]) -> Report:
    """Predict every row.

    Raises:
        UserError: when no row has a device of the hardware table.
    """
    checked, skipped = [], {}
    for row in rows:
        try:
            device_of_row(row)
        except UserError as error:
            skipped[row.identity] = str(error)
            continue
        checked.append(_check(row))
    if not checked:
        raise UserError(next(iter(skipped.values())))
    return Report(rows=checked, groups=_groups(checked), skipped=skipped)


def _check(row: Row) -> Checked:
    time, rate = predict(row)
    total = time.seconds
    items = sorted(time.items.items(), key=lambda item: -item[1])
    return Checked(
        id=row.identity,
        model=row.texts.get("model", ""),
        system=row.texts.get("system", ""),
        kind=row.kind,
        device=device_of_row(row).name,
        devices=row.devices,
        fp8="fp8" in row.text("precision") or row.text("use") == "fp8",
        fitted=any(row.identity in ids for ids in FITTED.values()),
        published=published_rate(row),
        predicted=rate,
        mfu=time.mfu,
        limits={name: seconds / total for name, seconds in items if seconds > 0.02 * total},
        source=row.texts.get("source", ""),
    )


def _groups(rows: Sequence[Checked]) -> list[Group]:
    """Errors over all rows, by use, kind and device."""
    tests: list[tuple[str, Callable[[Checked], bool]]] = [
        ("all", lambda row: True),
        ("held out", lambda row: not row.fitted),
        ("held out, without fp8", lambda row: not row.fitted and not row.fp8),
        ("fitted", lambda row: row.fitted),
        ("fp8", lambda row: row.fp8),
        ("decoder", lambda row: row.kind == "decoder"),
        ("encoder", lambda row: row.kind == "encoder"),
    ]
    tests += [(name, partial(_on, name)) for name in sorted({row.device for row in rows})]
    groups = []
    for name, belongs in tests:
        members = [row for row in rows if belongs(row)]
        if members:
            worst = max(members, key=lambda row: abs(row.error))
            groups.append(
                Group(
                    name=name,
                    rows=len(members),
                    mean=sum(abs(row.error) for row in members) / len(members),
                    worst=abs(worst.error),
                    worst_id=worst.id,
                )
            )
    return groups


def _on(device: str, row: Checked) -> bool:
    return row.device == device


def report_tables(report: Report) -> list[RenderableType]:
    """Two tables and the skipped rows, for a terminal (rich renderables)."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    rows = Table(title="tokens per second and device", pad_edge=False, padding=(0, 1, 0, 0), box=SIMPLE_HEAD)
    for heading in ("id", "model", "device", "devices", "published", "predicted", "error", "largest items"):
        rows.add_column(
            heading, justify="left" if heading in ("model", "device", "largest items") else "right", no_wrap=True
        )
    for row in report.rows:
        rows.add_row(
            row.id + ("*" if row.fitted else ""),
            row.model,
            row.device,
            f"{row.devices:,}",
            f"{row.published:,.0f}",
            f"{row.predicted:,.0f}",
            f"{row.error:+.1%}",
            ", ".join(f"{name} {share:.0%}" for name, share in list(row.limits.items())[:2]),
        )
    groups = Table(title="absolute error over groups", pad_edge=False, padding=(0, 1, 0, 0), box=SIMPLE_HEAD)
    for heading in ("group", "rows", "mean", "worst", "worst row"):
        groups.add_column(heading, justify="left" if heading == "group" else "right", no_wrap=True)
    for group in report.groups:
        groups.add_row(group.name, str(group.rows), f"{group.mean:.1%}", f"{group.worst:.1%}", group.worst_id)
    lines = [f"row {name} is not predicted: {reason}" for name, reason in report.skipped.items()]
    fitted = pluralize(sum(row.fitted for row in report.rows), "row")
    return [rows, f"* one of {fitted} that the constants were fitted on (planning/speed/check.py)", groups, *lines]


def report_markdown(report: Report) -> str:
    """All rows with their sources, and the groups, as two Markdown tables."""
    lines = ["| group | rows | mean error | worst | worst row |", "|---|---:|---:|---:|---|"]
    lines += [
        f"| {group.name} | {group.rows} | {group.mean:.1%} | {group.worst:.1%} | {group.worst_id} |"
        for group in report.groups
    ]
    lines += ["", "| id | model | system | device | devices | published | predicted | error | largest items | source |"]
    lines += ["|---|---|---|---|---:|---:|---:|---:|---|---|"]
    for row in report.rows:
        items = ", ".join(f"{name} {share:.0%}" for name, share in list(row.limits.items())[:3])
        cells = [f"{row.id}{' (fitted)' if row.fitted else ''}", row.model, row.system, row.device, f"{row.devices:,}"]
        cells += [f"{row.published:,.0f}", f"{row.predicted:,.0f}", f"{row.error:+.1%}", items, row.source]
        lines.append("| " + " | ".join(cell.replace("|", "/").replace("*", "\\*") for cell in cells) + " |")
    return "\n".join(lines)
