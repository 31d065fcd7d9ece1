"""The configuration of a training objective: its interface to the rest of the trainer.

An objective is a configuration (a class here), a data source (data/objectives/) and a loss (objectives/), registered
together under one name (registry.py). The configuration defines batch, denominator, division of the
batch over ranks, work, parameters and the supported layouts. No other code checks the type or the name of an objective.

Samples are the units of the data source: windows of `sequence_length` tokens, or translation pairs.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from dist_metaxlm.recipe.section import Section

if TYPE_CHECKING:
    from dist_metaxlm.recipe.schema import ModelConfig


@dataclass(frozen=True)
class Share:
    """The part of a step's batch to process."""

    rank: int
    """Data-parallel rank."""
    ranks: int
    """Data-parallel ranks."""
    sequence_length: int
    """Tokens of a window."""
    micro_batch_tokens: int
    """Tokens of a micro-batch."""


@dataclass(frozen=True)
class EncoderPass:
    """Packed documents that go through the encoder in one step, over all ranks."""

    tokens: int
    """Tokens, at most."""
    document: int
    """Tokens of a document, at most."""
    targets: int = 0
    """Positions whose states reach the vocabulary."""
    layers: int | None = None
    """Number of blocks to run; None: all."""
    backward: bool = True
    """Whether a backward pass follows."""
    causal: bool = False
    """Whether a token attends to its document up to itself only: about half of the products of attention."""


class Objective(Section):
    """A training objective. A subclass gives `name` a default, which is the name in recipes, metrics and checkpoints."""

    name: str
    """Objective."""
    weight: float = Field(1.0, gt=0)
    """Factor of this objective's mean loss in the step's loss."""

    reads: ClassVar[Literal["text", "pairs"]]
    """Input of the data source: the text of the phase's languages, or translation pairs between them."""
    batch_field: ClassVar[str]
    """Name of the field that sets how many samples a step takes; a multiple of its value is a larger batch."""
    trains_alignment: ClassVar[bool] = False
    """Whether it trains cross-lingual alignment directly; studies of alignment must exclude such objectives."""
    needs_whole_model: ClassVar[bool] = False
    """Whether every rank needs the whole weights: data parallelism with ZeRO-0 or 1 only. An objective with parameters or
    a memory of its own does."""
    causal: ClassVar[bool] = False
    """Whether a token attends only to its own document up to itself, instead of to all of it."""
    keeps_memory: ClassVar[bool] = False
    """Whether its loss has a memory that follows the weights and is saved with them; at most one objective of a phase."""

    # the batch of a step

    @property
    @abstractmethod
    def tokens_per_step(self) -> int:
        """Training tokens of a step, over all ranks; 0 if its samples have no fixed number of tokens."""

    @abstractmethod
    def samples_per_step(self, sequence_length: int) -> int:
        """Samples of a step, over all ranks."""

    @abstractmethod
    def denominator(self, sequence_length: int, mask_rate: float) -> int:
        """Divisor of the sum of a step's losses over all ranks. It depends on the recipe alone."""

    @abstractmethod
    def cut(self, turn: int, share: Share) -> list[range]:
        """Samples of each micro-step of one rank, in order. `turn`: number of earlier steps with the objective.

        All ranks have the same number of micro-steps. Called only if `undivided` reports nothing.
        """

    @abstractmethod
    def undivided(self, sequence_length: int, ranks: int) -> str | None:
        """Problems with dividing the batch evenly over `ranks` data-parallel ranks, with the nearest possible value."""

    @property
    def changes(self) -> list[int]:
        """Training tokens of the phase after which its batch changes."""
        return []

    def after(self, tokens: int) -> Objective:
        """The objective with the batch that holds after `tokens` training tokens of the phase."""
        return self

    # validation

    @property
    def masks_by_rate(self) -> bool:
        """Whether the phase's `mask_rate` decides how many targets it has."""
        return False

    @property
    def shows_whole_pairs(self) -> bool:
        """Whether a sample holds whole translation pairs, which must fit into a window."""
        return False

    def batch_problems(self, sequence_length: int) -> list[str]:
        """Problems of the batch for windows of `sequence_length` tokens."""
        return []

    def model_problems(self, where: str, model: ModelConfig, sequence_length: int) -> list[str]:
        """Conflicts with the model; messages begin with `where`, the place in the recipe."""
        return []

    # the work of a step

    def targets_per_token(self, mask_rate: float) -> float:
        """Share of the tokens of its windows whose states reach the vocabulary."""
        return mask_rate

    @property
    def last_layer(self) -> int | None:
        """Block whose states the loss reads, counted from 1; later blocks are not run. None: the final states."""
        return None

    @abstractmethod
    def passes(self, sequence_length: int, mask_rate: float) -> list[EncoderPass]:
        """Encoder passes of a step, upper bound; the first is the one that is trained."""

    def other_flops(self, model: ModelConfig, sequence_length: int) -> float:
        """Operations of a step outside the encoder and its head, forward and backward."""
        return 0.0

    def uncut_tokens(self, ranks: int) -> int:
        """Tokens that a rank must train on at once, regardless of `micro_batch_tokens`; 0: micro-batches can be cut."""
        return 0

    # its state outside the encoder

    def own_parameters(self, model: ModelConfig) -> int:
        """Trained parameters outside the encoder; they are named `objectives.NAME...`."""
        return 0

    @property
    def copied_layers(self) -> int | None:
        """Number of blocks in the second, untrained copy (with the embedding) on every rank; None: no copy."""
        return None

    def shared_numbers(self, model: ModelConfig) -> int:
        """fp32 numbers besides that copy that are replicated on all ranks and saved in shares."""
        return 0

    @property
    def unshared_bytes(self) -> int:
        """Bytes of its memory that one rank saves alone."""
        return 0

    def buffer_bytes(self, model: ModelConfig, micro_batch_tokens: int, ranks: int) -> int:
        """Upper bound on bytes on every rank's device besides parameters, copies and activations."""
        return 0
