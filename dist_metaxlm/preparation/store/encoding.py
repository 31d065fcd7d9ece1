"""Encoding of shards by any number of processes on any number of machines, over a shared folder.

A process claims the next unclaimed shard (by exclusive creation of a file), encodes it and writes its report last, so an
interrupted shard counts as unfinished. A finished shard is reused only if its checksums still match.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, TypeVar

import numpy as np

from dist_metaxlm.data.tokenizer import Tokenizer
from dist_metaxlm.data.tokens import manifest
from dist_metaxlm.preparation.corpus import heldout
from dist_metaxlm.preparation.store import shards
from dist_metaxlm.preparation.store.shards import Shard
from dist_metaxlm.preparation.store.writer import Bytes, pair_arrays, text_arrays, token_dtype, write_index
from dist_metaxlm.storage.digest import file_digest

VERSION = 2
"""Version of the shards' content; shards of another version are not reused."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Job:
    """The parameters of every encoding process; sent to workers."""

    shards: list[Shard]
    folder: Path
    """Folder of the shards."""
    tokenizer: Path
    heldout: Path
    """Folder of the held-out split."""
    max_pair_tokens: int
    run: str
    """Name of this attempt; claims of earlier attempts are ignored."""

    def claim(self, task: str) -> bool:
        """Whether this process is the first to claim `task` in this attempt, and no process has failed."""
        claims = self.folder / f"claims-{self.run}"
        if (claims / "stop").exists():
            return False
        try:
            (claims / task).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def stop(self) -> None:
        """Stop further claims in this attempt."""
        (self.folder / f"claims-{self.run}" / "stop").touch()

    def place(self, shard: Shard) -> Path:
        """Path of a shard's files without suffixes."""
        return self.folder / f"{shard.number:06d}"


def encode_shards(job: Job) -> None:
    """Encode the shards that this process can claim. Errors: UserError for bad text, OSError for the disk."""
    try:
        encoder: _ShardEncoder | None = None
        for shard in job.shards:
            if job.claim(f"{shard.number:06d}"):
                encoder = encoder or _ShardEncoder(job)
                encoder.encode(shard)
    except BaseException:
        job.stop()
        raise


class _ShardEncoder:
    """Tokenizer and held-out keys, read once per process."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._tokenizer = Tokenizer.load(job.tokenizer)
        self._excluded = heldout.read_excluded(job.heldout)
        self._settings = {
            "version": VERSION,
            "tokenizer": self._tokenizer.hash,
            "max_pair_tokens": job.max_pair_tokens,
            "excluded": file_digest(job.heldout / "excluded.json"),
        }

    def encode(self, shard: Shard) -> None:
        """Write the shard's tokens, lengths and report, unless they exist already."""
        place = self._job.place(shard)
        fingerprint = shard.fingerprint(self._settings)
        if intact(place, fingerprint):
            return
        report_path = place.with_suffix(".json")
        report_path.unlink(missing_ok=True)
        dropped: dict[str, int] = {}
        size, seen = Bytes(), _Seen()
        if shard.pairs:
            kept = heldout.training_pairs(seen.count(shards.pairs(shard)), shard.language, self._excluded, dropped)
            arrays = pair_arrays(kept, self._tokenizer, self._job.max_pair_tokens, dropped, size)
        else:
            texts = heldout.training_documents(
                seen.count(shards.documents(shard)), self._excluded.get(shard.language, set()), dropped
            )
            arrays = text_arrays(size.of_texts(texts), self._tokenizer)
        lengths = []
        digest = hashlib.sha256()
        with place.with_suffix(".bin").open("wb") as file:
            for tokens, counts in arrays:
                raw = tokens.tobytes()
                file.write(raw)
                digest.update(raw)
                lengths.append(counts)
        all_lengths = np.concatenate([*lengths, np.zeros(0, np.int32)])
        all_lengths.tofile(place.with_suffix(".len"))
        report: ShardReport = {
            "fingerprint": fingerprint,
            "seen": seen.total,
            "sequences": all_lengths.size,
            "tokens": int(all_lengths.sum()),
            "bytes": size.total,
            "dropped": dropped,
            "bin": digest.hexdigest(),
            "len": hashlib.sha256(all_lengths.tobytes()).hexdigest(),
        }
        scratch = place.with_suffix(".json.part")
        scratch.write_text(json.dumps(report), encoding="utf-8")
        os.replace(scratch, report_path)


class ShardReport(TypedDict):
    """What is known of a finished shard."""

    fingerprint: str
    """Of its text and the settings."""
    seen: int
    """Documents or pairs read."""
    sequences: int
    tokens: int
    bytes: int
    """Of text."""
    dropped: dict[str, int]
    """Reason -> documents or pairs."""
    bin: str
    """SHA-256 of the tokens, and of their lengths."""
    len: str


class _Seen:
    """Counts documents or pairs as they are read."""

    def __init__(self) -> None:
        self.total = 0

    def count(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, counted."""
        for item in items:
            self.total += 1
            yield item


def intact(place: Path, fingerprint: str) -> bool:
    """Whether the shard at `place` was finished from the same text with the same settings, and is unchanged."""
    try:
        report = json.loads(place.with_suffix(".json").read_text(encoding="utf-8"))
        return report["fingerprint"] == fingerprint and all(
            file_digest(place.with_suffix(f".{end}")) == report[end] for end in ("bin", "len")
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def join_shards(job: Job, target: Path, vocab_size: int) -> None:
    """Join the shards of every language (pair) that this process can claim into `target`/<name>.bin/.idx."""
    try:
        for name in dict.fromkeys(shard.name for shard in job.shards):
            if job.claim(f"join-{name}"):
                _join(job, [shard for shard in job.shards if shard.name == name], target / name, token_dtype(vocab_size))
    except BaseException:
        job.stop()
        raise


def _join(job: Job, parts: list[Shard], prefix: Path, dtype: type[np.generic]) -> None:
    hasher = manifest.BlockHasher()
    lengths = []
    with prefix.with_name(f"{prefix.name}.bin").open("wb") as target:
        for shard in parts:
            lengths.append(np.fromfile(job.place(shard).with_suffix(".len"), np.int32))
            with job.place(shard).with_suffix(".bin").open("rb") as source:
                while block := source.read(1 << 20):
                    target.write(block)
                    hasher.update(block)
    index = prefix.with_name(f"{prefix.name}.idx")
    write_index(index, lengths, dtype, 2 if parts[0].pairs else 1)
    about = {f"{prefix.name}.bin": hasher.description(), f"{prefix.name}.idx": manifest.describe_file(index)}
    (job.folder / f"join-{prefix.name}.json").write_text(json.dumps(about), encoding="utf-8")
