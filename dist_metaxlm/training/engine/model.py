"""From a recipe to the module that an engine trains on this rank: the whole model, or one stage of a pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.modeling.sharding import tensor_shard
from dist_metaxlm.objectives.model import PretrainingModel
from dist_metaxlm.planning.stages import model_stages, needs_blocks
from dist_metaxlm.recipe.schema import PhaseConfig, Recipe

if TYPE_CHECKING:  # it imports DeepSpeed
    from dist_metaxlm.training.engine.pipeline import PipelinedModel

TrainedModel: TypeAlias = "PretrainingModel | PipelinedModel"
"""What an engine trains: both have this rank's part of the model in `encoder`."""


def build_model(recipe: Recipe, phase: PhaseConfig) -> TrainedModel:
    """The module with this rank's part of the model in `encoder`: the whole or a pipeline stage.

    Without a pipeline the encoder is deferred where no objective needs more than its shapes: `build_engine` gives it its
    initial values, or those of `load_logical`, and no rank holds all of them in fp32.
    """
    shard, layout, config = tensor_shard(recipe.parallel.sequence), recipe.parallel, phase.model(recipe.model)
    if layout.pipeline == 1:
        deferred = not any(objective.needs_whole_model for objective in phase.objectives)
        return PretrainingModel(Encoder(config, recipe.seed, shard, deferred=deferred), phase.objectives)
    from dist_metaxlm.training.engine.pipeline import PipelinedModel

    stages = model_stages(
        recipe.model, phase.sequence_length, phase.targets_per_token, layout.pipeline, needs_blocks(recipe)
    )
    return PipelinedModel(config, recipe.seed, shard, stages)
