"""The typed recipe: every setting of a run, with its unit and its validation.

A recipe is one YAML file. `phases` holds the training phases; a phase may set only the fields of `PhaseConfig`,
everything else (model, tokenizer, optimiser, layout) is shared by all phases of a run.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Literal

from pydantic import Field, JsonValue, ValidationInfo, model_validator

from dist_metaxlm.errors import UserError
from dist_metaxlm.recipe.data import (
    BitextSource,
    CleaningConfig,
    DataConfig,
    EvaluationFiles,
    MosesPair,
    NearDuplicates,
    ReadingConfig,
    TextSource,
    TokenizerConfig,
)
from dist_metaxlm.recipe.guards import GuardConfig
from dist_metaxlm.recipe.layout import Layout, contradictions
from dist_metaxlm.recipe.objectives.base import Objective
from dist_metaxlm.recipe.objectives.causal_lm import CausalLM
from dist_metaxlm.recipe.objectives.contrast import Contrast
from dist_metaxlm.recipe.objectives.denoising_alignment import DenoisingAlignment
from dist_metaxlm.recipe.objectives.masked_lm import MaskedLM
from dist_metaxlm.recipe.objectives.pairs import PairObjective
from dist_metaxlm.recipe.objectives.translation_lm import TranslationLM
from dist_metaxlm.recipe.objectives.windows import WindowObjective
from dist_metaxlm.recipe.objectives.xlco import CrossLingualContrast
from dist_metaxlm.recipe.origins import PHASE_PATTERN, name_problems, source_problems
from dist_metaxlm.recipe.phase import AlphaPoint, CarryOver, LearningRate, PhaseConfig
from dist_metaxlm.recipe.phase_checks import phase_problems
from dist_metaxlm.recipe.section import Section
from dist_metaxlm.recipe.watchdog import WatchdogConfig
from dist_metaxlm.text import did_you_mean

__all__ = [
    "AlphaPoint",
    "BitextSource",
    "CarryOver",
    "CausalLM",
    "CleaningConfig",
    "Contrast",
    "CrossLingualContrast",
    "DataConfig",
    "DenoisingAlignment",
    "EvaluationFiles",
    "LearningRate",
    "MaskedLM",
    "ModelConfig",
    "MosesPair",
    "NearDuplicates",
    "Objective",
    "OptimizerConfig",
    "PairObjective",
    "ParallelConfig",
    "PhaseConfig",
    "ReadingConfig",
    "Recipe",
    "TextSource",
    "TokenizerConfig",
    "TrainingConfig",
    "TranslationLM",
    "WindowObjective",
]

LEAST_VOCAB = 301
"""Special tokens and the pieces of single bytes need more than 260 ids."""
LAYOUT_LATER = "layout later"
"""Key of pydantic's validation context: true if the caller checks the layout itself for the given ranks."""


class ModelConfig(Section):
    """Shape of the encoder."""

    family: Literal["xlmr", "modern"] = "xlmr"
    """`xlmr`: learned positions, GELU, biases. `modern`: RoPE, GeGLU, no biases, alternating local attention."""
    norm: Literal["post", "pre"] = "post"
    """Position of the norm: `post` is XLM-R, `pre` is XLM-R XL/XXL and the modern family."""
    norm_type: Literal["layer", "rms"] = "layer"
    """`layer`: LayerNorm. `rms`: RMSNorm (arXiv 1910.07467), `modern` only; Hugging Face has no class for such a model."""
    layers: int = Field(gt=0)
    """Number of transformer blocks."""
    hidden: int = Field(gt=0)
    """Width of the residual stream."""
    heads: int = Field(gt=0)
    """Number of attention heads; `hidden` must be a multiple of it."""
    ffn: int = Field(gt=0)
    """Width inside the feed-forward layer (for GeGLU: after the gate)."""
    vocab_size: int = Field(ge=LEAST_VOCAB)
    """Number of token ids, special tokens and `<mask>` included."""
    max_positions: int = Field(512, gt=0)
    """Longest document or window in tokens (XLM-R's table has two rows more, for its offset)."""
    norm_eps: float = Field(1e-5, gt=0)
    """Epsilon of every norm."""
    init_std: float = Field(0.02, gt=0)
    """Standard deviation of the normal initialisation of matrices and embeddings."""
    embedding_std: float | None = Field(None, gt=0)
    """That of the token and position embeddings; empty: `init_std`. The token embeddings are the output matrix too, so with
    a larger value small models learn more than word frequencies earlier (docs/results/)."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Probability with which an element of a residual branch and of the embedding is dropped."""
    attention_dropout: float = Field(0.0, ge=0, lt=1)
    """Probability with which an attention weight is dropped after the softmax."""
    local_window: int = Field(128, gt=0)
    """`modern` only: tokens a local layer attends over (half on each side)."""
    global_every: int = Field(3, gt=0)
    """`modern` only: layers 0, k, 2k, ... attend over the whole document, the others over `local_window`."""
    rope_theta: float = Field(160000.0, gt=0)
    """`modern` only: rotary base of the global layers."""
    rope_theta_local: float = Field(10000.0, gt=0)
    """`modern` only: rotary base of the local layers."""

    def std_of(self, name: str) -> float:
        """Standard deviation of the initial values of the parameter with this logical name."""
        is_embedding = name.startswith("embedding.") and self.embedding_std is not None
        return self.embedding_std if is_embedding and self.embedding_std is not None else self.init_std

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        if self.hidden % self.heads:
            raise ValueError(
                f"hidden {self.hidden} is not a multiple of heads {self.heads}; "
                f"nearest: hidden {self.heads * max(1, round(self.hidden / self.heads))}"
            )
        if self.family == "modern" and self.norm != "pre":
            raise ValueError("family modern has its norms before the branches; set norm: pre")
        if self.norm_type == "rms" and self.family != "modern":
            raise ValueError(
                f"norm_type rms is for family modern, whose norms have no bias, not for {self.family}; set "
                "norm_type: layer, or family: modern and norm: pre"
            )
        return self


class OptimizerConfig(Section):
    """AdamW, StableAdamW, or Muon with AdamW; decay only on matrices (embeddings included), never on norms and biases."""

    name: Literal["adamw", "muon", "stable_adamw"] = "adamw"
    """`adamw` for all parameters, `stable_adamw`: the same with smaller steps for tensors whose update would be too large
    (arXiv 2304.13013), or `muon` for the matrices of the blocks (arXiv 2502.16982) and AdamW for the rest."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of the first moment."""
    beta2: float = Field(0.98, ge=0, lt=1)
    """Decay of the second moment."""
    eps: float = Field(1e-6, gt=0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay of matrices."""
    clip_norm: float = Field(1.0, ge=0)
    """Largest global gradient norm; 0: no clipping."""
    update_clip: float = Field(1.0, gt=0)
    """`stable_adamw` only: root mean square of gradient over second moment above which a tensor's rate is divided."""
    matrix_rate: float = Field(1.0, gt=0)
    """`muon` only: learning rate of the matrices as a multiple of the phase's; updates have the size of AdamW's."""
    momentum: float = Field(0.95, ge=0, lt=1)
    """`muon` only: share of the momentum that an update keeps."""
    nesterov: bool = True
    """`muon` only: whether the gradient is added to the momentum once more before the matrix is orthogonalised."""
    newton_schulz_steps: int = Field(5, gt=0, le=20)
    """`muon` only: iterations that orthogonalise a matrix."""
    heads: Literal["together", "each"] = "together"
    """`muon` only: queries, keys and values are orthogonalised with all heads `together`, or the matrix of `each` head."""


class ParallelConfig(Section):
    """Distribution of the model and its training over ranks."""

    tensor: int = Field(1, gt=0)
    """Tensor-parallel ranks."""
    pipeline: int = Field(1, gt=0)
    """Pipeline stages."""
    sequence: bool = False
    """Sequence parallelism over the tensor-parallel ranks."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO stage over the data-parallel ranks."""
    micro_batch_tokens: int | None = Field(None, gt=0)
    """Tokens of a rank's micro-batch; empty: its whole share of a step."""
    recompute: Literal["none", "selective", "blocks"] = "none"
    """Activations computed again in the backward pass: `selective` the inside of feed-forward layers, `blocks` all."""
    recompute_every: int = Field(1, gt=0)
    """With `recompute: blocks`: only blocks 0, k, 2k, ..."""
    offload_optimizer: bool = False
    """Whether fp32 weights, Adam's moments and its update are on the CPU (ZeRO-Offload)."""
    tensor_across_nodes: bool = False
    """Allow a tensor group on more than one node; its ranks then communicate over the network in every block."""
    join_seconds: float = Field(300.0, gt=0)
    """Seconds that the ranks wait for one another at the start; then an error names the missing hosts."""

    def layout(self, ranks: int = 1) -> Layout:
        """These settings as a layout of `ranks` ranks. Whether it is legal: planning/legality.py."""
        values = {item.name: getattr(self, item.name) for item in fields(Layout) if item.name != "data"}
        return Layout(**values).on(ranks)


class TrainingConfig(Section):
    """Precision, kernels, logging, checkpoints and probes of a run."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """`auto`: bf16 on CUDA devices that have it, else fp32. `fp16` has loss scaling; for devices without bf16."""
    fp16_scale_power: int = Field(16, ge=0, le=32)
    """`fp16` only: the first loss scale is 2 to this power; overflows adjust it from there."""
    fp16_scale_window: int = Field(1000, gt=0)
    """`fp16` only: good steps after which the loss scale is doubled."""
    kernels: Literal["auto", "reference", "triton", "cuda"] = "auto"
    """Which implementation of the operators to force; `auto`: the fastest that device, dtype and shape allow."""
    attention_backward: Literal["two_pass", "atomic"] = "two_pass"
    """Backward of attention on a GPU: `two_pass` is bitwise reproducible, `atomic` needs five products instead of seven."""
    log_interval: int = Field(10, gt=0)
    """Steps between two lines of metrics; the only device-to-host copies of the loop happen here."""
    trackers: list[str] = ["tensorboard"]
    """What gets the metrics besides metrics.jsonl: `tensorboard`, `wandb`, `mlflow`, or a name that an installed package
    offers (docs/trackers.md)."""
    checkpoint_interval: int = Field(500, gt=0)
    """Steps between two checkpoints."""
    probe_interval: int = Field(0, ge=0)
    """Steps between two probes, a multiple of `log_interval`: retrieval of held-out strings, logged with the losses. The
    last step of a phase is probed as well. 0: none."""
    probe_strings: int = Field(64, ge=10)
    """Held-out source strings that a probe reads, each with its translations."""
    heldout_interval: int = Field(0, ge=0)
    """Steps between two measurements of the held-out loss, a multiple of `log_interval`: bits per byte by language on text
    that no phase trains on. The last step of a phase is measured as well. 0: none."""
    heldout_tokens: int = Field(16384, ge=256)
    """Held-out tokens that such a measurement reads: half of them English, the other languages share the rest."""
    keep_checkpoints: int = Field(2, gt=0)
    """Newest checkpoints of a phase that are kept."""
    keep_best: bool = False
    """Whether the checkpoint with the best held-out loss is kept besides the newest ones (`--phase NAME@best`); needs a
    `checkpoint_interval` that is a multiple of `heldout_interval`."""
    save_in_background: bool = True
    """Write checkpoints while training continues, from a copy of weights and moments in host memory: 12 bytes a parameter
    (page-locked on CUDA), shared by the ranks that hold them. false: no copy, and training waits for the disk."""
    guards: GuardConfig = GuardConfig()
    """Bad steps."""
    watchdog: WatchdogConfig = WatchdogConfig()
    """Hangs."""

    @model_validator(mode="after")
    def _consistent(self) -> TrainingConfig:
        # A checkpoint in the middle of a log interval would lose the losses summed so far: the resumed curve would differ.
        # A probe is part of a logged line.
        wrong = []
        for name in ("checkpoint_interval", "probe_interval", "heldout_interval"):
            interval = getattr(self, name)
            if interval % self.log_interval:
                nearest = max(1, round(interval / self.log_interval)) * self.log_interval
                wrong.append(f"{name} {interval} is not a multiple of log_interval {self.log_interval}; nearest: {nearest}")
        if self.keep_best and not self.heldout_interval:
            wrong.append(
                "keep_best needs a held-out loss, and heldout_interval is 0; set heldout_interval, or keep_best: false"
            )
        elif self.keep_best and self.checkpoint_interval % self.heldout_interval:
            wrong.append(
                f"keep_best compares checkpoints, and checkpoint_interval {self.checkpoint_interval} is not a multiple of "
                f"heldout_interval {self.heldout_interval}; change one of them"
            )
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


class Recipe(Section):
    """One run: a model, its data and its phases."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run; its folder is runs/NAME unless --run_dir says otherwise."""
    seed: int = Field(1, ge=0)
    """Seed of initialisation, data order and masks."""
    model: ModelConfig
    """Shape of the encoder."""
    data: DataConfig
    """Text and tokens."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW."""
    parallel: ParallelConfig = ParallelConfig()
    """Layout."""
    training: TrainingConfig = TrainingConfig()
    """Driving and watching."""
    deepspeed: dict[str, JsonValue] | None = None
    """Settings that only DeepSpeed reads, as in a file of --deepspeed_config; empty: those of ds_configs/."""
    carry_over: CarryOver = CarryOver()
    """What a phase that continues from another inherits besides the weights, unless it has its own `carry_over`."""
    phases: dict[Annotated[str, Field(pattern=PHASE_PATTERN)], PhaseConfig]
    """The training phases in their order, by name: letters, digits, `_` and `-`. Recipes of two-phase training call them
    meta, cross and joint."""

    @model_validator(mode="after")
    def _consistent(self, info: ValidationInfo) -> Recipe:
        problems = [] if self.phases else ["phases is empty; give at least one, such as meta, cross or joint"]
        problems += name_problems(self.phases) + source_problems(self.phases, self.training.log_interval)
        if self.training.probe_interval and not self.data.heldout_strings:
            problems.append(
                f"training.probe_interval {self.training.probe_interval} probes on held-out strings and "
                "data.heldout_strings is 0; hold some out, or set training.probe_interval: 0"
            )
        for name, phase in self.phases.items():
            problems += phase_problems(f"phases.{name}", phase, self.model, self.data.max_pair_tokens)
        if not (info.context or {}).get(LAYOUT_LATER):
            problems += [problem.message for problem in contradictions(self, self.parallel.layout())]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def phase(self, name: str) -> PhaseConfig:
        """The phase called `name`.

        Raises:
            UserError: when the recipe has no such phase; the message lists its phases.
        """
        for key, phase in self.phases.items():
            if key == name:
                return phase
        hint = did_you_mean(name, self.phases)
        raise UserError(f"recipe {self.name} has no phase {name!r}{hint} it has {', '.join(self.phases)}")

    def as_trained(self, name: str) -> Recipe:
        """The recipe with the model as the phase called `name` trains it. Errors: as `phase`."""
        model = self.phase(name).model(self.model)
        return self if model is self.model else self.model_copy(update={"model": model})

    def carry_over_of(self, name: str) -> CarryOver:
        """What the phase called `name` inherits from the one before. Errors: as `phase`."""
        return self.phase(name).carry_over or self.carry_over

    @property
    def whole_model(self) -> bool:
        """Whether an objective needs the model's weights whole on every rank: data parallelism with ZeRO-0 or 1 only."""
        return any(objective.needs_whole_model for phase in self.phases.values() for objective in phase.objectives)
