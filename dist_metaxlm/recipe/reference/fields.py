"""All fields of a recipe, from the types and docstrings of its sections."""

from __future__ import annotations

import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dist_metaxlm.errors import UserError
from dist_metaxlm.recipe.objectives import registry
from dist_metaxlm.recipe.objectives.base import Objective
from dist_metaxlm.recipe.reference.units import unit_of
from dist_metaxlm.recipe.schema import Recipe
from dist_metaxlm.text import did_you_mean

PLACES = {"phases": "PHASE", "text": "LANGUAGE.SOURCE", "bitext": "PAIR.SOURCE"}
"""Sections by free names -> the words that the reference has for the names."""


@dataclass(frozen=True, kw_only=True)
class RecipeField:
    """One field of a recipe."""

    path: str
    """Place in the recipe; `PHASE`, `LANGUAGE`, `PAIR` and `SOURCE` are names that the recipe chooses."""
    kind: str
    """Type and allowed values in words."""
    default: str
    """Default as YAML; `required` if it has none, `empty` for none, `section` for a section with defaults."""
    unit: str
    """Unit of a number; empty for text, flags and sections."""
    meaning: str
    """First sentence to last of its docstring."""
    is_section: bool
    """Whether it contains other fields."""
    is_number: bool
    """Whether its value is a number or made of numbers."""


@dataclass(frozen=True, kw_only=True)
class RecipeSection:
    """One section of a recipe with its own fields."""

    path: str
    """Its place; empty for the recipe itself."""
    meaning: str
    """Docstring of the section."""
    fields: tuple[RecipeField, ...]
    """In the order of the source."""


def sections() -> list[RecipeSection]:
    """All sections in the order of the recipe, objectives of installed packages included.

    Errors: UserError if an installed package's objectives cannot be registered.
    """
    return list(_walk(Recipe, ""))


def matching(name: str) -> list[RecipeField]:
    """The fields that `name` names: a place, the beginning of one, or a field's own name; phases by their own names too.

    Errors: UserError for an unknown name, with the nearest known one.
    """
    everything = [field for section in sections() for field in section.fields]
    if not name:
        return everything
    asked = name.split(".")
    if asked[0] == "phases" and len(asked) > 1:
        asked[1] = "PHASE"  # phases have any names
    if asked[:2] == ["phases", "PHASE"] and asked[2:3] and asked[2] in registry.names():
        asked.insert(2, "objectives")  # an override names the objective's place with or without this word
    chosen = [field for field in everything if field.path.split(".")[: len(asked)] == asked]
    chosen = chosen or [field for field in everything if _contains(field.path.split("."), asked)]
    if chosen:
        return chosen
    known = [*(field.path for field in everything), *(field.path.split(".")[-1] for field in everything)]
    raise UserError(f"no recipe field {name!r}{did_you_mean(name, known)} `metaxlm pretrain --fields` lists all fields")


def _contains(path: Sequence[str], asked: Sequence[str]) -> bool:
    return any(list(path[start : start + len(asked)]) == list(asked) for start in range(len(path)))


def _walk(model: type[BaseModel], path: str) -> Iterator[RecipeSection]:
    prefix = f"{path}." if path else ""
    named = {name: info for name, info in model.model_fields.items() if not (_is_objective(model) and name == "name")}
    own = tuple(_field(f"{prefix}{name}", name, info) for name, info in named.items())
    yield RecipeSection(path=path, meaning=_plain(model.__doc__), fields=own)
    for name, info in named.items():
        place = f"{prefix}{name}"
        for inner in _models(info.annotation):
            if inner is Objective:
                for objective in registry.names():
                    yield from _walk(registry.entry(objective).configuration, f"{place}.{objective}")
            else:
                free = PLACES.get(name) if _is_free(info.annotation) else None
                yield from _walk(inner, f"{place}.{free}" if free else place)


def _field(path: str, name: str, info: FieldInfo) -> RecipeField:
    is_section = bool(_models(info.annotation))
    numeric = bool({int, float} & _atoms(info.annotation)) and not (is_section and name not in ("alpha", "pair_alpha"))
    return RecipeField(
        path=path,
        kind=", ".join([_words(info.annotation), *_limits(info.metadata)]),
        default=_default(info),
        unit=unit_of(name) if numeric else "",
        meaning=_plain(info.description),
        is_section=is_section,
        is_number=numeric,
    )


def _is_objective(model: type[BaseModel]) -> bool:
    return Objective in model.__mro__


def _is_free(annotation: Any) -> bool:
    return get_origin(annotation) is dict


def _plain(text: str | None) -> str:
    return " ".join((text or "").split())


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = info.default
    if isinstance(value, BaseModel):
        return "section"
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def _atoms(annotation: Any) -> set[Any]:
    if get_origin(annotation) is Literal:
        return {type(value) for value in get_args(annotation)}
    parts = get_args(annotation)
    return set().union(*map(_atoms, parts)) if parts else {annotation}


_WORDS = {int: "integer", float: "number", bool: "true or false", str: "text", type(None): "empty"}


def _words(annotation: Any) -> str:
    """A type in words."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in parts)
    if origin in (Union, types.UnionType):
        return " or ".join(_words(part) for part in parts)
    if origin is dict:
        return f"names, each with {_words(parts[1])}"
    if origin is list:
        return f"list of {_words(parts[0])}"
    if origin is tuple:
        return f"list of {len(parts)} ({_words(parts[0])})"
    if hasattr(annotation, "__metadata__"):
        inner = annotation.__metadata__
        return ", ".join([_words(annotation.__origin__), *(limit for item in inner for limit in _limits(_nested(item)))])
    return _WORDS.get(annotation, "any value")


def _nested(item: Any) -> Sequence[Any]:
    return item.metadata if isinstance(item, FieldInfo) else [item]


def _limits(metadata: Sequence[Any]) -> list[str]:
    """Constraints in words, such as `> 0`."""
    words = []
    for item in metadata:
        if isinstance(item, annotated_types.Gt):
            words.append(f"> {item.gt:g}")
        elif isinstance(item, annotated_types.Ge):
            words.append(f">= {item.ge:g}")
        elif isinstance(item, annotated_types.Lt):
            words.append(f"< {item.lt:g}")
        elif isinstance(item, annotated_types.Le):
            words.append(f"<= {item.le:g}")
        elif isinstance(item, annotated_types.MinLen):
            words.append("not empty")
        elif getattr(item, "pattern", None):
            words.append(f"pattern {item.pattern}")
    return words
