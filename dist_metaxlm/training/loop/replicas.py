"""Compares the copies of the weights over the data-parallel ranks: a bit that flips on one of them is found by name.

Data-parallel ranks apply the same updates to the same weights, so their copies are equal bit for bit. Each rank adds the raw
words of every parameter as integers, on its device; one flipped bit always changes the sum, and the order of the addition
does not. One all-gather compares the sums, 8 bytes a parameter.
"""

from __future__ import annotations

import torch

from dist_metaxlm import failpoints
from dist_metaxlm.deepspeed_adapter import optimizer_state
from dist_metaxlm.deepspeed_adapter.engine_protocol import Engine
from dist_metaxlm.errors import HardwareFault
from dist_metaxlm.parallel.groups import groups
from dist_metaxlm.parallel.process_group import gather_rows, largest

_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class ReplicaGuard:
    """Compares the weights of one engine; under ZeRO-3 no rank has a copy of another's, so there is nothing to compare."""

    def __init__(self, engine: Engine, interval: int) -> None:
        """`interval`: `training.guards.replica_interval`."""
        self._device, self._interval = engine.device, interval
        self._weights = {
            name: weight for name, weight in optimizer_state.named_parameters(engine) if not hasattr(weight, "ds_id")
        }

    def check(self, step: int, saving: bool) -> None:
        """Compare after `step` steps, if it is time or a checkpoint is about to be saved (collective then).

        Raises:
            HardwareFault: on all ranks, if copies differ.
        """
        if failpoints.flips("parameter", step) and self._weights:
            weight = next(iter(self._weights.values())).data
            weight.view(_WORDS[weight.element_size()]).view(-1)[:1].bitwise_xor_(1)
        if not self._interval or not (saving or step % self._interval == 0):
            return
        problem = ""
        if self._weights and groups().data_size > 1:
            sums = gather_rows(torch.stack([word_sum(weight) for weight in self._weights.values()]))
            problem = difference(list(self._weights), sums.view(groups().data_size, -1).cpu())
        if groups().data_size > 1 and largest(int(bool(problem)), self._device):
            raise HardwareFault(
                f"after step {step} {problem or 'copies of a weight differ between other ranks'}: memory, processor or "
                "network of that host gives wrong values; no checkpoint of this state is saved; test the host or leave it "
                "out, and run the same command again to resume from the last checkpoint"
            )


def word_sum(weight: torch.Tensor) -> torch.Tensor:
    """Sum of a tensor's raw words as integers, modulo 2^64: a scalar on its device."""
    return weight.detach().view(_WORDS[weight.element_size()]).sum(dtype=torch.int64)


def difference(names: list[str], sums: torch.Tensor) -> str:
    """Which weights differ on which ranks, from the sums [data-parallel ranks, weights]; empty if all are equal.

    The ranks in the minority are named; without a majority all of them.
    """
    columns = (sums != sums[0]).any(0).nonzero().flatten().tolist()
    if not columns:
        return ""
    common = sums[:, columns].mode(0).values
    agrees = sums[:, columns] == common
    wrong = (~agrees).any(1) if bool((2 * agrees.sum(0) > len(sums)).all()) else torch.ones(len(sums), dtype=torch.bool)
    grid = groups()
    ranks = [
        (grid.stage * grid.data_size + copy) * grid.tensor_size + grid.tensor_rank for copy in wrong.nonzero().flatten()
    ]
    shown = ", ".join(str(int(number)) for number in ranks)
    more = f" and {len(columns) - 1} more" if len(columns) > 1 else ""
    if bool(wrong.all()):
        return f"{names[columns[0]]}{more} differs between the ranks {shown}, without a majority"
    return f"{names[columns[0]]}{more} differs on rank {shown} from the copies of the other ranks"
