"""Two-phase pretraining of cross-lingual encoders.

The names of the Python API (docs/python-api.md) are imported on first use, so that `import dist_metaxlm` and
the help of a command are fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dist_metaxlm.api import evaluate, export, load_recipe, plan, prepare, pretrain

    __version__: str

__all__ = ["evaluate", "export", "load_recipe", "plan", "prepare", "pretrain"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("dist-metaxlm")
    if name in __all__:
        return getattr(import_module("dist_metaxlm.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
