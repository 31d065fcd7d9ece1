"""Finished parts of an evaluation on disk: an interrupted one goes on after the last task, seed, language or epoch.

Each task on an encoder has a folder whose name contains a digest of everything its figures depend on: weights, tokenizer,
description of the task, settings and examples. If any of them changes, the folder is another one, and nothing old is read.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dist_metaxlm.errors import UserError
from dist_metaxlm.evaluation.resume.scratch import scratch_folder
from dist_metaxlm.reporting.metrics import read_json, write_json

RESULT = "result"
"""Name of the part that has the whole result of a task."""
_UNREAD = (".md", ".bin", ".h5", ".msgpack", ".onnx", ".lock")
"""Endings of files in a model's folder that are not opened if safetensors exist."""


class Parts:
    """Finished parts of one task on one encoder; without a folder nothing is kept."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder

    def read(self, name: str) -> Any | None:
        """The contents of a part; None if it is not finished. Errors: UserError if the file is damaged."""
        return None if self.folder is None else read_json(self.folder / f"{name}.json")

    def write(self, name: str, value: object) -> None:
        """Keep a finished part, atomically."""
        if self.folder is not None:
            write_json(self.folder / f"{name}.json", value)

    def compute(self, name: str, work: Callable[[], Any]) -> Any:
        """The contents of a part: read if it is finished, else computed by `work` and kept."""
        kept = self.read(name)
        if kept is None:
            kept = work()
            self.write(name, kept)
        return kept

    def clear(self) -> None:
        """Delete all parts, to compute them again."""
        if self.folder is not None:
            for path in self.folder.glob("*.json"):
                path.unlink()
            for path in self.folder.glob("*.checkpoints"):
                shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def checkpoints(self, name: str) -> Iterator[Path]:
        """Folder for the checkpoints of a part; deleted when the block ends, but kept if it is interrupted or fails.

        Without a folder of parts, a temporary one that is always deleted.
        """
        if self.folder is None:
            with scratch_folder("finetune") as folder:
                yield folder
            return
        folder = self.folder / f"{name}.checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Prevent a second evaluation of the same task on the same encoder. Errors: UserError if one is running."""
        if self.folder is None:
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"another process runs the same task on the same encoder in {self.folder}; wait for it, or stop it"
                ) from None
            yield


def parts_of(work: Path | None, encoder: str, task: str, facts: Mapping[str, object]) -> Parts:
    """The parts of a task on an encoder below the folder `work`; None: nothing is kept.

    Args:
        work: folder of all parts.
        encoder: digest of the encoder's files (`folder_digest`).
        task: its name.
        facts: everything else that its figures depend on.
    """
    if work is None:
        return Parts()
    everything = {"version": version("dist-metaxlm"), "encoder": encoder, "task": task, **facts}
    key = hashlib.blake2b(json.dumps(everything, sort_keys=True, default=str).encode(), digest_size=6).hexdigest()
    folder = work / f"{task}-{key}"
    if not (folder / "facts.json").is_file():
        write_json(folder / "facts.json", everything)
    return Parts(folder)


def folder_digest(folder: Path) -> str:
    """Digest of the files of a model's folder: configuration, weights and tokenizer."""
    paths = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    if any(path.suffix == ".safetensors" for path in paths):
        paths = [path for path in paths if path.suffix not in _UNREAD]
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        with path.open("rb") as file:
            digest.update(path.name.encode() + hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()


def examples_digest(*groups: object) -> str:
    """Digest of examples, which are dataclasses of texts."""
    return hashlib.blake2b(repr(groups).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
