"""The JSON schema of a recipe file, for editors.

A file is not the same as the model that validates it: `phases.defaults` holds what the phases share, sources may be plain
lists, and an objective's section depends on its `name`. Pydantic describes the model, this module the file.
"""

from __future__ import annotations

from typing import Any

from dist_metaxlm.recipe.objectives import registry
from dist_metaxlm.recipe.schema import Recipe

Tree = dict[str, Any]
_REF = "#/$defs/"


def recipe_schema() -> Tree:
    """The schema (draft 2020-12), with the objectives of installed packages.

    Errors: UserError if an installed package's objectives cannot be registered.
    """
    schema = Recipe.model_json_schema()
    definitions: Tree = schema["$defs"]
    definitions.pop("Objective", None)
    branches = [_objective(name, definitions) for name in registry.names()]
    phase = definitions["PhaseConfig"]
    objectives = phase["properties"]["objectives"]
    objectives["items"] = {"type": "object", "required": ["name"], "oneOf": branches}
    for partial in ("PhaseConfig", "LearningRate"):  # a phase takes what it does not set from phases.defaults
        definitions[partial].pop("required", None)
    either = {"anyOf": [{"$ref": f"{_REF}PhaseConfig"}, {"type": "null"}]}
    schema["properties"]["phases"] = {
        "type": "object",
        "description": Recipe.model_fields["phases"].description,
        "properties": {"defaults": {"$ref": f"{_REF}PhaseConfig"}},
        "additionalProperties": either,  # phases have any names
    }
    _allow_lists(definitions, "text", "TextSource")
    _allow_lists(definitions, "bitext", "BitextSource")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _objective(name: str, definitions: Tree) -> Tree:
    """A reference to the definition of one objective, added to `definitions`."""
    own = registry.entry(name).configuration.model_json_schema()
    definitions |= own.pop("$defs", {})
    own["required"] = ["name", *own.get("required", [])]
    own["properties"]["name"] = {"const": name, "description": " ".join((own.get("description") or "Objective.").split())}
    definitions[f"objective_{name}"] = own
    return {"$ref": f"{_REF}objective_{name}"}


def _allow_lists(definitions: Tree, name: str, source: str) -> None:
    """Allow a plain list of files in the place of named sources."""
    field = definitions["DataConfig"]["properties"][name]
    files = definitions[source]["properties"]["files"]
    named = {"type": "object", "additionalProperties": {"$ref": f"{_REF}{source}"}}
    field["additionalProperties"] = {"anyOf": [{"type": "array", "items": files["items"], "minItems": 1}, named]}
