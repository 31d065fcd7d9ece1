"""Published training runs from a table of tab-separated values, as inputs of the speed model.

Columns: id, kind, system, model, layers, hidden, ffn, glu, heads, kv_heads, head_dim, seq, vocab, attn, masked_head, device,
n_devices, tp, pp, vp, dp, shard, micro_batch_seqs, global_batch_seqs, precision, recompute, tok_s_dev, tflops_dev,
flops_convention, source, note. A row gives tokens/s or TFLOP/s of a device; what a row does not state is assumed
(`_micro_batch`, `software_of`). Further columns are not read.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dist_metaxlm.errors import UserError

REQUIRED = (
    *("id", "kind", "layers", "hidden", "ffn", "glu", "heads", "head_dim", "seq", "vocab", "attn", "masked_head", "device"),
    *("n_devices", "tp", "pp", "micro_batch_seqs", "global_batch_seqs", "precision", "recompute", "tok_s_dev"),
)
LARGEST_FILE = 20_000_000
"""Bytes of the largest table that is read."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One published run."""

    number: int
    """Line of the file."""
    texts: Mapping[str, str]
    """All columns, stripped."""
    layers: int
    hidden: int
    ffn: int
    gated: bool
    heads: int
    kv_heads: int
    head_dim: int
    length: int
    vocab: int
    devices: int
    tensor: int
    pipeline: int
    chunks: int | None
    """Interleaved stages of a pipeline rank; None: not stated."""
    data: int
    context: int
    """Context-parallel ranks."""
    micro_batch: float | None
    """Sequences; None: not stated."""
    global_batch: float | None

    @property
    def identity(self) -> str:
        """The row's id."""
        return self.texts["id"]

    @property
    def decoder(self) -> bool:
        """Whether attention is causal."""
        return self.texts["attn"].lower().startswith("causal")

    @property
    def kind(self) -> str:
        """`decoder` or `encoder`."""
        return self.texts["kind"] or ("decoder" if self.decoder else "encoder")

    def text(self, *names: str) -> str:
        """The columns in one lower-case text, for searching words."""
        return " ".join(self.texts.get(name, "") for name in names).lower()


def read_rows(path: str) -> list[Row]:
    """All rows of the file.

    Raises:
        UserError: when it is no such table; the message names the line, the column and the value.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"{path} is no file; give a table of published runs with columns {', '.join(REQUIRED[:4])}, ...")
    if file.stat().st_size > LARGEST_FILE:
        raise UserError(f"{path} has more than {LARGEST_FILE:,} bytes; give a table of published runs")
    try:
        content = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not UTF-8 text ({error}); give a table of tab-separated values") from error
    reader = csv.reader(io.StringIO(content, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE)
    lines = [(number, cells) for number, cells in enumerate(reader, 1) if any(cell.strip() for cell in cells)]
    if len(lines) < 2:
        raise UserError(f"{path} has no rows; the first line names the columns, each further line is a run")
    names = [name.strip() for name in lines[0][1]]
    absent = [name for name in REQUIRED if name not in names]
    if absent:
        raise UserError(f"{path} has no column {', '.join(absent)}; the first line names the columns, separated by tabs")
    rows = [_row(path, number, names, cells) for number, cells in lines[1:]]
    seen: dict[str, int] = {}
    for row in rows:
        if row.identity in seen:
            raise UserError(
                f"{path} line {row.number}: id {row.identity!r} is that of line {seen[row.identity]}; give each row its own"
            )
        seen[row.identity] = row.number
    return rows


def _row(path: str, number: int, names: list[str], cells: list[str]) -> Row:
    if len(cells) > len(names):
        raise UserError(
            f"{path} line {number} has {len(cells)} values for {len(names)} columns; separate them by single tabs"
        )
    texts = dict.fromkeys(names, "") | {name: cell.strip() for name, cell in zip(names, cells, strict=False)}

    def fail(name: str, wanted: str) -> UserError:
        return UserError(f"{path} line {number}: {name} {texts.get(name, '')!r} is not {wanted}; correct the value")

    def whole(name: str, default: int | None = None) -> int:
        match = re.match(r"(\d{1,12})(\.0*)?(?![\w.])", texts.get(name, "").replace(",", ""))
        if not texts.get(name) and default is not None:
            return default
        if match is None or int(match[1]) < 1:
            raise fail(name, "a whole number above 0")
        return int(match[1])

    _check_numbers(texts, fail)
    devices, tensor, pipeline, context = whole("n_devices"), whole("tp", 1), whole("pp", 1), whole("cp", 1)
    data = whole("dp", max(1, devices // (tensor * pipeline * context)))
    if data * tensor * pipeline * context != devices:
        raise UserError(
            f"{path} line {number}: tp {tensor} x pp {pipeline} x cp {context} x dp {data} is not n_devices {devices}; "
            "correct the layout"
        )
    heads = whole("heads")
    row = Row(
        number=number,
        texts=texts,
        layers=whole("layers"),
        hidden=whole("hidden"),
        ffn=whole("ffn"),
        gated=_truth(texts["glu"], fail),
        heads=heads,
        kv_heads=whole("kv_heads", heads),
        head_dim=whole("head_dim", max(1, whole("hidden") // heads)),
        length=whole("seq"),
        vocab=whole("vocab"),
        devices=devices,
        tensor=tensor,
        pipeline=pipeline,
        chunks=int(match[0]) if (match := re.match(r"[1-9]\d{0,2}", texts.get("vp", ""))) else None,
        data=data,
        context=context,
        micro_batch=leading_number(texts["micro_batch_seqs"]),
        global_batch=leading_number(texts["global_batch_seqs"]),
    )
    if pipeline > row.layers:
        raise UserError(f"{path} line {number}: pp {pipeline} is more than layers {row.layers}; correct the layout")
    return row


def _check_numbers(texts: Mapping[str, str], fail: Callable[[str, str], UserError]) -> None:
    """Speeds and batches that are no positive numbers, and an unknown kind of attention."""
    for name in ("tok_s_dev", "tflops_dev", "micro_batch_seqs", "global_batch_seqs"):
        if re.match(r"[-+]|0+(\.0*)?$|nan|inf", texts.get(name, ""), re.IGNORECASE):
            raise fail(name, "a number above 0")
    if not texts["id"]:
        raise fail("id", "a name")
    if not re.match(r"causal|bidirectional|full|encoder", texts["attn"], re.IGNORECASE):
        raise fail("attn", "causal or bidirectional")
    if leading_number(texts["tok_s_dev"]) is None and leading_number(texts.get("tflops_dev", "")) is None:
        raise fail("tok_s_dev", "a number, nor is tflops_dev")


def leading_number(text: str) -> float | None:
    """The number at the start of a value such as `2048 (config)`; None if it has none above 0."""
    match = re.match(r"\s*(\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?)", text, re.IGNORECASE)
    number = float(match[1].replace(",", "")) if match else math.nan
    return number if math.isfinite(number) and number > 0 else None


def _truth(text: str, fail: Callable[[str, str], UserError]) -> bool:
    if text.lower() in ("1", "yes", "true"):
        return True
    if text.lower() in ("0", "no", "false", ""):
        return False
    raise fail("glu", "0 or 1")
