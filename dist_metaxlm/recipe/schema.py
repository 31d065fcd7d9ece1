"""The typed recipe: every setting of a run, with its unit, checked where it is declared.

A recipe is one YAML file. `phases` holds the training phases; a phase may set only the fields of `PhaseConfig`,
everything else (model, tokenizer, optimiser, layout) is shared by all phases of a run.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

PHASE_NAMES = ("meta", "cross", "joint")


class Section(BaseModel):
    """Base of all recipe sections: unknown keys are errors, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ModelConfig(Section):
    """Shape of the encoder."""

    family: Literal["xlmr", "modern"] = "xlmr"
    """`xlmr`: learned positions, GELU, biases. `modern`: RoPE, GeGLU, no biases, alternating local attention."""
    norm: Literal["post", "pre"] = "post"
    """Place of the LayerNorm: `post` is XLM-R, `pre` is XLM-R XL/XXL and the modern family."""
    layers: int = Field(gt=0)
    """Number of transformer blocks."""
    hidden: int = Field(gt=0)
    """Width of the residual stream."""
    heads: int = Field(gt=0)
    """Number of attention heads; `hidden` must be a multiple of it."""
    ffn: int = Field(gt=0)
    """Width inside the feed-forward layer (for GeGLU: after the gate)."""
    vocab_size: int = Field(gt=300)
    """Number of token ids, special tokens and `<mask>` included."""
    max_positions: int = Field(512, gt=0)
    """Longest document or window in tokens (XLM-R's table has two rows more, for its offset)."""
    norm_eps: float = Field(1e-5, gt=0)
    """Epsilon of every LayerNorm."""
    init_std: float = Field(0.02, gt=0)
    """Standard deviation of the normal initialisation of matrices and embeddings."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Probability with which an element of a residual branch and of the embedding is dropped."""
    local_window: int = Field(128, gt=0)
    """`modern` only: tokens a local layer attends over (half on each side)."""
    global_every: int = Field(3, gt=0)
    """`modern` only: layers 0, k, 2k, ... attend over the whole document, the others over `local_window`."""
    rope_theta: float = Field(160000.0, gt=0)
    """`modern` only: rotary base of the global layers."""
    rope_theta_local: float = Field(10000.0, gt=0)
    """`modern` only: rotary base of the local layers."""

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        if self.hidden % self.heads:
            raise ValueError(f"hidden {self.hidden} is not a multiple of heads {self.heads}; "
                             f"nearest: hidden {self.heads * max(1, round(self.hidden / self.heads))}")
        if self.family == "modern" and self.norm != "pre":
            raise ValueError("family modern has its norms before the branches; set norm: pre")
        return self


class TokenizerConfig(Section):
    """How the SentencePiece unigram model is trained, or which one is taken."""

    path: str | None = None
    """An existing SentencePiece model to use; empty: train one from the corpus."""
    alpha: float = Field(0.3, ge=0, le=1)
    """Exponent of the language sample (p ~ bytes^alpha) that the tokenizer is trained on."""
    sample_bytes: int = Field(20_000_000, gt=0)
    """Bytes of text drawn for training, over all languages."""
    character_coverage: float = Field(0.9995, gt=0.9, le=1)
    """Share of all characters that get a piece of their own; the rest falls back to bytes."""
    byte_fallback: bool = True
    """Spell unknown characters as bytes instead of `<unk>`."""


class DataConfig(Section):
    """Where text comes from and where the prepared tokens lie."""

    directory: str
    """Folder of the prepared data: tokenizer, token store, held-out strings; relative to the working directory."""
    corpus: Literal["quickstart", "files"] = "files"
    """`quickstart`: translation catalogues and documentation prose from PyPI wheels; `files`: the fields below."""
    text: dict[str, list[str]] = {}
    """Language code -> files or globs of UTF-8 text, one paragraph a line, a blank line between documents."""
    bitext: dict[str, list[str]] = {}
    """Language pair such as `en-fr` -> files or globs of UTF-8 TSV lines: sentence, tab, its translation."""
    heldout_strings: int = Field(500, ge=0)
    """Source strings kept out of training with all their translations, for evaluation."""
    max_pair_tokens: int = Field(128, ge=8)
    """Longest translation pair in tokens, both sides and special tokens together; longer ones are left out."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    """Tokenizer training."""

    @model_validator(mode="after")
    def _consistent(self) -> DataConfig:
        if self.corpus == "quickstart" and (self.text or self.bitext):
            raise ValueError("corpus quickstart brings its own text; remove text and bitext, or set corpus: files")
        for pair in self.bitext:
            if len(pair.split("-")) != 2:
                raise ValueError(f"bitext key {pair!r} is not a pair of language codes such as 'en-fr'")
        return self


class AlphaPoint(Section):
    """One point of an alpha schedule."""

    tokens: int = Field(ge=0)
    """Training tokens of this phase after which `alpha` holds."""
    alpha: float = Field(ge=0, le=1)
    """Exponent of the language mix from here on."""


class MaskedLM(Section):
    """Masked language modelling on packed monolingual windows (over several languages: MMLM)."""

    name: Literal["mlm"] = "mlm"
    """Objective."""
    weight: float = Field(1.0, gt=0)
    """Factor of this objective's mean loss in the step's loss."""
    batch_tokens: int = Field(gt=0)
    """Tokens a step, over all ranks; a multiple of `sequence_length`."""


class TranslationLM(Section):
    """Masked language modelling on translation pairs packed into windows (TLM, arXiv 1901.07291)."""

    name: Literal["tlm"] = "tlm"
    """Objective."""
    weight: float = Field(1.0, gt=0)
    """Factor of this objective's mean loss in the step's loss."""
    batch_tokens: int = Field(gt=0)
    """Tokens a step, over all ranks; a multiple of `sequence_length`."""


class Contrast(Section):
    """InfoNCE between the mean-pooled states of a sentence and its translation, both directions."""

    name: Literal["contrast"] = "contrast"
    """Objective."""
    weight: float = Field(1.0, gt=0)
    """Factor of this objective's mean loss in the step's loss."""
    pairs: int = Field(gt=1)
    """Translation pairs a step, over all ranks; a multiple of `group`."""
    group: int = Field(gt=1)
    """Pairs that serve each other as negatives; fixed here, so the loss does not depend on the layout."""
    layer: int = Field(gt=0)
    """Block whose output is pooled, counted from 1; the blocks above are not run for this objective."""
    temperature: float = Field(0.05, gt=0)
    """Divisor of the cosine similarities."""
    max_tokens: int = Field(64, ge=4)
    """Tokens of a sentence, special tokens included; longer ones are cut."""

    @model_validator(mode="after")
    def _consistent(self) -> Contrast:
        if self.pairs % self.group:
            raise ValueError(f"pairs {self.pairs} is not a multiple of group {self.group}; "
                             f"nearest: {max(1, round(self.pairs / self.group)) * self.group}")
        return self


Objective = Annotated[MaskedLM | TranslationLM | Contrast, Field(discriminator="name")]


class LearningRate(Section):
    """Learning rate over the steps of a phase."""

    peak: float = Field(gt=0)
    """Learning rate after warm-up."""
    schedule: Literal["linear", "cosine", "wsd"] = "linear"
    """Shape after warm-up: to the floor linearly, by a cosine, or constant with a 1-sqrt decay at the end (wsd)."""
    warmup_steps: int = Field(0, ge=0)
    """Optimiser steps of linear warm-up from zero."""
    decay_steps: int = Field(0, ge=0)
    """`wsd` only: optimiser steps of the final decay."""
    floor: float = Field(0.0, ge=0, lt=1)
    """Last learning rate as a share of `peak`."""


class PhaseConfig(Section):
    """What a phase may set of its own."""

    steps: int | None = Field(None, gt=0)
    """Optimiser steps; give this or `tokens`."""
    tokens: int | None = Field(None, gt=0)
    """Tokens of the masked-LM objectives to train on; give this or `steps`."""
    languages: list[str] | Literal["all"] = "all"
    """Languages of the text, or all that the store holds."""
    alpha: float | list[AlphaPoint] = 0.3
    """Exponent of the language mix p ~ tokens^alpha, or its schedule over tokens."""
    pair_alpha: float = Field(0.3, ge=0, le=1)
    """Exponent of the mix of language pairs p ~ pairs^alpha, for tlm and contrast."""
    sequence_length: int = Field(gt=7)
    """Tokens of a window."""
    mask_rate: float = Field(0.15, gt=0, lt=1)
    """Share of a window's tokens that are targets; the count is exact."""
    whole_words: bool = False
    """Mask all pieces of a word together."""
    objectives: list[Objective] = Field(min_length=1)
    """What is learnt, each with its batch and weight."""
    mixing: Literal["sum", "draw"] = "sum"
    """`sum`: each step takes all objectives; `draw`: each step takes one, drawn by weight, the same on all ranks."""
    learning_rate: LearningRate
    """Learning rate schedule."""

    @model_validator(mode="after")
    def _consistent(self) -> PhaseConfig:
        problems = []
        if (self.steps is None) == (self.tokens is None):
            problems.append(f"give either steps or tokens, not {'both' if self.steps else 'neither'}")
        names = [objective.name for objective in self.objectives]
        problems += [f"objective {name} is given twice" for name in sorted({n for n in names if names.count(n) > 1})]
        length = self.sequence_length
        for objective in self.objectives:
            batch = getattr(objective, "batch_tokens", length)
            if batch % length:
                problems.append(f"{objective.name} batch_tokens {batch} is not a multiple of sequence_length {length}; "
                                f"nearest: {max(1, round(batch / length)) * length}")
        if self.tokens is not None and not any(hasattr(o, "batch_tokens") for o in self.objectives):
            problems.append("tokens counts masked-LM tokens and no objective has any; give steps")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def tokens_per_step(self) -> int:
        """Tokens that the masked-LM objectives take in one step with `mixing: sum`."""
        return sum(getattr(objective, "batch_tokens", 0) for objective in self.objectives)

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the phase."""
        if self.steps is not None:
            return self.steps
        assert self.tokens is not None
        return max(1, -(-self.tokens // self.tokens_per_step))


class CarryOver(Section):
    """What `cross` takes from the `meta` phase besides the weights (always) and the tokenizer (must be the same)."""

    optimizer: Literal["reset", "carry"] = "reset"
    """Adam's moments and step count: start anew or go on."""
    schedule: Literal["restart", "continue"] = "restart"
    """Learning rate: the phase's schedule from its start, or from the step that meta reached."""
    unseen_embeddings: Literal["keep", "reinitialise"] = "keep"
    """Embeddings of tokens that the meta phase never saw as input or target: keep, or draw them anew."""


class OptimizerConfig(Section):
    """AdamW; decay only on matrices (embeddings included), never on norms and biases."""

    beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of the first moment."""
    beta2: float = Field(0.98, ge=0, lt=1)
    """Decay of the second moment."""
    eps: float = Field(1e-6, gt=0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay of matrices."""
    clip_norm: float = Field(1.0, ge=0)
    """Largest global gradient norm; 0 does not clip."""


class ParallelConfig(Section):
    """How the model and its training are spread over ranks."""

    tensor: int = Field(1, gt=0)
    """Tensor-parallel ranks."""
    pipeline: int = Field(1, gt=0)
    """Pipeline stages."""
    sequence: bool = False
    """Sequence parallelism over the tensor-parallel ranks."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO stage over the data-parallel ranks."""
    micro_batch_tokens: int | None = Field(None, gt=0)
    """Tokens a rank takes through the model at once; empty: all of its share of a step."""

    @model_validator(mode="after")
    def _consistent(self) -> ParallelConfig:
        if self.pipeline > 1 and self.zero_stage > 1:
            raise ValueError(f"pipeline {self.pipeline} works with zero_stage 0 or 1, not {self.zero_stage}; "
                             "set zero_stage: 1")
        if self.sequence and self.tensor == 1:
            raise ValueError("sequence parallelism needs tensor > 1; set sequence: false or tensor: 2")
        return self


class TrainingConfig(Section):
    """How the run is driven and watched."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto`: bf16 on CUDA devices, fp32 on CPU."""
    log_interval: int = Field(10, gt=0)
    """Steps between two lines of metrics; the only device-to-host copies of the loop happen here."""
    checkpoint_interval: int = Field(500, gt=0)
    """Steps between two checkpoints."""
    keep_checkpoints: int = Field(2, gt=0)
    """Newest checkpoints of a phase that are kept; the last of a finished phase always is."""


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
    carry_over: CarryOver = CarryOver()
    """From meta to cross."""
    phases: dict[Literal["meta", "cross", "joint"], PhaseConfig]
    """The training phases."""

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        problems = []
        for name, phase in self.phases.items():
            if phase.sequence_length > self.model.max_positions:
                problems.append(f"phases.{name}.sequence_length {phase.sequence_length} is more than "
                                f"model.max_positions {self.model.max_positions}")
            for objective in phase.objectives:
                if isinstance(objective, Contrast) and objective.layer > self.model.layers:
                    problems.append(f"phases.{name} contrast.layer {objective.layer} is more than "
                                    f"model.layers {self.model.layers}")
                if isinstance(objective, Contrast) and objective.max_tokens > phase.sequence_length:
                    problems.append(f"phases.{name} contrast.max_tokens {objective.max_tokens} is more than "
                                    f"sequence_length {phase.sequence_length}")
        if self.model.heads % self.parallel.tensor:
            problems.append(f"model.heads {self.model.heads} is not a multiple of parallel.tensor {self.parallel.tensor}")
        if problems:
            raise ValueError("; ".join(problems))
        return self
