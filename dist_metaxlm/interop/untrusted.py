"""Refusals of what a Hugging Face folder may hold that can run code when it is opened (SECURITY.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dist_metaxlm.errors import UserError

_UNSAFE = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def refuse_unsafe_weights(folder: Path) -> None:
    """Raise UserError for a folder whose only weights are of a format that can run code when it is loaded."""
    unsafe = any(any(folder.glob(pattern)) for pattern in _UNSAFE)
    if unsafe and not any(folder.glob("*.safetensors")):
        raise UserError(
            f"{folder} has only .bin or .pt weights, which can run code when they are loaded; save them "
            "as safetensors with model.save_pretrained(folder)"
        )


def refuse_foreign_kernels(path: Path, config: Any) -> None:
    """Raise UserError if a configuration (the content of `path`) names code of the Hugging Face hub.

    transformers 5 downloads and imports an attention or expert kernel named `OWNER/REPOSITORY`, without asking, where the
    package `kernels` is installed (`transformers/integrations/hub_kernels.py`).
    """
    if isinstance(config, list):
        for item in config:
            refuse_foreign_kernels(path, item)
    if not isinstance(config, dict):
        return
    for field, value in config.items():
        if field.strip("_").startswith(("attn_implementation", "experts_implementation")) and "/" in str(value):
            raise UserError(
                f"{path} names the kernel {str(value)[:80]!r} in {field}, and code from elsewhere is never run; remove the "
                "field"
            )
        refuse_foreign_kernels(path, value)
