"""Building the token store: shards are encoded by all workers and ranks, joined, described and committed by one rename.

The store is byte for byte the same for any number of workers, ranks and interruptions.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypedDict, cast

from dist_metaxlm.data.tokenizer import Tokenizer
from dist_metaxlm.data.tokens import manifest
from dist_metaxlm.data.tokens.store import CorpusEntry
from dist_metaxlm.errors import UserError
from dist_metaxlm.preparation.store.encoding import Job, ShardReport, encode_shards, join_shards
from dist_metaxlm.preparation.store.shards import Files, Shard, plan
from dist_metaxlm.preparation.store.writer import token_dtype
from dist_metaxlm.preparation.workers.communicator import Ranks
from dist_metaxlm.preparation.workers.processes import WORKERS, available_cores, end_with_parent
from dist_metaxlm.preparation.workers.progress import Log, reporting
from dist_metaxlm.storage.atomic import sync_tree

SHARDS = ".shards"
"""Folder of the finished shards next to the store; the next run continues from the shards of a killed one."""

Task = Callable[..., None]


class Contents(TypedDict):
    """The corpora of a store."""

    text: dict[str, CorpusEntry]
    bitext: dict[str, CorpusEntry]


def make_store(
    directory: Path,
    text: Files,
    bitext: Files,
    about: Mapping[str, object],
    max_pair_tokens: int,
    log: Log,
    workers: int | None,
    ranks: Ranks,
    weights: Mapping[str, float] | None = None,
) -> None:
    """Write `directory`/store from the corpus files; `about` and the `weights` of text corpora go into its manifest.

    `workers`: processes of this rank, by default its share of the machine's cores. Called on all ranks at once.
    Errors: UserError for bad text and for a worker that the system killed; OSError for the disk.
    """
    tokenizer = Tokenizer.load(directory / "tokenizer.model")
    folder, making = directory / SHARDS, directory / ".making-store"
    shards = plan(text, bitext)
    run = ranks.share(uuid.uuid4().hex)
    with ranks.together():
        if ranks.first:
            for old in folder.glob("claims-*"):
                shutil.rmtree(old)
            (folder / f"claims-{run}").mkdir(parents=True)
            making.mkdir()
    job = Job(shards, folder, directory / "tokenizer.model", directory / "heldout", max_pair_tokens, run)
    workers = workers or max(1, available_cores() // ranks.local_size)
    with ExitStack() as stack:
        if ranks.first:
            stack.callback(shutil.rmtree, making, ignore_errors=True)
            stack.enter_context(reporting(lambda: _done(job), sum(shard.size for shard in shards), log))
        with _team(min(workers, len(shards)), job) as team:
            with ranks.together():
                team(encode_shards, job)
            with ranks.together():
                team(join_shards, job, making, tokenizer.vocab_size)
        with ranks.together():
            if ranks.first:
                content = {
                    "tokenizer_hash": tokenizer.hash,
                    "vocab_size": tokenizer.vocab_size,
                    "dtype": token_dtype(tokenizer.vocab_size).__name__,
                    **about,
                    **_contents(job, text, bitext, weights or {}),
                }
                _commit(job, making, directory / "store", content, [*text, *bitext])


@contextmanager
def _team(workers: int, job: Job) -> Iterator[Callable[..., None]]:
    """A function that runs a task in all workers and returns when all have finished; this process is one of them."""
    if workers == 1:
        yield lambda task, *arguments: task(*arguments)
        return
    with ProcessPoolExecutor(workers - 1, WORKERS, end_with_parent) as pool:

        def run(task: Task, *arguments: object) -> None:
            futures = [pool.submit(task, *arguments) for _ in range(workers - 1)]
            try:
                task(*arguments)
                for future in futures:
                    future.result()
            except BrokenProcessPool:
                raise UserError(
                    "a worker process was killed, usually for lack of memory; give fewer --workers and run "
                    "metaxlm prepare again, it continues from the finished shards"
                ) from None
            except BaseException:
                job.stop()
                raise

        yield run


def _done(job: Job) -> int:
    """Bytes of text in finished shards."""
    finished = {entry.name for entry in os.scandir(job.folder) if entry.name.endswith(".json")}
    return sum(shard.size for shard in job.shards if f"{shard.number:06d}.json" in finished)


def _contents(job: Job, text: Files, bitext: Files, weights: Mapping[str, float]) -> Contents:
    reports: list[ShardReport] = [
        json.loads(job.place(shard).with_suffix(".json").read_text(encoding="utf-8")) for shard in job.shards
    ]
    content: Contents = {"text": {}, "bitext": {}}
    for kind, unit, sequences, files in (("text", "documents", 1, text), ("bitext", "pairs", 2, bitext)):
        for name, paths in files.items():
            parts = [(shard, report) for shard, report in zip(job.shards, reports, strict=True) if shard.name == name]
            _refuse_empty(parts, unit)
            dropped: dict[str, int] = {}
            for _, report in parts:
                for why, count in report["dropped"].items():
                    dropped[why] = dropped.get(why, 0) + count
            totals = {
                "sequences": sum(report["sequences"] for _, report in parts),
                "tokens": sum(report["tokens"] for _, report in parts),
                "bytes": sum(report["bytes"] for _, report in parts),
            }
            entry: dict[str, object] = {
                "language": parts[0][0].language,
                unit: totals["sequences"] // sequences,
                "tokens": totals["tokens"],
                "bytes": totals["bytes"],
                "source": [{"file": path.name, "bytes": path.stat().st_size} for path in paths],
                "dropped": dict(sorted(dropped.items())),
            }
            (content["text"] if kind == "text" else content["bitext"])[name] = cast(CorpusEntry, entry)
    for name in weights.keys() & content["text"].keys():
        content["text"][name]["weight"] = weights[name]
    return content


def _refuse_empty(parts: list[tuple[Shard, ShardReport]], unit: str) -> None:
    seen: dict[Path, int] = {}
    for shard, report in parts:
        seen[shard.path] = seen.get(shard.path, 0) + report["seen"]
    for path, count in seen.items():
        if not count:
            raise UserError(f"{path} holds no {unit}, only blank lines; put text into it or take it out of the recipe")


def _commit(job: Job, making: Path, place: Path, content: Mapping[str, object], names: Iterable[str]) -> None:
    files: dict[str, manifest.FileEntry] = {}
    for name in names:
        files |= json.loads((job.folder / f"join-{name}.json").read_text(encoding="utf-8"))
    manifest.write(making, content, files)
    sync_tree(making)
    os.rename(making, place)
    shutil.rmtree(job.folder)
