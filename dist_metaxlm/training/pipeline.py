"""The model cut into pipeline stages, as a DeepSpeed `PipelineModule` whose stages are parts of our encoder.

Every rank builds the encoder of its stage alone: the same layer objects under the same logical names as the whole model,
so initial weights, checkpoints and the optimiser know nothing of stages. Between stages travel the states and the places
of the documents; the last stage reads the batch itself for its targets.

The token embedding is needed by the first stage and by the head. The first stage's copy is trained, with the sum of both
gradients, and sent to the last stage after each step: that moves as much as summing the gradients on both sides would, but
keeps one set of optimiser states, and the copies are bit-equal by construction, however the data-parallel sums round.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.pipe import LayerSpec, PipelineModule
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology

from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.modeling.block import Block
from dist_metaxlm.modeling.embedding import Embedding
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.modeling.head import Head
from dist_metaxlm.modeling.sharding import TensorShard
from dist_metaxlm.objectives.model import layer_read, objective_losses
from dist_metaxlm.parallel.groups import groups
from dist_metaxlm.planning.stages import Stage
from dist_metaxlm.recipe.schema import AnyObjective, ModelConfig
from dist_metaxlm.training.steps import MicroStep

Count = Callable[[AnyObjective, PackedBatch, torch.Tensor, torch.Tensor], None]
Travelling = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""States (or the first stage's token ids), positions, cu_seqlens, samples: what goes from stage to stage."""


@dataclass(frozen=True)
class Work:
    """A micro-step with its batch, for the stages that read batches."""

    micro: MicroStep
    batch: PackedBatch

    def travelling(self) -> Travelling:
        """What the first stage begins with."""
        return self.batch.tokens, self.batch.positions, self.batch.cu_seqlens, self.batch.samples


class PipelinedModel(PipelineModule):
    """This rank's stage of the encoder, and the objectives on the last."""

    encoder: Encoder

    def __init__(self, config: ModelConfig, seed: int, shard: TensorShard, stages: list[Stage], window: int) -> None:
        """`window`: tokens of a window of every batch. The ranks are those of parallel/groups.py (collective)."""
        place = groups()
        # Read by the methods below, which the constructor of PipelineModule calls.
        self._make = lambda stage: Encoder(config, seed, shard, stage)
        self._stages, self._window = stages, window
        self._step = 0
        self._micro_steps: Iterator[MicroStep] = iter(())
        self._count: Count | None = None
        specs = [LayerSpec(Embedding, config, shard), *(LayerSpec(Block, config, i, shard) for i in range(config.layers)),
                 LayerSpec(Head, config, shard)]
        topology = PipeModelDataParallelTopology(num_pp=place.stages, num_mp=place.tensor_size, num_dp=place.data_size)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its partition, ours is in the log
            super().__init__(layers=specs, topology=topology, loss_fn=self._loss, dynamic_shape=True)

    def _partition_layers(self, method: str = "cost") -> None:
        starts = [0, *(stage.blocks.start + 1 for stage in self._stages[1:])]
        self.parts = [*starts, self._num_layers]
        place = groups()
        self._set_bounds(self.parts[place.stage], self.parts[place.stage + 1])

    def _build(self) -> None:
        self.encoder = self._make(self._stages[groups().stage])
        for parameter in self.parameters():
            parameter.ds_pipe_replicated = False

    def _index_tied_modules(self) -> dict[str, Any]:
        """The token embedding's two holders; the last stage's copy is marked, and gets no optimiser state."""
        place, found = groups(), {}
        size = place.data_size * place.tensor_size
        for rank in range(size):
            holders = [rank, (place.stages - 1) * size + rank]
            group = dist.new_group(holders)
            if dist.get_rank() in holders:
                tokens = self.encoder.embedding.tokens
                tokens.weight.ds_pipe_replicated = place.stage > 0  # type: ignore[union-attr]
                found["tokens"] = {"ranks": holders, "group": group, "weight_attr": ["weight"], "module": tokens}
        return found

    def get_tied_weights_and_groups(self) -> list[tuple[torch.Tensor, Any]]:
        """What DeepSpeed sums the gradients of, before it averages over data-parallel ranks."""
        tied = [(comm["module"].weight, comm["group"]) for comm in self.tied_comms.values()]
        for weight, _ in tied:
            if weight.grad is None:  # a step without a masked-LM objective gives the head none; its peer waits for it
                weight.grad = torch.zeros_like(weight)
        return tied

    @torch.no_grad()
    def share_tied(self) -> None:
        """Send the trained token embedding to the last stage; to be called after each change of the weights."""
        for comm in self.tied_comms.values():
            weight = comm["module"].weight
            dist.broadcast(weight.data, comm["ranks"][0], group=comm["group"])
            if weight.ds_pipe_replicated:
                weight.grad = None

    def begin(self, step: int, micro_steps: list[MicroStep], count: Count) -> None:
        """Announce the micro-steps that the coming forward passes belong to, and who counts their losses."""
        self._step, self._micro_steps, self._count = step, iter(micro_steps), count

    def forward(self, travelling: Travelling) -> Travelling:
        """This stage's part of the encoder for the next micro-step."""
        states, positions, cu_seqlens, samples = travelling
        outline = PackedBatch.outline(positions, cu_seqlens, samples, self._window)
        geometry = self.encoder.geometry(outline, self._step)
        last_layer = layer_read(next(self._micro_steps).objective)
        return self.encoder.through_stage(states, geometry, last_layer), positions, cu_seqlens, samples

    def _loss(self, travelling: Travelling, work: Work) -> torch.Tensor:
        batch, objective = work.batch.to(travelling[0].device), work.micro.objective
        loss, losses, languages = objective_losses(self.encoder, travelling[0], batch, objective)
        assert self._count is not None
        self._count(objective, batch, losses, languages)
        return loss * (work.micro.factor * groups().data_size)
