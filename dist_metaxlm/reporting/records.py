"""The types of a run's metrics records, and of what every figure is recorded with."""

from __future__ import annotations

from typing import TypedDict


class Environment(TypedDict):
    """What figures were measured with."""

    date: str
    """UTC, to the second."""
    device: str
    """Name of the GPU, else of the processor."""
    devices: int
    """GPUs of this machine."""
    cpu_cores: int
    python: str
    system: str
    commit: str | None
    """Of the checkout that the package runs from; None outside one."""
    versions: dict[str, str | None]
    """Package -> version; None: not installed."""
    command: list[str]


class ProbeFigures(TypedDict):
    """Retrieval among held-out sentences while a phase trains."""

    retrieval: float
    """P@1, mean over languages."""
    layer: int
    strings: int
    """Most candidates of a language."""
    languages: dict[str, float]
    """P@1 of each."""


class ProbeRecord(ProbeFigures):
    """The same in a metrics record."""

    seconds: float


class HeldoutFigures(TypedDict):
    """Held-out loss while a phase trains, in bits per byte."""

    bits_per_byte: float
    """Mean over the phase's languages."""
    languages: dict[str, float]
    word_frequencies: float | None
    """The mean as the table of word frequencies has it; None where a language has no training text."""
    language_word_frequencies: dict[str, float]
    sample: str
    """Names the text: figures of different samples cannot be compared."""


class HeldoutRecord(HeldoutFigures):
    """The same in a metrics record."""

    seconds: float


class Counted(TypedDict, total=False):
    """Losses of a log interval, by objective."""

    losses: dict[str, float]
    language_losses: dict[str, dict[str, float]]
    realised: dict[str, dict[str, int]]
    """Samples so far, by language or pair."""


class StepFigures(TypedDict, total=False):
    """Of the last step."""

    grad_norm: float | None
    """None: a gradient overflowed."""
    skipped_steps: int
    """So far, in half precision."""
    loss_scale: float
    """In fp16."""


class SlowRank(TypedDict):
    """A rank that the others wait for."""

    rank: int
    host: str
    share: float
    """Of the interval: its own time minus the median of the others."""


class Pace(TypedDict, total=False):
    """Of a log interval."""

    guards: dict[str, int]
    """Steps without an update, spikes, returns to a checkpoint, since the phase began."""
    tokens_per_second: float
    data_wait_share: float
    """Share of the time spent waiting for data."""
    flops_per_second: float
    """Of one device, forward and backward counted for full windows and longest sentences (planning/flops.py): an upper
    bound."""
    mfu: float
    """The same as a share of the device's dense bf16 peak; only for known GPUs."""
    device_memory: int
    """Largest allocation of the first rank's GPU in the interval, in bytes."""
    host_memory: int
    """Largest resident memory of the first rank's process so far, in bytes."""
    seconds_left: float
    """Until the last step, at the mean pace since this start."""
    slow_rank: SlowRank | None
    """None: no rank was much slower than the others."""


class IntervalRecord(Counted, StepFigures, Pace, total=False):
    """A log interval of a phase."""

    step: int
    tokens: int
    loss: float | None
    """None: no step of the interval made an update."""
    learning_rate: float
    seconds: float
    """Of the phase so far."""
    asked: dict[str, dict[str, float]]
    """Target shares at this step, and as a mean over the samples so far."""
    asked_so_far: dict[str, dict[str, float]]


class Record(IntervalRecord, total=False):
    """A line of metrics.jsonl: a log interval, and what is measured at its end."""

    probe: ProbeRecord
    heldout: HeldoutRecord


class Items(TypedDict):
    """Outcomes of every held-out string: language -> (outcome, weight) of each item, in the order of the strings.

    The outcome of retrieval is 1, 0.5 or 0 (both directions, one, none) with weight 1; that of `nll` the negative log
    likelihood of the hidden tokens, summed, with their number as weight.
    """

    retrieval: dict[str, list[tuple[float, int]]]
    nll: dict[str, list[tuple[float, int]]]


class StudyBaselines(TypedDict):
    """What needs no training, on the strings of a study."""

    untrained: dict[str, dict[str, float | None]]
    """Seed -> measure -> value."""
    overlap: float | None
    """Retrieval P@1 by the tokens that two strings share, weighted by tf-idf."""
    chance: float | None
    """Mean of 1/N over the languages."""
    frequencies: dict[str, float | None]
    """english_nll and others_nll of a table of word frequencies."""


class GateCheck(TypedDict):
    """A condition for a verdict."""

    measure: str
    baseline: str
    value: float | None
    bar: float | None
    passed: bool


class Gate(TypedDict):
    """Whether the best single-phase arm has learnt enough for a verdict."""

    passed: bool
    arm: str
    checks: list[GateCheck]
