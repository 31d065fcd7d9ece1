"""The files that each rank writes into a checkpoint: their names, the keys in them, and what rank 0 learns of them."""

from __future__ import annotations

import secrets
import struct
from datetime import timedelta
from pathlib import Path

import safetensors.torch
import torch
import torch.distributed as dist

from dist_metaxlm.parallel.process_group import rank, world_size
from dist_metaxlm.storage.tensor_file import FinishedFile, HashedFile
from dist_metaxlm.training.checkpointing.gather_plan import KINDS

PATIENCE = timedelta(hours=1)
"""How long a rank waits for the files of the others before the save fails."""
_SEALED = struct.Struct("<q32s")


def name_of_job(group: dist.ProcessGroup | None) -> str:
    """A random name of this job, the same on all ranks (collective): no other job writes into its unfinished folders."""
    number = torch.tensor([secrets.randbits(62)])
    if group is not None:
        dist.broadcast(number, src=0, group=group)
    return f"{int(number):x}"


def sealed_by_all(files: dict[str, FinishedFile], group: dist.ProcessGroup | None) -> dict[str, FinishedFile]:
    """Sizes and digests of the files of all ranks, so that rank 0 need not read the other ranks' files (collective)."""
    if group is None:
        return files
    own = files_of(rank())
    row = b"".join(
        _SEALED.pack(files[name].bytes, bytes.fromhex(files[name].sha256)) if name in files else _SEALED.pack(-1, b"")
        for name in own
    )
    own_row = torch.frombuffer(bytearray(row), dtype=torch.uint8)
    rows = [torch.empty_like(own_row) for _ in range(world_size())]
    dist.all_gather(rows, own_row, group=group)
    all_files = dict(files)
    for place, theirs in enumerate(rows):
        for name, (size, digest) in zip(files_of(place), _SEALED.iter_unpack(theirs.numpy().tobytes()), strict=True):
            if size >= 0:
                all_files[name] = FinishedFile(size, digest.hex())
    return all_files


def files_of(place: int) -> list[str]:
    """Names of a rank's files; empty ones are not written."""
    return [f"{kind}-{place:05d}.safetensors" for kind in ("weights", "objectives", "moments", "momentum")]


def tensor_key(name: str, kind: int) -> str:
    """Name of a tensor in its file: `NAME`, `exp_avg.NAME`, `exp_avg_sq.NAME`."""
    moment = KINDS[kind]
    return name if moment is None else f"{moment}.{name}"


def write_progress(folder: Path, progress: dict[str, torch.Tensor]) -> FinishedFile:
    """Write the tensors of the phase's progress into their own file."""
    file = HashedFile(folder / "progress-00000.safetensors")
    try:
        file.write(safetensors.torch.save(progress))
        return file.finalize()
    finally:
        file.close_quietly()
