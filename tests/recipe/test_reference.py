"""The reference of recipe fields is complete, and its page is up to date."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml

from dist_metaxlm.cli import pretrain
from dist_metaxlm.errors import UserError
from dist_metaxlm.recipe.load import shipped_recipes
from dist_metaxlm.recipe.reference.fields import matching, sections
from dist_metaxlm.recipe.reference.json_schema import recipe_schema
from dist_metaxlm.recipe.reference.page import as_page
from dist_metaxlm.recipe.reference.units import UNITS
from dist_metaxlm.recipe.yaml_text import read_yaml

PAGE = Path(__file__).resolve().parents[2] / "docs" / "recipe.md"
FIELDS = [field for section in sections() for field in section.fields]


def test_every_field_has_meaning_default_and_unit() -> None:
    assert len(FIELDS) > 140
    assert not [field.path for field in FIELDS if not field.meaning or not field.default or not field.kind]
    unitless = [field.path for field in FIELDS if field.is_number and not field.unit]
    assert not unitless, f"add the units of {unitless} to dist_metaxlm/recipe/reference/units.py"
    assert not UNITS.keys() - {field.path.rsplit(".", 1)[-1] for field in FIELDS}


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == as_page(), (
        "run python -m dist_metaxlm.recipe.reference.page docs/recipe.md: a field has changed"
    )


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("training.guards", "training.guards"),
        ("phases.meta.steps", "phases.PHASE.steps"),
        ("phases.cross.tlm.weight", "phases.PHASE.objectives.tlm.weight"),
        ("sigma", "training.guards.sigma"),
    ],
)
def test_a_name_a_prefix_and_a_phase_are_understood(name: str, first: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        pretrain.parse(["--fields", name])
    assert not end.value.code
    assert capsys.readouterr().out.splitlines()[0] == first


def test_an_unknown_field_is_one_sentence_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"no recipe field 'trainng\.guards', did you mean training\.guards\?"):
        matching("trainng.guards")


def violations(value: Any, schema: Any, root: Any, place: str = "recipe") -> list[str]:
    """Where a value breaks a schema, for the keywords that the recipe's schema uses."""
    if "$ref" in schema:
        return violations(value, root["$defs"][schema["$ref"].rsplit("/", 1)[-1]], root, place)
    for word in ("anyOf", "oneOf"):
        if word in schema:
            tried = [violations(value, branch, root, place) for branch in schema[word]]
            fits = sum(not wrong for wrong in tried)
            if not fits or (word == "oneOf" and fits > 1):
                return [wrong for branch in tried for wrong in branch] or [f"{place}: several branches of oneOf"]
    types = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool, "null": type(None)}
    kind = schema.get("type")
    fits_kind = isinstance(value, types[kind]) if kind in types else not isinstance(value, dict | list | str)
    if kind and (not fits_kind or (isinstance(value, bool) and kind != "boolean")):
        return [f"{place}: {value!r} is not {kind}"]
    if ("const" in schema and value != schema["const"]) or ("enum" in schema and value not in schema["enum"]):
        return [f"{place}: {value!r} is not allowed"]
    problems = []
    if isinstance(value, dict):
        known = schema.get("properties", {})
        problems += [f"{place}: no {name}" for name in schema.get("required", []) if name not in value]
        for name, inner in value.items():
            other = schema.get("additionalProperties", {})
            if name not in known and other is False:
                problems.append(f"{place}: unknown {name}")
            else:
                problems += violations(inner, known.get(name, other), root, f"{place}.{name}")
    if isinstance(value, list):
        problems += [wrong for item in value for wrong in violations(item, schema.get("items", {}), root, f"{place}[]")]
    return problems


@pytest.mark.parametrize("name", shipped_recipes())
def test_the_schema_accepts_the_shipped_recipes(name: str) -> None:
    text = (resources.files("dist_metaxlm.recipe.recipes") / f"{name}.yaml").read_text(encoding="utf-8")
    schema = recipe_schema()
    assert violations(read_yaml(text), schema, schema) == []


def test_the_schema_refuses_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        pretrain.parse(["--schema"])
    schema = json.loads(capsys.readouterr().out)
    tree = yaml.safe_load(
        "{name: a, model: {layers: two, hidden: 8, heads: 2, ffn: 8, vocab_size: 400, depth: 3}, data: {directory: d, text: "
        "{en: [a.txt], sw: a.txt}}, phases: {defaults: {mask_rat: 0.1}, meta: {objectives: [{name: mlm, batch: 3}]}}}"
    )
    wrong = " ".join(violations(tree, schema, schema))
    for part in ("'two' is not integer", "unknown depth", "'a.txt' is not array", "unknown mask_rat", "unknown batch"):
        assert part in wrong
