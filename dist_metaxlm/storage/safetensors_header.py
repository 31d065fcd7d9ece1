"""The beginning of a safetensors file from shapes alone, for writers that never hold all tensors in memory.

Layout: 8 bytes of header length, a JSON header, then the data (format of safetensors 0.8, `docs/safetensors/index` of
Hugging Face). `safetensors.torch.save_file` needs all tensors of a file at once; the format does not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Entry(NamedTuple):
    """One tensor of a file."""

    dtype: str
    """As the format names it, such as `F32`."""
    shape: Sequence[int]
    nbytes: int


class Header(NamedTuple):
    """What precedes the data."""

    content: bytes
    """The length and the JSON text, padded so that the data begin at a multiple of 8, as in the library's files."""
    starts: dict[str, int]
    """Byte of the file at which each tensor begins."""
    end: int
    """Bytes of the whole file."""


def header_of(entries: Mapping[str, Entry], metadata: Mapping[str, str] | None = None) -> Header:
    """The header for tensors that follow one another in the order of `entries`."""
    described: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    offsets, end = {}, 0
    for name, entry in entries.items():
        offsets[name], end = end, end + entry.nbytes
        described[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [offsets[name], end]}
    text = json.dumps(described, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    content = len(text).to_bytes(8, "little") + text
    return Header(content, {name: len(content) + offset for name, offset in offsets.items()}, len(content) + end)
