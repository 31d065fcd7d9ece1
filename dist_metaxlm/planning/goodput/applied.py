"""A recipe file with the layout of a plan; the comments of the source stay."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import fields
from importlib import resources
from pathlib import Path

from dist_metaxlm.recipe.layout import Layout
from dist_metaxlm.recipe.load import dump_recipe, load_recipe, shipped_recipes
from dist_metaxlm.recipe.schema import Recipe

_FIELDS = [item.name for item in fields(Layout) if item.name not in ("data", "tensor_across_nodes")]
_BEFORE = re.compile(r"(training|phases):")
"""Sections before which a new `parallel` is inserted."""


def layout_overrides(layout: Layout) -> list[str]:
    """All fields of the layout as overrides, also those with the default value: the recipe may have another one."""
    return [f"parallel.{name}={_plain(getattr(layout, name))}" for name in _FIELDS]


def recipe_with_layout(source: str, overrides: Sequence[str], layout: Layout) -> tuple[str, Recipe, bool]:
    """The recipe's text with the layout, the recipe that it is, and whether the comments of `source` are in it.

    They are not if the overrides change more than the layout: then it is the whole recipe, defaults included.
    """
    expected = load_recipe(source, [*overrides, *layout_overrides(layout)])
    text = _with_section(_source_text(source), layout)
    if text is not None and _read(text) == expected:
        return text, expected, True
    return dump_recipe(expected), expected, False


def _read(text: str) -> Recipe:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return load_recipe(path)


def _source_text(source: str) -> str:
    if source in shipped_recipes():
        return (resources.files("dist_metaxlm.recipe.recipes") / f"{source}.yaml").read_text(encoding="utf-8")
    return Path(source).read_text(encoding="utf-8")


def _plain(value: object) -> str:
    """A field's value as YAML."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _with_section(text: str, layout: Layout) -> str | None:
    """The text with its section `parallel` replaced or inserted; None if it is not written in block style."""
    lines = text.splitlines()
    new = [f"  {name}: {_plain(getattr(layout, name))}" for name in _FIELDS]
    start = next((number for number, line in enumerate(lines) if re.match(r"parallel\s*:", line)), None)
    if start is None:
        at = next((number for number, line in enumerate(lines) if _BEFORE.match(line)), len(lines))
        while at and lines[at - 1].startswith("#"):
            at -= 1  # comments above a section belong to it
        return "\n".join([*lines[:at], "parallel:", *new, "", *lines[at:]]) + "\n"
    if not re.fullmatch(r"parallel\s*:\s*(#.*)?", lines[start]):
        return None
    end = start + 1
    while end < len(lines) and (not lines[end].strip() or lines[end].startswith((" ", "\t"))):
        end += 1
    while not lines[end - 1].strip():
        end -= 1
    kept = [line for line in lines[start + 1 : end] if not re.match(rf"\s+({'|'.join(_FIELDS)})\s*:", line)]
    indent = next((re.match(r"\s+", line).group() for line in kept if line.strip()), "  ")  # type: ignore[union-attr]
    new = [indent + line.strip() for line in new]
    return "\n".join([*lines[: start + 1], *new, *kept, *lines[end:]]) + "\n"
