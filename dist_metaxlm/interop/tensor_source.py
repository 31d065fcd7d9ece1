"""Named tensors that are read on access: one at a time, or some rows of one, so that a model never has to fit in memory.

Only the header of a safetensors file is read at first (https://huggingface.co/docs/safetensors: eight bytes of length, JSON
with type, shape and place of each tensor, raw bytes), and checked by the safetensors library. The data are then read
with plain reads: pages of the library's memory map count as memory of the process, and a slice through its `pread`
backend reads the whole tensor.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Protocol

import torch

from dist_metaxlm.errors import UserError

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""Types of weights that are converted, by their names in safetensors."""
BLOCK_BYTES = 64 * 2**20
"""A tensor that only changes its name is copied in blocks of about this many bytes."""


class TensorSource(Protocol):
    """Tensors by name, each read on access."""

    def keys(self) -> Iterable[str]:
        """Names of all tensors."""
        ...

    def spec(self, name: str) -> torch.Tensor:
        """Shape and dtype, as a tensor on the meta device; no data is read."""
        ...

    def read(self, name: str, first: int = 0, last: int | None = None) -> torch.Tensor:
        """The tensor, or its rows `first` to `last` (exclusive), on the CPU."""
        ...


class HeldTensors:
    """A state in memory, as a source."""

    def __init__(self, state: Mapping[str, torch.Tensor]) -> None:
        self.state = state

    def keys(self) -> Iterable[str]:
        """Names of all tensors."""
        return self.state.keys()

    def spec(self, name: str) -> torch.Tensor:
        """Shape and dtype, as a tensor on the meta device."""
        return self.state[name].detach().to("meta")

    def read(self, name: str, first: int = 0, last: int | None = None) -> torch.Tensor:
        """The tensor, or some rows of it."""
        tensor = self.state[name].detach()
        return tensor if first == 0 and last is None else tensor[first:last]


@dataclass(frozen=True)
class _Place:
    path: Path
    start: int
    dtype: str
    shape: tuple[int, ...]


class FileTensors(Mapping[str, torch.Tensor]):
    """The tensors of safetensors files; also a read-only mapping that reads a tensor on each access."""

    def __init__(self, paths: Iterable[Path]) -> None:
        """Read and check the headers.

        Raises:
            UserError: for a damaged file, or a name that two files hold.
        """
        self._places: dict[str, _Place] = {}
        for path in paths:
            for name, place in _places(path):
                if name in self._places:
                    raise UserError(f"{path} and {self._places[name].path.name} both hold {name}; copy the folder again")
                self._places[name] = place

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places  # the default implementation would read the tensor

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.read(name)

    def path(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self._places[name].path

    def spec(self, name: str) -> torch.Tensor:
        """Shape and dtype, as a tensor on the meta device; UserError for types that are not plain weights."""
        place = self._places[name]
        if place.dtype not in DTYPES:
            raise UserError(
                f"{name} in {place.path} has type {place.dtype}; only {', '.join(DTYPES)} are converted, "
                "so save the model unquantised in one of them"
            )
        return torch.empty(place.shape, dtype=DTYPES[place.dtype], device="meta")

    def read(self, name: str, first: int = 0, last: int | None = None) -> torch.Tensor:
        """The tensor, or its rows `first` to `last` (exclusive); UserError when the file has become shorter."""
        place, spec = self._places[name], self.spec(name)
        wanted = spec if first == 0 and last is None else spec[first:last]
        tensor = torch.empty(wanted.shape, dtype=wanted.dtype)
        row_bytes = spec.nbytes // max(1, spec.shape[0]) if spec.ndim else 0
        with place.path.open("rb", buffering=0) as stream:
            stream.seek(place.start + first * row_bytes)
            _fill(stream, tensor.reshape(-1).view(torch.uint8).numpy().data, place.path)
        return tensor


def row_blocks(source: TensorSource, name: str) -> Iterator[tuple[int, torch.Tensor]]:
    """A tensor in blocks of about BLOCK_BYTES: (first row, rows), from the first to the last."""
    spec = source.spec(name)
    if spec.ndim == 0 or spec.nbytes <= BLOCK_BYTES:
        yield 0, source.read(name)
        return
    step = max(1, BLOCK_BYTES * spec.shape[0] // spec.nbytes)
    for first in range(0, spec.shape[0], step):
        yield first, source.read(name, first, min(first + step, spec.shape[0]))


def same_tensor(source: TensorSource, one: str, other: str) -> bool:
    """Whether two tensors are equal in shape, dtype and values, compared block by block."""
    first, second = source.spec(one), source.spec(other)
    if (first.shape, first.dtype) != (second.shape, second.dtype):
        return False
    blocks = zip(row_blocks(source, one), row_blocks(source, other), strict=True)
    return all(torch.equal(left, right) for (_, left), (_, right) in blocks)


def _places(path: Path) -> Iterator[tuple[str, _Place]]:
    """Place of each tensor in a file, after the library has checked that header and length of the file match."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt"):
            pass
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path} is damaged or not a safetensors file ({error}); copy it again") from error
    for name, entry in header.items():
        if name != "__metadata__":
            yield name, _Place(path, 8 + length + entry["data_offsets"][0], entry["dtype"], tuple(entry["shape"]))


def _fill(stream: FileIO, view: memoryview, path: Path) -> None:
    """Read until `view` is full: one read returns at most 2 GiB."""
    filled = 0
    while filled < len(view):
        got = stream.readinto(view[filled:])
        if not got:
            raise UserError(f"{path} became shorter while it was read; copy it again")
        filled += got
