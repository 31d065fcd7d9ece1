"""AdamW whose learning rate is divided, tensor by tensor, where an update would be too large (StableAdamW).

From arXiv 2304.13013, algorithm 2: RMS_t = sqrt(mean(g^2 / max(u, eps^2))) over a tensor, with u its second moment, and the
rate of this tensor is the learning rate / max(1, RMS_t / d), for the decay as well. ModernBERT (arXiv 2412.13663) uses it.

The paper corrects the bias of the moments by changing their decay, which gives the same values as AdamW's division. Here the
moments are stored as AdamW stores them, so that checkpoints of both can be exchanged.

DeepSpeed gives an optimiser flat shards of several tensors. The mean is over the whole logical tensor: its pieces' sums are
added over the ranks of the pipeline stage, without the padding of the vocabulary. So all layouts make the same update.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from dist_metaxlm.deepspeed_adapter import optimizer_state
from dist_metaxlm.deepspeed_adapter.engine_protocol import DeepSpeedParameter, Engine
from dist_metaxlm.deepspeed_adapter.parameter_shards import part_shape
from dist_metaxlm.modeling.sharding import VOCABULARY
from dist_metaxlm.recipe.schema import OptimizerConfig
from dist_metaxlm.training.engine.matrix_exchange import stage_group


@dataclass(frozen=True)
class _Piece:
    """A range of a shard that belongs to one tensor."""

    start: int
    size: int
    tensor: int
    """Number of the tensor among those of the shard."""


@dataclass(frozen=True)
class _Shard:
    """The tensors of a shard, the same on all ranks of a stage, and this rank's pieces of them."""

    pieces: list[_Piece]
    counts: torch.Tensor
    """[tensors] float64: elements over all ranks of the stage, copies included, padding excluded."""


class StableAdamW(torch.optim.AdamW):
    """AdamW with clipped updates. `attach` must be called once, when DeepSpeed's engine and the state exist."""

    recipe_name = "stable_adamw"
    """Value of `optimizer.name`, which checkpoints record."""

    def __init__(self, groups: list[dict[str, object]], config: OptimizerConfig) -> None:
        super().__init__(groups, lr=0.0, betas=(config.beta1, config.beta2), eps=config.eps)
        self._config = config
        self._shards: dict[int, _Shard] = {}
        self._group: dist.ProcessGroup | None = None
        self._device = torch.device("cpu")

    def attach(self, engine: Engine) -> None:
        """Map the tensors to DeepSpeed's shards (collective)."""
        self._group, self._device = stage_group(), engine.device
        names = {id(param): name for name, param in optimizer_state.named_parameters(engine)}
        for shard, params in optimizer_state.optimizer_shards(engine):
            own = [param for param in params if id(param) in names]
            pieces, counts = [], torch.zeros(len(own), dtype=torch.float64)
            for number, param in enumerate(own):
                begin, piece = optimizer_state.own_piece(engine, param, None)
                if piece.numel():
                    start = (piece.data_ptr() - shard.data_ptr()) // shard.element_size()
                    pieces.append(_Piece(start, piece.numel(), number))
                counts[number] = _without_padding(names[id(param)], param, begin, piece.numel(), engine)
            self._shards[id(shard)] = _Shard(pieces, self._sum(counts))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update from the gradients of all groups; DeepSpeed calls it for one group or shard at a time."""
        shards = [(shard, group) for group in self.param_groups for shard in group["params"] if id(shard) in self._shards]
        if not shards:
            return
        sums = [self._moments(shard) for shard, _ in shards]
        totals = self._sum(torch.cat(sums)).split([len(of) for of in sums])
        for (shard, group), total in zip(shards, totals, strict=True):
            known = self._shards[id(shard)]
            rms = (total / known.counts.clamp(min=1.0)).sqrt()
            rates = (group["lr"] / (rms / self._config.update_clip).clamp(min=1.0)).tolist()
            for piece, weight, first, second in self._views(shard):
                rate = rates[piece.tensor]
                denominator = second.sqrt().div_(self._corrections(shard)[1] ** 0.5).add_(self._config.eps)
                weight.mul_(1 - rate * group["weight_decay"])
                weight.addcdiv_(first, denominator, value=-rate / self._corrections(shard)[0])

    def _moments(self, shard: torch.Tensor) -> torch.Tensor:
        """[tensors] float64: update the moments; the sums of g^2 / max(u, eps^2) over this rank's pieces."""
        state = self.state[shard]
        gradient = shard.grad if shard.grad is not None else torch.zeros_like(shard)
        state["step"] += 1
        state["exp_avg"].lerp_(gradient, 1 - self._config.beta1)
        state["exp_avg_sq"].mul_(self._config.beta2).addcmul_(gradient, gradient, value=1 - self._config.beta2)
        correction = self._corrections(shard)[1]
        sums = torch.zeros(len(self._shards[id(shard)].counts), dtype=torch.float64)
        flat = gradient.reshape(-1)
        for piece, _, _, second in self._views(shard):
            part = flat.narrow(0, piece.start, piece.size)
            ratio = part.square() / (second / correction).clamp_(min=self._config.eps**2)
            sums[piece.tensor] = ratio.sum(dtype=torch.float64)
        return sums

    def _corrections(self, shard: torch.Tensor) -> tuple[float, float]:
        """Divisors of the moments that remove their bias towards zero."""
        step = float(self.state[shard]["step"])
        return 1 - self._config.beta1**step, 1 - self._config.beta2**step

    def _views(self, shard: torch.Tensor) -> Iterator[tuple[_Piece, torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Each piece with its weights and moments, flat."""
        state: dict[str, Any] = self.state[shard]
        flat = [tensor.view(-1) for tensor in (shard.data, state["exp_avg"], state["exp_avg_sq"])]
        for piece in self._shards[id(shard)].pieces:
            weight, first, second = (tensor.narrow(0, piece.start, piece.size) for tensor in flat)
            yield piece, weight, first, second

    def _sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over the ranks of this pipeline stage, on the CPU (collective)."""
        if not dist.is_initialized() or dist.get_world_size(self._group) == 1:
            return values
        everywhere = values.to(self._device)
        dist.all_reduce(everywhere, group=self._group)
        return everywhere.cpu()


def _without_padding(name: str, param: DeepSpeedParameter, begin: int, size: int, engine: Engine) -> int:
    """Elements of the piece from `begin` on that are no padding of the vocabulary."""
    if name not in VOCABULARY:
        return size
    shape, encoder = part_shape(param), engine.module.encoder
    rows = len(encoder.shard.own_vocabulary(encoder.config.vocab_size))
    own = rows * (torch.Size(shape).numel() // shape[0])
    return max(0, min(begin + size, own) - begin)
