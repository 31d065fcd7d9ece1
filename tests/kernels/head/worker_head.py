"""A rank of two that hold a vocabulary of 37 together: the interpreted Triton head over real collectives, against fp64."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F

from dist_metaxlm.kernels import registry
from dist_metaxlm.kernels.head.linear_cross_entropy import VocabularyShard, linear_cross_entropy


def main() -> None:
    dist.init_process_group("gloo")
    rank, generator = dist.get_rank(), torch.Generator().manual_seed(1)
    states, weight, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in ((9, 6), (37, 6), (37,))
    )
    targets = torch.randint(0, 37, (9,), generator=generator)
    expected = F.cross_entropy(F.linear(states, weight, bias), targets, reduction="none")
    whole = torch.autograd.grad(expected.sum(), (states, weight, bias))
    first, count = 19 * rank, 19 - rank
    own = [
        torch.cat([t.detach()[first : first + count], t.new_full((19 - count, *t.shape[1:]), 50.0)]).requires_grad_()
        for t in (weight, bias)
    ]
    with registry.forcing("triton"):
        losses = linear_cross_entropy(states, *own, targets, 0, VocabularyShard(first, count, dist.group.WORLD))
    found = torch.autograd.grad(losses.sum(), (states, *own))
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(found[0], whole[0])
    for part, other in zip(found[1:], whole[1:], strict=True):
        torch.testing.assert_close(part[:count], other[first : first + count])
    dist.destroy_process_group()
    print("same", registry.choices()["linear_cross_entropy"])


if __name__ == "__main__":
    main()
