"""Differences between two phases of a recipe, as text."""

from __future__ import annotations

from dist_metaxlm.recipe.schema import Recipe


def flatten(value: object, prefix: str = "") -> dict[str, object]:
    """A nested recipe as {dotted key: value}; objectives are keyed by name."""
    if isinstance(value, dict) and value:
        items = {f"{prefix}.{key}" if prefix else str(key): child for key, child in value.items()}
    elif isinstance(value, list) and value and all(isinstance(item, dict) and "name" in item for item in value):
        items = {f"{prefix}.{item['name']}": {k: v for k, v in item.items() if k != "name"} for item in value}
    else:
        return {prefix: value}
    flat: dict[str, object] = {}
    for key, child in items.items():
        flat |= flatten(child, key)
    return flat


def phase_difference(recipe: Recipe, before: str, after: str) -> list[tuple[str, object, object]]:
    """Rows (field, value in `before`, value in `after`) where two phases of a recipe differ; None: not set there."""
    old = flatten(recipe.phase(before).model_dump(mode="json"))
    new = flatten(recipe.phase(after).model_dump(mode="json"))
    keys = [*old, *(key for key in new if key not in old)]
    return [(key, old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)]
