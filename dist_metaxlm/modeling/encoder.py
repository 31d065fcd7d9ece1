"""The encoder: embedding, blocks, head."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.modeling.batch_metadata import BatchMetadata, metadata_of_batch
from dist_metaxlm.modeling.block import Block
from dist_metaxlm.modeling.embedding import Embedding, TokenEmbedding
from dist_metaxlm.modeling.head import Head
from dist_metaxlm.modeling.initialisation import initial_part, materialise
from dist_metaxlm.modeling.layers import residual_norm
from dist_metaxlm.modeling.sharding import WHOLE, TensorShard, mark, own_part
from dist_metaxlm.planning.stages import Stage
from dist_metaxlm.recipe.schema import ModelConfig


class Encoder(nn.Module):
    """A masked language model over packed batches; states are [T, H] from end to end, without padding.

    Runs in the dtype of its parameters; losses are fp32. The token embedding is the head's matrix too.
    """

    embedding: Embedding | TokenEmbedding
    """Complete on the first pipeline stage; on a separate last stage only the copy of the token embedding."""
    head: Head
    """On the last stage."""

    def __init__(
        self,
        config: ModelConfig,
        seed: int = 1,
        shard: TensorShard = WHOLE,
        stage: Stage | None = None,
        deferred: bool = False,
    ) -> None:
        """Build `shard` of `stage` (empty: all) of the model and initialise it from (`seed`, parameter name).

        Under `torch.device("meta")` only the shapes exist, and with `deferred` until `materialise`.
        """
        super().__init__()
        self._loaded: Mapping[str, torch.Tensor] | None = None
        self.config, self.seed, self.shard = config, seed, shard
        self.stage = stage = stage or Stage(range(config.layers))
        home = torch.get_default_device()
        with torch.device("meta"):  # the layers' own initialisation would be discarded
            if stage.first or stage.last:
                self.embedding = Embedding(config, shard) if stage.first else TokenEmbedding(config, shard)
            self.blocks = nn.ModuleList()
            for index in stage.blocks:
                self.blocks.add_module(str(index), Block(config, index, shard))
            self.final_norm: nn.Module = nn.Identity()
            if stage.last:
                if config.norm == "pre":
                    self.final_norm = residual_norm(config, shard)
                self.head = Head(config, shard)
        mark(self, shard)
        if home.type != "meta" and not deferred:
            self.materialise(torch.float32, home)

    def forward(
        self, batch: PackedBatch, last_layer: int | None = None, step: int = 0, objective: str = "", causal: bool = False
    ) -> torch.Tensor:
        """States [T, H] after all blocks and the final norm, or after block `last_layer` (from 1; 0: the embedding).

        With `last_layer` the blocks above are not run and the final norm is not applied: a pre-norm model gives its
        raw residual stream. `step` and `objective` (its name) key the dropout masks. With `causal` a token attends only to
        those up to itself.
        """
        return self.through_stage(batch.tokens, self.batch_metadata(batch, step, objective, causal), last_layer)

    def through_stage(self, states: torch.Tensor, metadata: BatchMetadata, last_layer: int | None = None) -> torch.Tensor:
        """This stage's share of `forward`: token ids [T] (first stage) or states [T, H] to states [T, H].

        States between stages have the blocks' format: with sequence parallelism only this rank's tokens.
        """
        if self.stage.first:
            states = self.embedding(states, metadata)
        for index, block in zip(self.stage.blocks, self.blocks, strict=True):
            if last_layer is None or index < last_layer:
                states = block(states, metadata)
        if not self.stage.last:
            return states
        return self._all_tokens(self.final_norm(states) if last_layer is None else states)

    def hidden_states(self, batch: PackedBatch) -> list[torch.Tensor]:
        """layers + 1 tensors [T, H]; entry k equals `forward(batch, last_layer=k)`, the embedding is entry 0."""
        metadata = self.batch_metadata(batch)
        states = [self.embedding(batch.tokens, metadata)]
        for block in self.blocks:
            states.append(block(states[-1], metadata))
        return [self._all_tokens(state) for state in states]

    def _all_tokens(self, states: torch.Tensor) -> torch.Tensor:
        if not self.shard.sequence:
            return states
        from dist_metaxlm.modeling.tensor_layers import all_tokens

        return all_tokens(states, self.shard)

    @torch.no_grad()
    def load_logical(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Load this rank's part of every parameter from whole tensors by logical name, as in a checkpoint.

        A deferred encoder reads them in `materialise`.
        """
        if any(parameter.is_meta for parameter in self.parameters()):
            absent = [name for name, _ in self.named_parameters() if name not in weights]
            if absent:
                raise KeyError(absent[0])
            self._loaded = weights
            return
        for name, parameter in self.named_parameters():
            parameter.copy_(own_part(name, weights[name], self.shard))

    @torch.no_grad()
    def materialise(
        self, dtype: torch.dtype, device: torch.device, finish: Callable[[nn.Parameter], None] = lambda parameter: None
    ) -> None:
        """Give the parameters of a deferred encoder their initial or loaded values; see `initialisation.materialise`."""
        materialise(self, self._value, dtype, device, finish)
        self._loaded = None
        mark(self, self.shard)

    def _value(self, name: str, part: torch.Size) -> torch.Tensor:
        if self._loaded is None:
            return initial_part(name, part, self.seed, self.config.std_of(name), self.shard, self.config.vocab_size)
        return torch.empty(part).copy_(own_part(name, self._loaded[name], self.shard))

    def masked_lm_loss(self, states: torch.Tensor, targets: torch.Tensor, target_tokens: torch.Tensor) -> torch.Tensor:
        """Negative log likelihoods [M] fp32 of `target_tokens` [M] at the rows `targets` [M] of `states` [T, H]."""
        losses: torch.Tensor = self.head(states.index_select(0, targets), self.embedding.tokens.weight, target_tokens)
        return losses

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """[N, H] -> [N, V]."""
        logits: torch.Tensor = self.head(states, self.embedding.tokens.weight)
        return logits

    def batch_metadata(self, batch: PackedBatch, step: int = 0, objective: str = "", causal: bool = False) -> BatchMetadata:
        """Metadata of `batch` for the blocks; without dropout in evaluation mode."""
        dtype = next(self.parameters()).dtype
        return metadata_of_batch(batch, self.config, dtype, self.training, self.seed, step, self.shard, objective, causal)
