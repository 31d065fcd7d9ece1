"""The DeepSpeed version that this package was written for (docs/deepspeed.md lists the workarounds)."""

from __future__ import annotations

import importlib.metadata
import warnings

WRITTEN_FOR = "0.19.8"
"""The release whose behaviour was read and measured."""


def check_version(installed: str | None = None) -> None:
    """Warn if another minor version of DeepSpeed is installed: its behaviour may differ from the workarounds here."""
    installed = installed or importlib.metadata.version("deepspeed")
    if installed.split(".")[:2] != WRITTEN_FOR.split(".")[:2]:
        warnings.warn(
            f"DeepSpeed {installed} is installed, but the workarounds were written for {WRITTEN_FOR}; run the tests in "
            f"tests/deepspeed_adapter and tests/distributed first, or install deepspeed=={WRITTEN_FOR}",
            stacklevel=2,
        )
