"""The model cut into pipeline stages, as a DeepSpeed `PipelineModule` whose stages are parts of our encoder.

Every rank builds only the encoder of its stage: the same layer objects under the same logical names as the whole model,
so initial weights, checkpoints and the optimiser do not depend on stages. Stages send states and document boundaries to
the next stage; the last stage reads the batch itself for its targets.

The token embedding is needed by the first stage and by the head. The first stage's copy is trained, with the sum of both
gradients, and sent to the last stage after each step. That sends as much data as summing the gradients on both sides, but
keeps only one set of optimiser states, and the copies are always bit-equal, however the data-parallel sums round.
"""

from __future__ import annotations

import contextlib
import io
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.pipe import LayerSpec, PipelineModule
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology

from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.data.steps import MicroStep
from dist_metaxlm.deepspeed_adapter.gradients import add_in_fp32, sum_tied_gradient
from dist_metaxlm.modeling.block import Block
from dist_metaxlm.modeling.embedding import Embedding
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.modeling.head import Head
from dist_metaxlm.modeling.sharding import TensorShard
from dist_metaxlm.objectives.model import make_parameter_free_loss
from dist_metaxlm.parallel.groups import groups
from dist_metaxlm.planning.stages import Stage
from dist_metaxlm.recipe.schema import ModelConfig, Objective
from dist_metaxlm.training.engine.micro_step_loss import guard_loss

Count = Callable[[Objective, PackedBatch, torch.Tensor, torch.Tensor], None]
StageInputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""States (or the first stage's token ids), positions, cu_seqlens, samples: the data sent from stage to stage."""


def first_stage_inputs(batch: PackedBatch) -> StageInputs:
    """Inputs of the first stage for a batch."""
    return batch.tokens, batch.positions, batch.cu_seqlens, batch.samples


class PipelinedModel(PipelineModule):
    """This rank's stage of the encoder, and the objectives on the last."""

    encoder: Encoder

    def __init__(self, config: ModelConfig, seed: int, shard: TensorShard, stages: list[Stage]) -> None:
        """The ranks are those of parallel/groups.py (collective)."""
        grid = groups()
        # Read by the methods below, which the constructor of PipelineModule calls.
        self._make = lambda stage: Encoder(config, seed, shard, stage)
        self._stages = stages
        self._step = 0
        self._micro_steps: Iterator[MicroStep] = iter(())
        self._batches: deque[PackedBatch] = deque()
        self._count: Count | None = None
        specs = [
            LayerSpec(Embedding, config, shard),
            *(LayerSpec(Block, config, i, shard) for i in range(config.layers)),
            LayerSpec(Head, config, shard),
        ]
        topology = PipeModelDataParallelTopology(num_pp=grid.stages, num_mp=grid.tensor_size, num_dp=grid.data_size)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its partition; ours is in the log
            super().__init__(layers=specs, topology=topology, dynamic_shape=True)

    def _partition_layers(self, method: str = "cost") -> None:
        starts = [0, *(stage.blocks.start + 1 for stage in self._stages[1:])]
        self.parts = [*starts, self._num_layers]
        grid = groups()
        self._set_bounds(self.parts[grid.stage], self.parts[grid.stage + 1])

    def _build(self) -> None:
        self.encoder = self._make(self._stages[groups().stage])
        for parameter in self.parameters():
            parameter.ds_pipe_replicated = False

    def _index_tied_modules(self) -> dict[str, dict[str, object]]:
        """The ranks that hold the token embedding; the last stage's copy is marked and gets no optimiser state."""
        grid, tied = groups(), {}
        size = grid.data_size * grid.tensor_size
        for rank in range(size):
            holders = [rank, (grid.stages - 1) * size + rank]
            group = dist.new_group(holders)
            if dist.get_rank() in holders:
                tokens = self.encoder.embedding.tokens
                weight: Any = tokens.weight
                weight.ds_pipe_replicated = grid.stage > 0
                if grid.stage > 0:
                    weight.register_post_accumulate_grad_hook(add_in_fp32)
                tied["tokens"] = {"ranks": holders, "group": group, "weight_attr": ["weight"], "module": tokens}
        return tied

    @torch.no_grad()
    def get_tied_weights_and_groups(self) -> list[tuple[torch.Tensor, dist.ProcessGroup]]:
        """Sum the tied gradients of a step, when DeepSpeed is about to average gradients over data-parallel ranks.

        Nothing is returned for it to sum (deepspeed_adapter/gradients.py).
        """
        for comm in self.tied_comms.values():
            sum_tied_gradient(comm["module"].weight, comm["group"])
        return []

    @torch.no_grad()
    def share_tied(self) -> None:
        """Send the trained token embedding to the last stage; call it after each change of the weights."""
        for comm in self.tied_comms.values():
            weight = comm["module"].weight
            dist.broadcast(weight.data, comm["ranks"][0], group=comm["group"])

    def begin(self, step: int, micro_steps: list[MicroStep], batches: deque[PackedBatch], count: Count) -> None:
        """Set the micro-steps of the next forward passes, the batches with the last stage's targets (filled as DeepSpeed
        loads them), and the callback for its losses."""
        self._step, self._micro_steps, self._batches, self._count = step, iter(micro_steps), batches, count

    def states_after(self, batch: PackedBatch, layer: int | None) -> torch.Tensor | None:
        """[T, H]: states of `batch` after block `layer` (None: the final states), on the last stage; None on the
        others (collective).

        For inspection only: it runs outside DeepSpeed's schedule, which supports only training steps and evaluations.
        """
        grid, encoder = groups(), self.encoder
        apart = grid.data_size * grid.tensor_size
        metadata, states = encoder.batch_metadata(batch), batch.tokens
        if grid.stage > 0:
            states = torch.empty(
                metadata.positions.numel(),
                encoder.config.hidden,
                dtype=next(encoder.parameters()).dtype,
                device=batch.tokens.device,
            )
            dist.recv(states, dist.get_rank() - apart)
        states = encoder.through_stage(states, metadata, layer)
        if encoder.stage.last:
            return states
        dist.send(states.contiguous(), dist.get_rank() + apart)
        return None

    def forward(self, inputs: StageInputs) -> StageInputs | torch.Tensor:
        """This stage's part of the encoder for the next micro-step; on the last stage its loss.

        The loss is computed here and not in a `loss_fn`: DeepSpeed's bf16 optimiser clears gradients when the backward pass
        reaches what this function returned, and those of a head behind it would be among them.
        """
        states, positions, cu_seqlens, samples = inputs
        micro = next(self._micro_steps)
        outline, objective = PackedBatch.outline(positions, cu_seqlens, samples, micro.window), micro.objective
        metadata = self.encoder.batch_metadata(outline, self._step, objective.name, objective.causal)
        states = self.encoder.through_stage(states, metadata, objective.last_layer)
        return self._loss(states, micro) if self.encoder.stage.last else (states, positions, cu_seqlens, samples)

    def _loss(self, states_TH: torch.Tensor, micro: MicroStep) -> torch.Tensor:
        batch = self._batches.popleft().to(states_TH.device)
        loss = make_parameter_free_loss(micro.objective, self.encoder)
        total, each, languages = loss.losses(self.encoder, states_TH, batch, micro.objective)
        total, each = guard_loss(total, each, self._step)
        assert self._count is not None
        self._count(micro.objective, batch, each, languages)
        return total * (micro.factor * groups().data_size)
