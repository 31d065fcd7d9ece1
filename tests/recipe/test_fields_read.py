"""Every field of a recipe is read by the package (docs/design.md, invariant 5)."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from dist_metaxlm.recipe.objectives import registry
from dist_metaxlm.recipe.schema import Recipe

PACKAGE = Path(__file__).resolve().parents[2] / "dist_metaxlm"


def sections(annotation: Any) -> set[type[BaseModel]]:
    """The recipe sections that a type is made of, and those inside of them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        inner = [sections(field.annotation) for field in annotation.model_fields.values()]
        return {annotation}.union(*inner)
    return set().union(*map(sections, get_args(annotation)))


def read_names(sources: list[str]) -> set[str]:
    """Attributes whose value is taken anywhere in the sources."""
    nodes = (node for source in sources for node in ast.walk(ast.parse(source)))
    return {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}


def test_every_field_is_read() -> None:
    sources = [path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")]
    objectives = {registry.entry(name).configuration for name in registry.names()}
    read, fields = (
        read_names(sources),
        [(s.__name__, name) for s in sections(Recipe) | objectives for name in s.model_fields],
    )
    assert len(fields) > 140
    assert not [field for field in sorted(fields) if field[1] not in read]


def test_a_field_that_is_only_set_is_not_read() -> None:
    assert read_names(["self.first = other.second", "third: int = 3"]) == {"second"}
