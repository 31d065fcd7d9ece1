"""Reading a recipe: YAML file plus `key=value` overrides, all problems reported at once with the nearest legal names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from dist_metaxlm.errors import UserError
from dist_metaxlm.recipe.schema import (
    PHASE_NAMES,
    Contrast,
    CrossLingualContrast,
    DenoisingAlignment,
    MaskedLM,
    Recipe,
    TranslationLM,
)
from dist_metaxlm.recipe.yaml_text import read_yaml

_BRANCHES = ("", "list[AlphaPoint]", "float", "str", "MosesPair", "EvaluationFiles")
_OBJECTIVES = {"mlm": MaskedLM, "tlm": TranslationLM, "contrast": Contrast, "xlco": CrossLingualContrast,
               "dwa": DenoisingAlignment}


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("dist_metaxlm.recipe.recipes")
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_recipe(name_or_path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a shipped recipe by name or any YAML file, apply overrides such as `phases.meta.steps=20`, validate.

    Raises:
        UserError: naming every problem found, each with its place in the recipe and the nearest legal name.
    """
    tree = _read_yaml(name_or_path)
    problems: list[str] = []
    for override in overrides:
        problem = _apply_override(tree, override)
        if problem:
            problems.append(problem)
    _spread_defaults(tree, problems)
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        unknown = {item["loc"][1] for item in error.errors() if _is_unknown_phase(item)}
        problems += [_describe(item) for item in error.errors()
                     if _is_unknown_phase(item) or not (item["loc"][:1] == ("phases",) and unknown & set(item["loc"][1:2]))]
    if problems:
        raise UserError(f"recipe {name_or_path}: " + "; ".join(problems))
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """The whole recipe as YAML, defaults included: what a run writes beside its results."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _read_yaml(name_or_path: str | Path) -> dict[str, Any]:
    path = Path(name_or_path)
    if str(name_or_path) in shipped_recipes():
        text = (resources.files("dist_metaxlm.recipe.recipes") / f"{name_or_path}.yaml").read_text(encoding="utf-8")
    elif path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"recipe {path} is not UTF-8 at byte {error.start}; save it as UTF-8") from None
    else:
        if path.suffix in (".yaml", ".yml"):
            raise UserError(f"there is no file {path}; correct the path (it is relative to the working directory), or give "
                            f"one of the shipped recipes: {', '.join(shipped_recipes())}")
        near = difflib.get_close_matches(str(name_or_path), shipped_recipes(), 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"no recipe {str(name_or_path)!r}: {hint}give a YAML file or one of {', '.join(shipped_recipes())}")
    try:
        tree = read_yaml(text, str(name_or_path))
    except yaml.YAMLError as error:
        raise UserError(f"recipe {name_or_path} is not YAML: {' '.join(str(error).split())}; mend that line") from None
    if not isinstance(tree, dict):
        raise UserError(f"recipe {name_or_path} holds no settings; start from one of {', '.join(shipped_recipes())}")
    return tree


def _apply_override(tree: dict[str, Any], override: str) -> str | None:
    """Set one `a.b.c=value` in the tree (value in YAML); objectives of a phase are addressed by name."""
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        return f"override {override!r} is not of the form key=value, such as phases.meta.steps=20"
    try:
        value = read_yaml(text)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None)
        return f"override {override!r}: {text!r} is not a YAML value{f' ({problem})' if problem else ''}; quote or mend it"
    node: Any = tree
    steps = key.strip().split(".")
    for index, step in enumerate(steps):
        last = index == len(steps) - 1
        if isinstance(node, list):
            named = [item for item in node if isinstance(item, dict) and item.get("name") == step]
            if not named or last:
                there = ", ".join(str(item.get("name")) for item in node if isinstance(item, dict))
                return f"override {key}: no {step!r} in {'.'.join(steps[:index])}; there is {there or 'nothing'}"
            node = named[0]
        elif isinstance(node, dict):
            if last:
                # Giving one of the two lengths replaces the other: `steps=20` on a recipe that counts tokens just works.
                if step in ("steps", "tokens") and steps[0] == "phases":
                    node.pop({"steps": "tokens", "tokens": "steps"}[step], None)
                node[step] = value
            else:
                node = node.setdefault(step, {})
        else:
            return f"override {key}: {'.'.join(steps[:index])} is a value, not a section"
    return None


def _spread_defaults(tree: dict[str, Any], problems: list[str]) -> None:
    """`phases.defaults` holds what the phases share; each phase's own keys win."""
    phases = tree.get("phases")
    if not isinstance(phases, dict):
        return
    defaults = phases.pop("defaults", {})
    if not isinstance(defaults, dict):
        problems.append("phases.defaults is not a section of key: value lines")
        return
    for name, phase in phases.items():
        if isinstance(phase, dict):
            merged = {**defaults, **phase}
            if "steps" in phase and "tokens" not in phase:
                merged.pop("tokens", None)
            if "tokens" in phase and "steps" not in phase:
                merged.pop("steps", None)
            phases[name] = merged


def _describe(item: Any) -> str:
    """One pydantic error as `place: what is wrong; nearest legal name`."""
    location = [str(part) for part in item["loc"]]
    # Pydantic names the branch of a union ('mlm') or of a model type in the location; keep what a reader would type.
    place = ".".join(part for part in location if part not in _BRANCHES) or "recipe"
    if item["type"] == "extra_forbidden":
        known = _fields_at(location[:-1])
        near = difflib.get_close_matches(location[-1], known, 1)
        return f"unknown key {place}" + (f", did you mean {near[0]}?" if near else f"; known: {', '.join(known)}")
    if _is_unknown_phase(item):
        near = difflib.get_close_matches(location[1], PHASE_NAMES, 1)
        hint = f", did you mean {near[0]}?" if near else ";"
        return f"unknown phase {location[1]!r}{hint} phases are {', '.join(PHASE_NAMES)}"
    if item["type"] == "missing":
        return f"{place} is missing; give it a value"
    message = item["msg"].removeprefix("Value error, ")
    value = item.get("input")
    shown = f" (got {value!r})" if isinstance(value, str | int | float | bool) and item["type"] != "value_error" else ""
    return f"{place}: {message}{shown}"


def _is_unknown_phase(item: Any) -> bool:
    return item["type"] == "literal_error" and item["loc"][0] == "phases" and item["loc"][-1] == "[key]"


def _fields_at(location: list[str]) -> list[str]:
    """Field names of the section at `location`."""
    model: Any = Recipe
    for step in location:
        if step in _OBJECTIVES:
            model = _OBJECTIVES[step]
        elif step in model.model_fields:
            nested = _sections_in(model.model_fields[step].annotation)
            model = nested[0] if nested else model
    return list(model.model_fields)


def _sections_in(annotation: Any) -> list[Any]:
    """The recipe sections that a type names, however deep inside dictionaries and lists."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections_in(part)]
