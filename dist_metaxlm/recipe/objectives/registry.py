"""One table of objectives: name -> configuration, data source, loss.

Data source and loss are named by import path ("module:Class") and imported on first use, so that reading a recipe
and planning do not import torch. An installed package adds its objectives through an entry point of the group
`dist_metaxlm.objectives`, whose value names a function without arguments that calls `register`
(docs/how-to/add-an-objective.md).
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import SerializeAsAny, ValidationError, WrapValidator
from pydantic_core import InitErrorDetails, PydanticCustomError

from dist_metaxlm.errors import UserError
from dist_metaxlm.recipe.objectives.base import Objective
from dist_metaxlm.recipe.objectives.causal_lm import CausalLM
from dist_metaxlm.recipe.objectives.contrast import Contrast
from dist_metaxlm.recipe.objectives.denoising_alignment import DenoisingAlignment
from dist_metaxlm.recipe.objectives.masked_lm import MaskedLM
from dist_metaxlm.recipe.objectives.translation_lm import TranslationLM
from dist_metaxlm.recipe.objectives.xlco import CrossLingualContrast
from dist_metaxlm.text import did_you_mean

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


ENTRY_POINTS = "dist_metaxlm.objectives"
"""Entry-point group of installed packages that provide objectives."""
_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class Entry:
    """The parts of an objective."""

    configuration: type[Objective]
    data: str
    """"module:Class" of a data source (data/objectives/base.py)."""
    loss: str
    """"module:Class" of a loss (objectives/loss.py)."""

    def load_data(self) -> Any:
        """The class of the data source."""
        return _load(self.data)

    def load_loss(self) -> Any:
        """The class of the loss."""
        return _load(self.loss)


_ENTRIES: dict[str, Entry] = {}
_plugins_loaded = False


def register(configuration: type[Objective], data: str, loss: str) -> None:
    """Add an objective under the default of its configuration's field `name`.

    Args:
        configuration: its recipe section.
        data: "module:Class" of its data source, a subclass of `data.objectives.base.DataSource`.
        loss: "module:Class" of its loss, a subclass of `objectives.loss.ObjectiveLoss`.

    Raises:
        ValueError: the name is not usable or belongs to another objective, a path is not of that form, or the objective has
            parameters or a memory of its own and does not set `needs_whole_model`.
    """
    name = configuration.model_fields["name"].default
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"{configuration.__name__}: name {name!r} is not a lower-case identifier; give the field a default")
    for path in (data, loss):
        if len(path.split(":")) != 2:
            raise ValueError(f'objective {name}: {path!r} is not of the form "module:Class"')
    holds = [field for field in ("own_parameters", "copied_layers") if _overrides(configuration, field)]
    holds += ["keeps_memory"] if configuration.keeps_memory else []
    if holds and not configuration.needs_whole_model:
        raise ValueError(f"objective {name} defines {holds[0]} and needs_whole_model is False; set it to True")
    known = _ENTRIES.get(name)
    if known is not None and _identity(known.configuration) != _identity(configuration):
        raise ValueError(f"objective {name} is registered already, with {'.'.join(_identity(known.configuration))}")
    _ENTRIES[name] = Entry(configuration, data, loss)


def names() -> list[str]:
    """Names of all objectives, in the order of their registration.

    Raises:
        UserError: an installed package's entry point fails.
    """
    _load_plugins()
    return list(_ENTRIES)


def entry(name: str) -> Entry:
    """The parts of the objective `name`.

    Raises:
        KeyError: no such objective.
    """
    _load_plugins()
    return _ENTRIES[name]


def configuration(name: str) -> type[Objective] | None:
    """The recipe section of the objective `name`; None if no such objective exists."""
    return _ENTRIES[name].configuration if name in names() else None


def _overrides(configuration: type[Objective], field: str) -> bool:
    return getattr(configuration, field) is not getattr(Objective, field)


def _identity(configuration: type[Objective]) -> tuple[str, str]:
    return configuration.__module__, configuration.__qualname__


def _load(path: str) -> Any:
    module, name = path.split(":")
    return getattr(importlib.import_module(module), name)


def _load_plugins() -> None:
    global _plugins_loaded
    if _plugins_loaded:
        return
    _plugins_loaded = True
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        try:
            point.load()()
        except Exception as error:  # code of another package: name the package for any exception
            _plugins_loaded = False
            package = point.dist.name if point.dist else "an unknown package"
            raise UserError(
                f"the objectives of {package} (entry point {point.name} = {point.value}) cannot be registered: "
                f"{type(error).__name__}: {error}; correct or uninstall the package"
            ) from error


def _validated(value: object, _: object) -> Objective:
    """A configuration from a recipe section, by its `name`; error locations include the name, as for a union."""
    name = value.get("name") if isinstance(value, dict) else getattr(value, "name", None)
    if name is None:
        raise PydanticCustomError("objective", "an objective is a section with a name: {names}", {"names": _listed()})
    wanted = configuration(name) if isinstance(name, str) else None
    if wanted is None:
        hint = did_you_mean(str(name), names())
        raise PydanticCustomError(
            "objective",
            "{wrong} is no objective{hint} objectives are {names}",
            {"wrong": repr(name), "hint": hint, "names": _listed()},
        )
    try:
        return wanted.model_validate(value)
    except ValidationError as error:
        raise ValidationError.from_exception_data(error.title, [_placed(item, name) for item in error.errors()]) from None


def _listed() -> str:
    return ", ".join(names())


def _placed(item: ErrorDetails, name: str) -> InitErrorDetails:
    placed = InitErrorDetails(type=item["type"], loc=(name, *item["loc"]), input=item["input"])
    if "ctx" in item:
        placed["ctx"] = item["ctx"]
    return placed


RegisteredObjective = Annotated[SerializeAsAny[Objective], WrapValidator(_validated)]
"""Type of a recipe field that holds any registered objective."""

register(MaskedLM, "dist_metaxlm.data.objectives.text:MaskedTextSource", "dist_metaxlm.objectives.masked_lm:MaskedLMLoss")
register(
    TranslationLM, "dist_metaxlm.data.objectives.bitext:MaskedPairsSource", "dist_metaxlm.objectives.masked_lm:MaskedLMLoss"
)
register(Contrast, "dist_metaxlm.data.objectives.contrast:ContrastSource", "dist_metaxlm.objectives.contrast:ContrastLoss")
register(CrossLingualContrast, "dist_metaxlm.data.objectives.xlco:XlcoSource", "dist_metaxlm.objectives.xlco:XlcoLoss")
register(
    DenoisingAlignment,
    "dist_metaxlm.data.objectives.bitext:MaskedPairsSource",
    "dist_metaxlm.objectives.denoising_alignment:DenoisingAlignmentLoss",
)
register(
    CausalLM, "dist_metaxlm.data.objectives.next_token:NextTokenSource", "dist_metaxlm.objectives.masked_lm:MaskedLMLoss"
)
