"""Facts that all ranks of a job must share: package versions and digests of recipe, tokenizer and data."""

from __future__ import annotations

import hashlib
from importlib import metadata
from pathlib import Path

from dist_metaxlm.recipe.load import dump_recipe
from dist_metaxlm.recipe.schema import Recipe
from dist_metaxlm.storage.digest import digest_or_missing

PACKAGES = (
    "torch",
    "deepspeed",
    "megatron-core",
    "transformers",
    "sentencepiece",
    "numpy",
    "mpi4py",
    "pydantic",
    "safetensors",
)
_SAME_VERSION = "install the same version on all nodes"
_REMEDIES = {
    "code": "check out the same commit on all nodes",
    "recipe": "copy the recipe file to all nodes",
    "tokenizer": "copy data.directory to all nodes",
    "data": "copy data.directory to all nodes",
}
SHARED_DATA = tuple(_REMEDIES)
"""Checksums that must be the same on all nodes."""


def remedy(name: str) -> str:
    """The remedy if nodes differ in a checksum or in the version of a package."""
    return _REMEDIES.get(name, _SAME_VERSION)


def facts_to_share(recipe: Recipe) -> dict[str, str]:
    """Facts that must be equal on all ranks; otherwise the ranks would train on different data or models.

    Few enough for each rank to read at its start; the preflight's `collect` checks more.
    """
    data = Path(recipe.data.directory)
    return {
        **{name: package_version(name) for name in PACKAGES[:3]},
        "recipe": recipe_digest(recipe)[:12],
        "tokenizer": digest_or_missing(data / "tokenizer.model")[:12],
        "data": digest_or_missing(data / "store" / "manifest.json")[:12],
    }


def recipe_digest(recipe: Recipe) -> str:
    return hashlib.sha256(dump_recipe(recipe).encode()).hexdigest()


def package_version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
