"""The settings that determine the prepared data, stored with the data to detect a recipe that differs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from dist_metaxlm.errors import UserError
from dist_metaxlm.recipe.schema import Recipe

NAME = "settings.json"
_MADE = ("corpus", "heldout", "tokenizer.model", "store")
"""Prepared results, each made from the previous ones."""
_POLICY, _STRICT = "data.reading.on_error", "refuse"
"""Stored only if it differs from this value: data without omissions are the same under every policy, and older data have
no such field. The limit on omissions (`max_skipped`) does not change the data."""
_USED_BY = {"data.heldout_strings": "heldout", "model.vocab_size": "tokenizer.model", "data.max_pair_tokens": "store"}
"""Setting -> first result that depends on it; those of the tokenizer affect the tokenizer, all others the corpus."""

_BEFORE = {"data.tokenizer.normalisation": "nmt_nfkc", _POLICY: _STRICT, "data.reading.txt_lines": "paragraphs"}
"""Settings missing in older data -> the values those were made with."""


def settings(recipe: Recipe) -> dict[str, object]:
    """The settings that determine the prepared data, flat: recipe field -> value."""
    flat: dict[str, object] = {"model.vocab_size": recipe.model.vocab_size}
    for name, value in recipe.data.model_dump(mode="json").items():
        if name in ("tokenizer", "reading", "cleaning"):
            flat |= {f"data.{name}.{field}": part for field, part in value.items()}
        elif name in ("text", "bitext"):
            flat[f"data.{name}"] = {language: _said(sources) for language, sources in value.items()}
        elif name != "directory":
            flat[f"data.{name}"] = value
    del flat["data.reading.max_skipped"]
    if flat[_POLICY] == _STRICT:
        del flat[_POLICY]
    return flat


def _said(sources: Mapping[str, Mapping[str, object]]) -> dict[str, dict[str, object]]:
    """Sources of a language without empty fields."""
    return {name: {field: value for field, value in source.items() if value is not None} for name, source in sources.items()}


def check_settings(recipe: Recipe) -> None:
    """Raise UserError naming the first field whose value differs from the one the data were made with.

    Settings of results that do not exist yet may change: a too large vocabulary does not require a second cleaning.
    """
    directory = Path(recipe.data.directory)
    path = directory / NAME
    if not path.is_file():
        return
    try:
        made = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise UserError(
            f"{path} is damaged, so the settings of the data in {directory} are unknown; delete that folder "
            "and run metaxlm prepare again, or restore the file"
        ) from None
    for field, value in {_POLICY: _STRICT, **settings(recipe)}.items():
        user = "tokenizer.model" if field.startswith("data.tokenizer.") else _USED_BY.get(field, "corpus")
        stale = [name for name in _MADE[_MADE.index(user) :] if (directory / name).exists()]
        before = made.get(field, _BEFORE.get(field))
        if before != value and stale and not (field == _POLICY and before == _STRICT):
            field, before, now = _difference(field, before, value)
            what = f"delete {', '.join(stale)} there" if user != "corpus" else "delete that folder"
            keep = (
                f", and for a trained model data.tokenizer.path to {directory / 'tokenizer.model'}"
                if user == "corpus" and "tokenizer.model" in stale
                else ""
            )
            raise UserError(
                f"the data in {directory} were made with {field}={before!r} and the recipe has "
                f"{now!r}; set data.directory to another folder{keep}, or {what}, and run metaxlm prepare "
                "again"
            )


def _difference(field: str, before: object, now: object) -> tuple[str, object, object]:
    """(field, value before, value now) of the first difference of two values: of a hundred languages the added one."""
    if isinstance(before, dict) and isinstance(now, dict):
        key = next(key for key in {**before, **now} if before.get(key) != now.get(key))
        return _difference(f"{field}.{key}" if key else field, before.get(key), now.get(key))
    return field, before, now


def write_settings(recipe: Recipe) -> None:
    """Store the recipe's settings in its data folder."""
    path = Path(recipe.data.directory) / NAME
    scratch = path.with_name(f".making-{NAME}")
    scratch.write_text(json.dumps(settings(recipe), indent=1) + "\n", encoding="utf-8")
    os.replace(scratch, path)
