"""The reference of recipe fields for a terminal and as docs/recipe.md.

`python -m dist_metaxlm.recipe.reference.page docs/recipe.md` writes the page again.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from dist_metaxlm.recipe.reference.fields import RecipeField, matching, sections

WIDTH = 100
HEAD = """# Recipe fields

Every field of a recipe: its type and allowed values, unit, default and meaning. This page is generated from the docstrings
of the code; `python -m dist_metaxlm.recipe.reference.page docs/recipe.md` writes it again.

A recipe is one YAML file with the sections below. A field is set in the file, or on a command line by its place:
`training.log_interval=5`, `phases.meta.steps=20`, `phases.cross.objectives.tlm.weight=0.5`. `PHASE` is the
name of a phase, such as `meta`; a section `phases.defaults` sets fields for all phases of the recipe.
`LANGUAGE` is a language code, `PAIR` two of
them such as `en-sw`, and `SOURCE` any name. "Empty" is a field that is left out, or `null`.

On a terminal:

```text
metaxlm pretrain --fields                      # all fields
metaxlm pretrain --fields training.guards      # a section
metaxlm pretrain --fields phases.meta.steps    # a field
```

An editor with a YAML language server checks and completes a recipe by its schema. Write the schema once, and name it in the
first line of the recipe:

```text
metaxlm pretrain --schema > recipe.schema.json
```

```yaml
# yaml-language-server: $schema=recipe.schema.json
name: mine
```
"""


def as_text(name: str = "") -> str:
    """The fields that `name` names, for a terminal. Errors: UserError for an unknown name."""
    return "\n".join(line for field in matching(name) for line in _lines(field))


def as_page() -> str:
    """The whole page in Markdown."""
    parts = [HEAD]
    for section in sections():
        parts.append(f"## {section.path or 'Top level'}\n\n{section.meaning}\n")
        rows = ["| field | type | unit | default | meaning |", "|---|---|---|---|---|"]
        rows += [_row(field) for field in section.fields]
        parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)


def _lines(field: RecipeField) -> list[str]:
    facts = [field.kind.replace("`", ""), f"default: {field.default}", *([f"unit: {field.unit}"] if field.unit else [])]
    body = textwrap.wrap("; ".join(facts), WIDTH - 4) + textwrap.wrap(field.meaning, WIDTH - 4)
    return [field.path, *(f"    {line}" for line in body)]


def _row(field: RecipeField) -> str:
    name = field.path.rsplit(".", 1)[-1]
    default = field.default if field.default in ("required", "empty", "section") else f"`{field.default}`"
    cells = [f"`{name}`", field.kind, field.unit, default, field.meaning]
    return f"| {' | '.join(_escaped(cell) for cell in cells)} |".replace("|  |", "| |")


def _escaped(cell: str) -> str:
    return (
        cell.replace("|", "\\|").replace("<", "&lt;").replace(">", "&gt;") if "`" not in cell else cell.replace("|", "\\|")
    )


def main(words: Sequence[str]) -> None:
    """Write the page to the file that the first word names."""
    Path(words[0]).write_text(as_page(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
