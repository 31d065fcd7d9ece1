"""Every field of a DeepSpeed configuration (0.19.8): decided by the recipe, passed on to DeepSpeed, or refused.

A file of `--deepspeed_config` may hold the fields of `SECTIONS`; tests/deepspeed_adapter/test_config_fields.py compares them
with the fields that the installed DeepSpeed reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["bool", "int", "number", "text", "texts", "dtype", "device", "section", "any"]


@dataclass(frozen=True)
class Field:
    """The rule for one field of a DeepSpeed file."""

    kind: Kind
    use: Literal["recipe", "passed", "refused"]
    recipe: str = ""
    """`recipe`: the recipe field that gets its value; empty if it must be `auto`."""
    changes_results: bool = False
    """`passed`: whether losses may differ by more than the order of sums."""
    reason: str = ""
    """`refused`: reason and remedy."""
    default: object = None
    """`refused`: a value with no effect that is allowed besides false, null and empty."""

    def __post_init__(self) -> None:
        assert bool(self.reason) == (self.use == "refused")


def _decided(kind: Kind, recipe: str = "") -> Field:
    return Field(kind, "recipe", recipe)


def _speed(kind: Kind) -> Field:
    return Field(kind, "passed")


def _result(kind: Kind) -> Field:
    return Field(kind, "passed", changes_results=True)


def _refused(reason: str, default: object = None) -> Field:
    return Field("any", "refused", reason=reason, default=default)


_GONE = "DeepSpeed no longer has it; remove it"
_BATCH = "its steps are counted by the recipe; remove it"
_METRICS = "it would count ranks as samples, and the run folder has metrics.jsonl and TensorBoard files; remove it"
_OWN_FILES = "checkpoints are written by the trainer and not by DeepSpeed; remove it"
_OTHER_WEIGHTS = "the model would compute with other weights than checkpoints hold; remove it"
_CPU_ADAM = "it needs DeepSpeed's own CPU optimiser, and AdamW is torch's; remove it"
_LAYOUT = "parallel.tensor, parallel.pipeline and parallel.sequence of the recipe decide it; remove it"
_HERE = "the model does not use it; remove it"
_OFFLOAD = 'write "offload_optimizer": {"device": "cpu"} in its place'
_MASTERS = "checkpoints hold fp32 weights and moments; remove it"

_TOP = {
    "train_batch_size": _decided("int"),
    "train_micro_batch_size_per_gpu": _decided("int"),
    "gradient_accumulation_steps": _decided("int"),
    "gradient_clipping": _decided("number", "optimizer.clip_norm"),
    "zero_force_ds_cpu_optimizer": _refused(_CPU_ADAM, default=False),
    "zero_allow_untested_optimizer": _speed("bool"),
    "communication_data_type": _result("dtype"),
    "prescale_gradients": _result("bool"),
    "gradient_predivide_factor": _result("number"),
    "steps_per_print": _speed("int"),
    "wall_clock_breakdown": _speed("bool"),
    "memory_breakdown": _speed("bool"),
    "dump_state": _speed("bool"),
    "log_level": _speed("text"),
    "disable_python_gc": _speed("bool"),
    "optimizer": _refused("the recipe's section optimizer decides it; remove it"),
    "scheduler": _refused("the recipe's phases.*.learning_rate decides it; remove it"),
    "managed_gradient_accumulation": _refused("a step's micro-steps are the recipe's; remove it", default=False),
    "gradient_allreduce_op": _refused("losses are shares of one global mean; remove it", default="mean"),
    "seq_parallel_communication_data_type": _refused(_LAYOUT, default="fp32"),
    "tensor_parallel": _refused(_LAYOUT),
    "expert_parallel": _refused(_HERE),
    "use_data_before_expert_parallelism": _refused(_HERE),
    "pipeline": _refused(_LAYOUT),
    "activation_checkpointing": _refused("parallel.recompute of the recipe decides it; remove it"),
    "data_efficiency": _refused("the recipe's phases decide what a step reads; remove it"),
    "dataloader_drop_last": _refused("the recipe's phases decide what a step reads; remove it"),
    "torch_autocast": _refused("training.precision of the recipe decides it; remove it"),
    "bfloat16": _refused('this is an old name; write "bf16" in its place'),
    "compile": _refused("the trainer brings its own kernels (training.kernels); remove it"),
    "hybrid_engine": _refused("it is for generating text; remove it"),
    "weight_quantization": _refused(_OTHER_WEIGHTS),
    "autotuning": _refused("launch/plan.py searches layouts; remove it"),
    "flops_profiler": _refused("launch/benchmark.py measures the parts of a step; remove it"),
    "checkpoint": _refused(_OWN_FILES),
    "datastates_ckpt": _refused(_OWN_FILES),
    "nebula": _refused(_OWN_FILES),
    "aio": _refused("nothing is offloaded to NVMe; remove it"),
    "tensorboard": _refused(_METRICS),
    "csv_monitor": _refused(_METRICS),
    "wandb": _refused(_METRICS),
    "comet": _refused(_METRICS),
    "vocabulary_size": _refused("model.vocab_size of the recipe decides it; remove it"),
    "disable_allgather": _refused("DeepSpeed reads it and does nothing; remove it"),
    "elasticity": _refused(_BATCH),
    **dict.fromkeys(
        (
            "amp",
            "compression_training",
            "curriculum_learning",
            "eigenvalue",
            "graph_harvesting",
            "progressive_layer_drop",
            "quantize_training",
            "sparse_attention",
            "sparse_gradients",
        ),
        _refused(_GONE),
    ),
}
_ZERO = {
    "stage": _decided("int", "parallel.zero_stage"),
    **dict.fromkeys(
        (
            "contiguous_gradients",
            "reduce_scatter",
            "use_multi_rank_bucket_allreduce",
            "allgather_partitions",
            "overlap_comm",
            "parameter_alignment",
            "memory_efficient_linear",
            "override_module_apply",
            "log_trace_cache_warnings",
            "enable_sanity_checks",
            "stage3_gather_16bit_weights_on_model_save",
            "stage3_use_all_reduce_for_fetch_params",
            "stage3_allgather_sequential",
        ),
        _speed("bool"),
    ),
    **dict.fromkeys(
        (
            "reduce_bucket_size",
            "allgather_bucket_size",
            "sub_group_size",
            "stage3_prefetch_bucket_size",
            "stage3_param_persistence_threshold",
            "stage3_model_persistence_threshold",
            "stage3_max_live_parameters",
            "stage3_max_reuse_distance",
            "stage3_module_granularity_threshold",
            "zero_hpz_partition_size",
        ),
        _speed("int"),
    ),
    "compute_grad_norm": _refused("the norm is logged in every step; leave it true or remove it", default=True),
    "ignore_unused_parameters": _refused(
        "the objectives of a step need not reach every parameter; leave it true or remove it", default=True
    ),
    "round_robin_gradients": _refused("DeepSpeed then saves the weights of other parameters; remove it"),
    "zero_quantized_weights": _refused(_OTHER_WEIGHTS),
    "zero_quantized_nontrainable_weights": _refused(_OTHER_WEIGHTS),
    "zero_quantized_gradients": _refused("8-bit gradients are untested; remove it"),
    "load_from_fp32_weights": _refused(_OWN_FILES, default=True),
    "elastic_checkpoint": _refused(_OWN_FILES),
    "pipeline_loading_checkpoint": _refused(_OWN_FILES),
    "stage3_gather_fp16_weights_on_model_save": _refused(_OWN_FILES),
    "legacy_stage1": _refused(_GONE),
    "cpu_offload": _refused(f"this is an old name; {_OFFLOAD}"),
    "cpu_offload_param": _refused('this is an old name; write "offload_param": {"device": "cpu"} in its place'),
    "cpu_offload_use_pin_memory": _refused('this is an old name; write "pin_memory" into the section "offload_optimizer"'),
    "zenflow": _refused(_CPU_ADAM),
    "save_muon_momentum_buffer_in_memory": _refused("the optimiser is AdamW; remove it"),
    "leaf_module": _refused(_HERE),
    **dict.fromkeys(("mics_shard_size", "mics_hierarchical_params_gather", "zeropp_loco_param"), _refused(_GONE)),
}
_NVME = "nothing is offloaded to NVMe; remove it"
_OFFLOAD_PARAM = {
    "device": _speed("device"),
    "pin_memory": _speed("bool"),
    "buffer_count": _speed("int"),
    "buffer_size": _speed("int"),
    "max_in_cpu": _speed("int"),
    "nvme_path": _refused(_NVME),
}
_OFFLOAD_OPTIMIZER = {
    "device": _decided("device", "parallel.offload_optimizer"),
    "pin_memory": _speed("bool"),
    "fast_init": _speed("bool"),
    "buffer_count": _refused(_NVME, default=4),
    "nvme_path": _refused(_NVME),
    "pipeline_read": _refused(_NVME),
    "pipeline_write": _refused(_NVME),
    "ratio": _refused(_CPU_ADAM, default=1.0),
    "super_offload": _refused(_CPU_ADAM),
    "cpuadam_cores_perc": _refused(_CPU_ADAM, default=0.8),
}
_BF16 = {
    "enabled": _decided("bool", "training.precision"),
    "check_grad_overflow": _result("bool"),
    "immediate_grad_update": _refused("pipelines sum the tied gradient from where the default leaves it; remove it"),
    "bf16_master_weights_and_grads": _refused(_MASTERS),
    "bf16_optimizer_states": _refused(_MASTERS),
}
_FP16 = {
    "enabled": _decided("bool", "training.precision"),
    "initial_scale_power": _decided("int", "training.fp16_scale_power"),
    "loss_scale_window": _decided("int", "training.fp16_scale_window"),
    "loss_scale": _result("number"),
    "hysteresis": _result("int"),
    "consecutive_hysteresis": _result("bool"),
    "min_loss_scale": _result("int"),
    "auto_cast": _refused("a batch has no floating numbers; remove it"),
    "fp16_master_weights_and_grads": _refused(_MASTERS),
}
_DATA_TYPES = {
    "grad_accum_dtype": _result("dtype"),
    "param_dtype": _refused("training.precision of the recipe decides it; remove it"),
    "buffer_dtype": _refused("training.precision of the recipe decides it; remove it"),
    "keep_in_fp32_modules": _refused("training.precision of the recipe decides it; remove it", default="auto"),
}
_THROUGHPUT = {"enabled": _speed("bool"), "synchronized": _speed("bool")}
_COMMS_LOGGER = {**dict.fromkeys(("enabled", "prof_all", "verbose", "debug"), _speed("bool")), "prof_ops": _speed("texts")}
SECTIONS: dict[str, dict[str, Field]] = {
    "": _TOP,
    "zero_optimization": _ZERO,
    "zero_optimization.offload_param": _OFFLOAD_PARAM,
    "zero_optimization.offload_optimizer": _OFFLOAD_OPTIMIZER,
    "bf16": _BF16,
    "fp16": _FP16,
    "data_types": _DATA_TYPES,
    "timers": {},
    "timers.throughput": _THROUGHPUT,
    "comms_logger": _COMMS_LOGGER,
}
"""Fields by section; the name of a section is not a field."""


def known_names(section: str) -> list[str]:
    """Valid names in a section: its fields and subsections."""
    prefix = f"{section}." if section else ""
    inner = [name[len(prefix) :] for name in SECTIONS if name.startswith(prefix) and name != section]
    return [*SECTIONS[section], *(name for name in inner if "." not in name)]
