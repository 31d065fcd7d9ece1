"""Trackers by name: the package's own, and those that installed packages offer as entry points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec

from dist_metaxlm.errors import UserError
from dist_metaxlm.text import did_you_mean
from dist_metaxlm.tracking.tracker import Tracker

GROUP = "dist_metaxlm.trackers"
"""Group of the entry points; each is a function or class that gives a tracker without arguments."""
_OWN = {
    "tensorboard": ("tensorboard", "dist_metaxlm.tracking.tensorboard_files", "TensorBoard"),
    "wandb": ("wandb", "dist_metaxlm.tracking.weights_and_biases", "WeightsAndBiases"),
    "mlflow": ("mlflow", "dist_metaxlm.tracking.mlflow_runs", "MLflow"),
}
"""Name -> (package that it needs, module, class)."""


def known() -> list[str]:
    """Names that `training.trackers` accepts on this machine."""
    return sorted({*_OWN, *_installed()})


def check_trackers(names: Sequence[str]) -> None:
    """Refuse a tracker that is unknown or whose package is missing, before training; imports none of them.

    Raises:
        UserError: naming it, and the known ones or the package to install.
    """
    for name in names:
        if name in _installed():
            continue
        if name not in _OWN:
            raise UserError(
                f"training.trackers: there is no tracker {name!r}{did_you_mean(name, known())} known: {', '.join(known())} "
                f"(metrics.jsonl is always written; an installed package may add more as entry points {GROUP})"
            )
        package = _OWN[name][0]
        if find_spec(package) is None:
            raise UserError(
                f"training.trackers: {name} needs the package {package}, which is not installed; install "
                f"dist-metaxlm[trackers] or {package}, or take {name} out of training.trackers"
            )


def make_tracker(name: str) -> Tracker:
    """The tracker of this name, not started. Errors: as `check_trackers`; UserError if an entry point cannot be loaded."""
    check_trackers([name])
    entry = _installed().get(name)
    if entry is None:
        _, module, attribute = _OWN[name]
        tracker: Tracker = getattr(import_module(module), attribute)()
        return tracker
    try:
        make: Callable[[], Tracker] = entry.load()
        return make()
    except Exception as error:  # code of another package
        raise UserError(
            f"training.trackers: {name} ({entry.value}) cannot be loaded: {type(error).__name__}: {error}; "
            f"correct that package or take {name} out of training.trackers"
        ) from error


def _installed() -> dict[str, EntryPoint]:
    """Entry points by name. One with the name of an own tracker replaces it."""
    return {entry.name: entry for entry in entry_points(group=GROUP)}
