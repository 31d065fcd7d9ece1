"""Muon for the blocks' matrices and AdamW for all else, under every ZeRO stage and layout (arXiv 2502.16982).

DeepSpeed gives an optimiser flat shards, not matrices. Momentum is elementwise and is updated on the shards. Then
`MatrixExchange` gathers every matrix on one rank, which orthogonalises it, and returns the parts of the result to the
shards. So all layouts make the same update, and the ranks share the work.

Muon has no second moment for these matrices: Adam's buffer holds the update during the exchange, and zeros otherwise, so
checkpoints have the same files and names as with AdamW.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from dist_metaxlm.deepspeed_adapter import optimizer_state
from dist_metaxlm.deepspeed_adapter.engine_protocol import DeepSpeedParameter, Engine
from dist_metaxlm.deepspeed_adapter.parameter_shards import part_shape
from dist_metaxlm.modeling.sharding import is_block_matrix
from dist_metaxlm.recipe.schema import ModelConfig, OptimizerConfig
from dist_metaxlm.training.engine.matrix_exchange import Matrix, MatrixExchange, stage_group
from dist_metaxlm.training.engine.orthogonal import update_of

_MOMENTUM, _UPDATE = "exp_avg", "exp_avg_sq"


class MuonWithAdamW(torch.optim.AdamW):
    """AdamW that updates the groups marked `orthogonal` by Muon.

    `attach` must be called once, after DeepSpeed has built its engine and the optimiser's state exists.
    """

    recipe_name = "muon"
    """Value of `optimizer.name`, which checkpoints record."""

    def __init__(self, groups: list[dict[str, object]], config: OptimizerConfig, model: ModelConfig) -> None:
        super().__init__(groups, lr=0.0, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)
        self._config, self._heads = config, model.heads
        self._exchanges: dict[int, MatrixExchange] = {}

    def attach(self, engine: Engine) -> None:
        """Map the matrices to DeepSpeed's shards (collective)."""
        names = {id(param): name for name, param in optimizer_state.named_parameters(engine)}
        group = stage_group()
        for shard, params in _shards(engine):
            own = [(names[id(p)], p) for p in params if id(p) in names and is_block_matrix(names[id(p)], part_shape(p))]
            if own:
                pieces = [optimizer_state.own_piece(engine, p, _UPDATE) for _, p in own]
                matrices = [Matrix(name=name, part_shape=part_shape(p), piece=partial(_piece, engine, p)) for name, p in own]
                self._exchanges[id(shard)] = MatrixExchange(matrices, [start for start, _ in pieces], engine.device, group)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update from the gradients of all groups; DeepSpeed calls it for one group or shard at a time."""
        every = self.param_groups
        try:
            self.param_groups = [group for group in every if not group.get("orthogonal")]
            super().step(closure)
        finally:
            self.param_groups = every
        for group in every:
            if group.get("orthogonal"):
                self._update(group)

    def _update(self, group: dict[str, Any]) -> None:
        momentum, rate, decay = self._config.momentum, group["lr"], group["weight_decay"]
        for shard in group["params"]:
            state = self.state[shard]
            gradient = shard.grad if shard.grad is not None else torch.zeros_like(shard)
            state["step"] += 1
            state[_MOMENTUM].lerp_(gradient, 1 - momentum)
            if self._config.nesterov:
                torch.lerp(gradient, state[_MOMENTUM], momentum, out=state[_UPDATE])
            else:
                state[_UPDATE].copy_(state[_MOMENTUM])
        for exchange in self._exchanges_of(group["params"]):
            exchange.apply(self._orthogonal)
        for shard in group["params"]:
            update = self.state[shard][_UPDATE]
            shard.mul_(1 - rate * decay).add_(update, alpha=-rate)
            update.zero_()

    def _orthogonal(self, name: str, whole: torch.Tensor) -> torch.Tensor:
        each = self._config.heads == "each"
        return update_of(name, whole, self._config.newton_schulz_steps, self._heads, each)

    def _exchanges_of(self, shards: list[torch.Tensor]) -> Iterator[MatrixExchange]:
        return (self._exchanges[id(shard)] for shard in shards if id(shard) in self._exchanges)


def _piece(engine: Engine, param: DeepSpeedParameter) -> torch.Tensor:
    return optimizer_state.own_piece(engine, param, _UPDATE)[1]


def _shards(engine: Engine) -> Iterator[tuple[torch.Tensor, list[DeepSpeedParameter]]]:
    """As `optimizer_state.optimizer_shards`; without ZeRO all matrices share one exchange, kept under the first."""
    every = list(optimizer_state.optimizer_shards(engine))
    if all(len(params) == 1 and params[0] is shard for shard, params in every):
        groups = [group["params"] for group in engine.optimizer.param_groups if group.get("orthogonal")]
        yield from ((params[0], params) for params in groups)
        return
    yield from every
