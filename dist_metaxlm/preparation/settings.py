"""The settings that prepared data follow from, kept beside the data so that a recipe that differs is noticed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from dist_metaxlm.errors import UserError
from dist_metaxlm.recipe.schema import Recipe

NAME = "settings.json"
_MADE = ("corpus", "heldout", "tokenizer.model", "store")
"""What is prepared, each from the ones before it."""
_POLICY, _STRICT = "data.reading.on_error", "refuse"
"""Kept only where it is another: data in which nothing was left out are the same under every policy, and older data have
no such field. How much may be left out (`max_skipped`) changes nothing in what was made."""
_USED_BY = {"data.heldout_strings": "heldout", "model.vocab_size": "tokenizer.model", "data.max_pair_tokens": "store"}
"""Settings that nothing before this one follows from; those of the tokenizer are its own, all others the corpus's."""

_BEFORE = {"data.tokenizer.normalisation": "nmt_nfkc", _POLICY: _STRICT}
"""Settings that older data do not name -> what they were made with."""


def settings(recipe: Recipe) -> dict[str, Any]:
    """The settings that the prepared data follow from, flat: recipe field -> value."""
    flat: dict[str, Any] = {"model.vocab_size": recipe.model.vocab_size}
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


def _said(sources: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Sources of a language without the fields that a recipe leaves empty."""
    return {name: {field: value for field, value in source.items() if value is not None} for name, source in sources.items()}


def check_settings(recipe: Recipe) -> None:
    """Raise UserError naming the first field whose value differs from the one the data were made with.

    What is not made yet may still change: a vocabulary that is too large for the text costs no second cleaning.
    """
    directory = Path(recipe.data.directory)
    path = directory / NAME
    if not path.is_file():
        return
    try:
        made = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise UserError(
            f"{path} is damaged, so nobody knows what the data in {directory} were made with; delete that "
            "folder and run metaxlm prepare again, or put the file back"
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


def _difference(field: str, before: Any, now: Any) -> tuple[str, Any, Any]:
    """(field, value before, value now) where two values differ first: of a hundred languages the one that was added."""
    if isinstance(before, dict) and isinstance(now, dict):
        key = next(key for key in {**before, **now} if before.get(key) != now.get(key))
        return _difference(f"{field}.{key}" if key else field, before.get(key), now.get(key))
    return field, before, now


def write_settings(recipe: Recipe) -> None:
    """Keep the recipe's settings in its data folder."""
    path = Path(recipe.data.directory) / NAME
    scratch = path.with_name(f".making-{NAME}")
    scratch.write_text(json.dumps(settings(recipe), indent=1) + "\n", encoding="utf-8")
    os.replace(scratch, path)
