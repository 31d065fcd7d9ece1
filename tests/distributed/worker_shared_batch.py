"""Four ranks in two groups of two; each rank compares what it gets with the batch its group's first rank has built."""

from __future__ import annotations

from dataclasses import fields

import torch
import torch.distributed as dist

from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.training.shared_batch import share_batch


def build(seed: int, contrast: bool) -> PackedBatch:
    """A batch of any numbers, in the shapes and types of the loader's."""
    generator = torch.Generator().manual_seed(seed)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randint(0, 1000, shape, generator=generator)

    documents, targets = 5 + seed % 7, 0 if contrast else 9 + seed
    return PackedBatch(numbers(64), numbers(64), numbers(documents).to(torch.int32), 16, numbers(4), numbers(4),
                       numbers(targets), numbers(targets), numbers(3, 2) if contrast else None,
                       numbers(3) if contrast else None)


def main() -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    for step in range(6):
        expected = build(10 * step + rank // 2, contrast=step % 2 == 1)
        got = share_batch(expected if rank % 2 == 0 else None, groups[rank // 2], torch.device("cpu"))
        for field in fields(PackedBatch):
            mine, theirs = getattr(expected, field.name), getattr(got, field.name)
            if isinstance(mine, torch.Tensor):
                assert mine.dtype == theirs.dtype, field.name
                assert torch.equal(mine, theirs), field.name
            else:
                assert mine == theirs, field.name
    print("equal")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
