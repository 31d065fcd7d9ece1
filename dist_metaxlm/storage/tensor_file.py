"""Files of a checkpoint: safetensors, written one tensor at a time and hashed while writing, and read one tensor at a time.

`safetensors.torch.save_file` needs all tensors of a file in memory at once. The checkpoint writer gathers and releases them
one after another, so it writes the same layout (8 bytes of length, a JSON header, the data; format of safetensors 0.8,
`docs/safetensors/index` of Hugging Face) incrementally; the library reads and checks it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from dist_metaxlm.storage.safetensors_header import Entry, header_of

CHUNK = 4 << 20
"""Bytes that are hashed and written together: they are still in the processor's cache when they are written."""


@dataclass(frozen=True)
class FinishedFile:
    """Manifest entry of a file that was written and synchronised."""

    bytes: int
    sha256: str


class HashedFile:
    """A file written once, from front to back; its digest is computed in memory, so a later check detects disk faults."""

    def __init__(self, path: Path) -> None:
        self._digest, self._bytes = hashlib.sha256(), 0
        self._stream = path.open("xb")

    def write(self, content: bytes | memoryview) -> None:
        """Append `content`. Raises OSError when the disk is full."""
        view = memoryview(content).cast("B")
        for start in range(0, len(view), CHUNK):
            chunk = view[start : start + CHUNK]
            self._digest.update(chunk)
            self._stream.write(chunk)
        self._bytes += len(view)

    def finalize(self) -> FinishedFile:
        """Flush the file to disk and close it."""
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
        return FinishedFile(self._bytes, self._digest.hexdigest())

    def close_quietly(self) -> None:
        """Close the file and ignore errors: another error is already being raised."""
        # Closing writes the buffer, which fails again if the disk is full.
        with contextlib.suppress(OSError):
            self._stream.close()


class TensorFile(HashedFile):
    """A safetensors file of fp32 tensors; only names and shapes are known at creation."""

    def __init__(self, path: Path, shapes: Mapping[str, Sequence[int]]) -> None:
        super().__init__(path)
        header = header_of({name: Entry("F32", shape, 4 * torch.Size(shape).numel()) for name, shape in shapes.items()})
        self._left = list(shapes.items())
        try:
            self.write(header.content)
        except OSError:
            self.close_quietly()
            raise

    def append(self, tensor: torch.Tensor) -> None:
        """The next tensor of `shapes`, fp32 on the CPU."""
        name, shape = self._left.pop(0)
        assert (tensor.dtype, tuple(tensor.shape)) == (torch.float32, tuple(shape)), f"{name}: {tuple(tensor.shape)}"
        self.write(tensor.contiguous().view(-1).numpy().data)

    def finalize(self) -> FinishedFile:
        """Flush the complete file to disk and close it."""
        assert not self._left, f"{self._left[0][0]} was announced and not written"
        return super().finalize()


class TensorsOnDisk(Mapping[str, torch.Tensor]):
    """Tensors of some safetensors files by name, each read on access.

    Tensors are views of the mapped file: their memory is the page cache, which all ranks of a node share. Copy a tensor
    before changing it in place: the next read would return the change.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._where: dict[str, Any] = {}
        for path in paths:
            file = safe_open(path, framework="pt")
            self._where |= dict.fromkeys(file.keys(), file)

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._where[name].get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)
