"""Writes safetensors files piece by piece: the header from shapes, then the data in any order.

`safetensors.torch.save_file` needs all tensors of a file in memory; the format does not.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import torch

from dist_metaxlm.errors import UserError
from dist_metaxlm.interop.tensor_source import DTYPES
from dist_metaxlm.storage.safetensors_header import Entry, header_of

SHARD_SIZE = "5GB"
"""Largest file, unless a single tensor is larger: the default of huggingface_hub."""
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class ShardWriter:
    """The weights of a folder: `model.safetensors`, or numbered shards and an index, cut as huggingface_hub cuts them."""

    def __init__(self, folder: Path, specs: dict[str, torch.Tensor], shard_size: int | str = SHARD_SIZE) -> None:
        """Write headers and index for `specs` (tensors on the meta device).

        Raises:
            UserError: for an invalid `shard_size`.
            OSError: ENOSPC if the disk has not enough space for all files.
        """
        from huggingface_hub import split_torch_state_dict_into_shards

        needed, free = sum(spec.nbytes for spec in specs.values()), shutil.disk_usage(folder).free
        if needed > free:
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} ({needed:,} bytes needed, {free:,} free)", str(folder))
        self._specs = specs
        self._places: dict[str, tuple[Path, int]] = {}
        self._missing = {name: spec.nbytes for name, spec in specs.items()}
        try:
            split = split_torch_state_dict_into_shards(specs, max_shard_size=shard_size)
        except (ValueError, OverflowError):
            raise UserError(
                f"largest file {shard_size!r} is not a size; give a number and KB, MB, GB or TB, such as {SHARD_SIZE}"
            ) from None
        for file, names in split.filename_to_tensors.items():
            self._create(folder / file, names)
        if split.is_sharded:
            write_json(folder / INDEX, {"metadata": split.metadata, "weight_map": split.tensor_to_filename})

    def write(self, name: str, rows: torch.Tensor, first: int = 0) -> None:
        """Write rows of a tensor, from its row `first` on, in the dtype of its spec."""
        spec = self._specs[name]
        path, start = self._places[name]
        raw = rows.detach().to("cpu", spec.dtype).contiguous().reshape(-1).view(torch.uint8).numpy()
        with path.open("r+b") as stream:
            stream.seek(start + (first * spec.nbytes // spec.shape[0] if first else 0))
            stream.write(raw.data)
        self._missing[name] -= raw.nbytes

    def finish(self) -> None:
        """Check that every tensor has been written in full."""
        unfinished = [name for name, missing in self._missing.items() if missing]
        if unfinished:
            raise RuntimeError(f"{len(unfinished)} tensors were not written in full, such as {unfinished[0]}")

    def _create(self, path: Path, names: list[str]) -> None:
        # Wider types first, so that every tensor begins at a multiple of its element's size.
        ordered = sorted(names, key=lambda name: -self._specs[name].itemsize)
        specs = {name: self._specs[name] for name in ordered}
        entries = {name: Entry(_NAMES[spec.dtype], spec.shape, spec.nbytes) for name, spec in specs.items()}
        header = header_of(entries, {"format": "pt"})
        with path.open("wb") as stream:
            stream.write(header.content)
            stream.truncate(header.end)
        self._places.update((name, (path, header.starts[name])) for name in names)


def write_json(path: Path, value: object) -> None:
    """Write human-readable JSON."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
