"""Reading a recipe: YAML file plus `key=value` overrides, all problems reported at once with the nearest legal names."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from dist_metaxlm.errors import UserError
from dist_metaxlm.recipe.layout import clashing_methods
from dist_metaxlm.recipe.objectives import registry
from dist_metaxlm.recipe.schema import LAYOUT_LATER, ParallelConfig, Recipe
from dist_metaxlm.recipe.yaml_text import read_yaml, write_yaml
from dist_metaxlm.text import did_you_mean

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


_BRANCHES = ("", "list[AlphaPoint]", "list[str]", "literal['all']", "float", "str", "MosesPair", "EvaluationFiles", "[key]")


_AS_WRITTEN = {"mask_schedule": "mask_rate", "length_schedule": "sequence_length", "batch_schedule": "batch_tokens"}
"""Points of a schedule are written in the field that they are of."""


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("dist_metaxlm.recipe.recipes")
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_recipe(name_or_path: str | Path, overrides: Iterable[str] = (), layout_later: bool = False) -> Recipe:
    """Read a shipped recipe by name or any YAML file, apply overrides such as `phases.meta.steps=20`, validate.

    layout_later: the caller checks the layout for the given ranks (planning/legality.py), which names all its problems.

    Raises:
        UserError: naming every problem found, each with its place in the recipe and the nearest legal name.
    """
    tree = _read_yaml(name_or_path)
    problems: list[str] = []
    for override in overrides:
        problem = _apply_override(tree, override)
        if problem:
            problems.append(problem)
    _take_imported_model(tree, problems)
    _spread_defaults(tree, problems)
    try:
        recipe = Recipe.model_validate(tree, context={LAYOUT_LATER: layout_later})
    except ValidationError as error:
        unknown = {item["loc"][1] for item in error.errors() if _is_no_name(item)}
        problems += [
            _describe(item)
            for item in error.errors()
            if not _is_other_branch(item)
            and (_is_no_name(item) or not (item["loc"][:1] == ("phases",) and unknown & set(item["loc"][1:2])))
        ]
        if all(item["loc"] for item in error.errors()):  # errors in sections: the layout has not been checked
            problems += _layout_problems(tree)
    if problems:
        raise UserError(f"recipe {name_or_path}: " + "; ".join(problems))
    return recipe


def _take_imported_model(tree: dict[str, object], problems: list[str]) -> None:
    """Replace `model: {from_imported: FOLDER}` by the model of an import; other fields of the section override its own.

    Its tokenizer becomes `data.tokenizer.path` unless the recipe has one: the rows of the embedding belong to its pieces.
    """
    section = tree.get("model")
    if not isinstance(section, dict) or "from_imported" not in section:
        return
    folder = Path(str(section["from_imported"]))
    own = {name: value for name, value in section.items() if name != "from_imported"}
    try:
        imported = json.loads((folder / "model_config.json").read_text(encoding="utf-8"))
        if not isinstance(imported, dict):
            raise ValueError("not an object")
    except (OSError, ValueError):
        problems.append(
            f"model.from_imported: {folder} holds no imported model; make one with `metaxlm convert import --input FOLDER "
            f"--output {folder}`, or name another folder (it is relative to the working directory)"
        )
        imported = {}
    tree["model"] = {**imported, **own}
    tokenizer, data = folder / "tokenizer.model", tree.get("data")
    if tokenizer.is_file() and isinstance(data, dict):
        data["tokenizer"] = {"path": str(tokenizer), **(data.get("tokenizer") or {})}


def _layout_problems(tree: dict[str, object]) -> list[str]:
    """Problems of the layout alone, if its section can be read."""
    try:
        layout = ParallelConfig.model_validate(tree.get("parallel", {})).layout()
    except ValidationError:
        return []
    return [problem.message for problem in clashing_methods(layout)]


def dump_recipe(recipe: Recipe) -> str:
    """The whole recipe as YAML, defaults included; a run saves it with its results."""
    return write_yaml(recipe.model_dump(mode="json"))


def _read_yaml(name_or_path: str | Path) -> dict[str, object]:
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
            raise UserError(
                f"there is no file {path}; correct the path (it is relative to the working directory), or give "
                f"one of the shipped recipes: {', '.join(shipped_recipes())}"
            )
        close = difflib.get_close_matches(str(name_or_path), shipped_recipes(), 1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UserError(f"no recipe {str(name_or_path)!r}: {hint}give a YAML file or one of {', '.join(shipped_recipes())}")
    try:
        tree = read_yaml(text, str(name_or_path))
    except yaml.YAMLError as error:
        raise UserError(f"recipe {name_or_path} is not YAML: {' '.join(str(error).split())}; correct that line") from None
    if not isinstance(tree, dict):
        raise UserError(f"recipe {name_or_path} holds no settings; start from one of {', '.join(shipped_recipes())}")
    return tree


def _apply_override(tree: dict[str, object], override: str) -> str | None:
    """Set one `a.b.c=value` in the tree (value in YAML); objectives of a phase are addressed by name."""
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        return f"override {override!r} is not of the form key=value, such as phases.meta.steps=20"
    try:
        value = read_yaml(text)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None)
        return (
            f"override {override!r}: {text!r} is not a YAML value{f' ({problem})' if problem else ''}; quote or correct it"
        )
    steps = key.strip().split(".")
    phases = tree.get("phases")
    if steps[0] == "phases" and len(steps) > 2 and isinstance(phases, dict) and steps[1] not in (*phases, "defaults"):
        known = [str(name) for name in phases if name != "defaults"]
        return f"unknown phase {steps[1]!r}{did_you_mean(steps[1], known)} phases are {', '.join(known)}"
    node: Any = tree
    for index, step in enumerate(steps):
        place, last = ".".join(steps[:index]), index == len(steps) - 1
        if isinstance(node, list):
            number = next((n for n, item in enumerate(node) if isinstance(item, dict) and item.get("name") == step), None)
            if number is None or last:
                return f"override {key}: {_no_item(node, place, step)}"
            node[number] = node = dict(node[number])
        elif not isinstance(node, dict):
            return f"override {key}: {place} is a value, not a section; give all of it, {place}=..."
        elif last:
            # Giving one of the two lengths replaces the other: `steps=20` on a recipe that counts tokens just works.
            if step in ("steps", "tokens") and steps[0] == "phases":
                node.pop({"steps": "tokens", "tokens": "steps"}[step], None)
            node[step] = value
        else:
            # A copy, because other phases share the same section under an anchor or in phases.defaults.
            child = node[step] if step in node else _default(tree, steps[: index + 1])
            child = {} if child is None else child  # an optional section that is empty
            node[step] = node = list(child) if isinstance(child, list) else dict(child) if isinstance(child, dict) else child
    return None


def _default(tree: dict[str, object], steps: list[str]) -> object:
    """The value of `phases.NAME.FIELD` if only `phases.defaults` sets it; an empty section for anything else."""
    phases = tree.get("phases") if len(steps) == 3 and steps[0] == "phases" else None
    defaults = phases.get("defaults") if isinstance(phases, dict) else None
    return defaults.get(steps[2], {}) if isinstance(defaults, dict) else {}


def _no_item(items: list[object], place: str, step: str) -> str:
    """Message for a `step` that names no item of a list in an override."""
    names = [str(item["name"]) for item in items if isinstance(item, dict) and "name" in item]
    if step in names:
        return f"{step!r} is a section of {place}; set a field of it, {place}.{step}.FIELD=..."
    return (
        f"no {step!r} in {place}; there is {', '.join(names)}"
        if names
        else (f"{place} is a list; give all of it, {place}=[...]")
    )


def _spread_defaults(tree: dict[str, object], problems: list[str]) -> None:
    """`phases.defaults` holds what the phases share; each phase's own keys take precedence, also inside `learning_rate`."""
    phases = tree.get("phases")
    if not isinstance(phases, dict):
        return
    defaults = phases.pop("defaults", {})
    if not isinstance(defaults, dict):
        problems.append("phases.defaults is not a section of key: value lines")
        return
    for name, phase in phases.items():
        if phase is None or isinstance(phase, dict):
            phase = phase or {}
            merged = {**defaults, **phase}
            shared, own = defaults.get("learning_rate"), phase.get("learning_rate")
            if isinstance(shared, dict) and isinstance(own, dict):
                merged["learning_rate"] = {**shared, **own}
            if "steps" in phase and "tokens" not in phase:
                merged.pop("tokens", None)
            if "tokens" in phase and "steps" not in phase:
                merged.pop("steps", None)
            phases[name] = merged


def _describe(item: ErrorDetails) -> str:
    """One pydantic error as `place: problem; nearest legal name`."""
    location = [str(part) for part in item["loc"]]
    # Pydantic names the branch of a union ('mlm') or of a model type in the location; keep the parts that a user would type.
    place = ".".join(_AS_WRITTEN.get(part, part) for part in location if part not in _BRANCHES) or "recipe"
    if item["type"] == "extra_forbidden":
        known = _fields_at(location[:-1])
        hint = did_you_mean(location[-1], known)
        return f"unknown key {place}{hint}" + (f" known: {', '.join(known)}" if hint == ";" else "")
    if _is_no_name(item):
        return f"phases.{location[1]}: the name of a phase has letters, digits, _ and -, at most 64; rename it"
    if item["type"] == "missing":
        return f"{place} is missing; give it a value"
    value = item.get("input")
    if item["type"] in ("model_type", "dict_type"):
        keys = f" with the keys {', '.join(_fields_at(location))}" if item["type"] == "model_type" else ""
        return f"{place} is {_kind(value)} instead of a section{keys}; write key: value lines under it"
    if item["type"] in ("list_type", "tuple_type"):
        return f"{place} is {_kind(value)} instead of a list; write {place.split('.')[-1]}: [...]"
    message = item["msg"].removeprefix("Value error, ")
    shown = f" (got {value!r})" if isinstance(value, str | int | float | bool) and item["type"] != "value_error" else ""
    quotes = "; put it in quotes" if shown and item["type"] == "string_type" else ""
    return f"{place}: {message}{shown}{quotes}"


def _kind(value: object) -> str:
    """A value of a recipe in words."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "a section"
    return "empty" if value is None else repr(value)


def _is_other_branch(item: ErrorDetails) -> bool:
    """Whether the error only says that a list or section is not a plain value; errors inside it are reported as well."""
    return item["loc"][-1:] in (("str",), ("float",), ("literal['all']",)) and isinstance(item.get("input"), list | dict)


def _is_no_name(item: ErrorDetails) -> bool:
    return bool(item["loc"][:1] == ("phases",) and item["loc"][-1] == "[key]" and item["type"] == "string_pattern_mismatch")


def _fields_at(location: list[str]) -> list[str]:
    """Field names of the section at `location`."""
    model: Any = Recipe
    for place, step in enumerate(location):
        if location[place - 1 : place] == ["phases"]:
            continue  # the name of a phase
        if step in model.model_fields:
            nested = _sections_in(model.model_fields[step].annotation)
            model = nested[0] if nested else model
        else:
            model = registry.configuration(step) or model
    return [field.alias or name for name, field in model.model_fields.items()]


def _sections_in(annotation: object) -> list[type[BaseModel]]:
    """The recipe sections that a type names, however deep inside dictionaries and lists."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections_in(part)]
