"""Writes checkpoints in the background, so that training never waits for the disk.

One thread per rank copies the rank's tensors to host memory, sends pieces to their writers, and writes, hashes and
synchronises files; rank 0's thread writes the manifest and renames the folder. Training continues at once, because weights
and moments change only when AdamW updates them: a hook delays the next update until the copy is complete, which the
forward and backward passes before it usually hide (as in CheckFreq, FAST 2021). The thread has its own gloo group, because
two threads that issue collectives on one group would not agree on their order across ranks.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType

import torch
import torch.distributed as dist

from dist_metaxlm import failpoints
from dist_metaxlm.deepspeed_adapter import optimizer_state
from dist_metaxlm.deepspeed_adapter.engine_protocol import Engine
from dist_metaxlm.deepspeed_adapter.weight_check import check_saved_weights
from dist_metaxlm.errors import GracefulStop
from dist_metaxlm.liveness import operations
from dist_metaxlm.objectives.model import OWN
from dist_metaxlm.parallel.process_group import all_reduce, rank, stay_on_device, world_size
from dist_metaxlm.storage.tensor_file import FinishedFile, TensorFile
from dist_metaxlm.training.checkpointing.agreement import check_finite, together
from dist_metaxlm.training.checkpointing.commit import commit_folder, unfinished_folder, withdraw_unfinished
from dist_metaxlm.training.checkpointing.disk_space import require_room
from dist_metaxlm.training.checkpointing.gather_plan import KINDS, GatherPlan
from dist_metaxlm.training.checkpointing.manifest import Facts, step_folder, write_manifest
from dist_metaxlm.training.checkpointing.pruning import prune
from dist_metaxlm.training.checkpointing.rank_files import (
    PATIENCE,
    files_of,
    name_of_job,
    sealed_by_all,
    tensor_key,
    write_progress,
)
from dist_metaxlm.training.checkpointing.replicated import ReplicatedTensors
from dist_metaxlm.training.loop.guard_log import RollBack

logger = logging.getLogger(__name__)
Copies = dict[tuple[int, int], torch.Tensor]
Contents = dict[str, tuple[Sequence[int], Callable[[], torch.Tensor]]]
"""Of a file: name, shape and getter of each tensor."""


class CheckpointSaver:
    """Saves checkpoints of one engine under `root`; use it in a `with` block, whose end waits for the last save.

    In the background it keeps host memory for this rank's share of weights and moments (see `save_in_background`).
    """

    def __init__(
        self,
        root: Path,
        engine: Engine,
        keep: int,
        background: bool,
        keep_best: bool = False,
        keep_steps: Collection[int] = (),
    ) -> None:
        """Collective. Checkpoints older than the newest `keep` are removed after each save; with `keep_best` the one with
        the best held-out loss stays, and those of `keep_steps` always do."""
        self._root, self._engine, self._keep, self._keep_best = root, engine, keep, keep_best
        self._keep_steps = frozenset(keep_steps)
        self._group = dist.new_group(backend="gloo", timeout=PATIENCE) if world_size() > 1 else None
        self._pieces = GatherPlan(engine, self._group)
        self._memory = getattr(engine.module, "memory", None)
        self._replicas = ReplicatedTensors(self._memory.large() if self._memory else {}, rank(), world_size())
        self._bytes, self._job = self._bytes_of_all(), name_of_job(self._group)
        self.stalled = 0.0
        """Seconds that training has waited for saving: in `save`, and before the next update."""
        self.may_commit: Callable[[], None] = lambda: None
        """Called on rank 0 before a checkpoint is committed; raises UserError if another job has taken over."""
        self._pending: Future[None] | None = None
        self._copied = threading.Event()
        self._copied.set()
        self._hook = optimizer_state.before_each_update(engine, self.wait_for_copy)
        if self._memory is not None:
            self._memory.before_change = self.wait_for_copy
        self._thread = ThreadPoolExecutor(1, "checkpoint", initializer=stay_on_device()) if background else None
        if background:
            self._pieces.keep_buffers()
            self._replicas.keep_buffers()
        self._stream = torch.cuda.Stream() if background and torch.cuda.is_available() else None

    def save(self, facts: Facts, progress: dict[str, torch.Tensor]) -> None:
        """Save the checkpoint of `facts["step"]`; in the background, this returns at once.

        Every rank calls it after the same step; it waits for a save that is still in progress.

        Raises:
            OSError: when the disk is full (in the background: from the previous save); the unfinished folder is removed and
            older checkpoints are untouched.
            UserError: if the checkpoint would hold other weights than the model's, or another job writes into the folder.
            RollBack: as `wait`.
        """
        begun = time.perf_counter()
        self.wait()
        check_saved_weights(self._engine)
        facts = {**facts, "adam_step": optimizer_state.adam_step(self._engine), "ranks": world_size()}
        optimizer = optimizer_state.optimizer_name(self._engine)
        if optimizer != "adamw":
            facts["optimizer"] = optimizer
        live = self._pieces.live()
        small = self._memory.small() if self._memory is not None else {}
        progress = {name: value.detach().cpu().clone() for name, value in {**progress, **small}.items()}
        if self._thread is None:
            self._replicas.copy(None)
            self._write({key: piece.to("cpu", torch.float32) for key, piece in live.items()}, facts, progress)
        else:
            if self._stream is not None:
                self._stream.wait_stream(torch.cuda.current_stream())
            self._copied.clear()
            self._pending = self._thread.submit(self._copy_and_write, live, facts, progress)
        self.stalled += time.perf_counter() - begun

    def finished(self, device: torch.device) -> bool:
        """Whether all ranks have completed the current save (collective while there is one)."""
        if self._pending is None:
            return True
        return bool(all_reduce(torch.tensor([int(self._pending.done())], device=device), "min").item())

    def check(self, device: torch.device) -> None:
        """Raise the error of a save that has ended (collective while there is one), without waiting for the next save.

        Raises:
            OSError, RollBack: as `wait`.
        """
        if self.finished(device):
            self.wait()

    def wait(self) -> None:
        """Wait for the current save.

        Raises:
            OSError: if it failed, on all ranks.
            RollBack: if a tensor has a value that is not finite, on all ranks; the checkpoint is not committed.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def __enter__(self) -> CheckpointSaver:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        operations.enter(operations.SAVING)
        try:
            self.wait()
        except Exception as failure:
            if error is None or isinstance(error, GracefulStop | RollBack):
                raise
            logger.warning("the checkpoint that was being saved is lost too: %s", failure)
        self._hook.remove()
        if self._memory is not None:
            self._memory.before_change = lambda: None
        if self._thread is not None:
            self._thread.shutdown()
        if self._group is not None and (error is None or isinstance(error, RollBack)):
            dist.destroy_process_group(self._group)

    def wait_for_copy(self) -> None:
        """Wait until everything that an update changes has been copied."""
        if self._copied.is_set():
            return
        begun = time.perf_counter()
        operations.enter(operations.SAVING)
        self._copied.wait()
        operations.enter(operations.UPDATING)
        self.stalled += time.perf_counter() - begun

    def _copy_and_write(self, live: Copies, facts: Facts, progress: dict[str, torch.Tensor]) -> None:
        operations.begin_background()
        try:
            try:
                self._pieces.copy(live, self._stream)
                self._replicas.copy(self._stream)
            finally:
                self._copied.set()
            self._write(self._pieces.kept, facts, progress)
        finally:
            operations.end_background()

    def _write(self, copies: Copies, facts: Facts, progress: dict[str, torch.Tensor]) -> None:
        """From copies to a committed checkpoint (collective over the group of the saving threads)."""
        target = step_folder(self._root, facts["step"])
        temporary = unfinished_folder(target, self._job)
        files: dict[str, FinishedFile] = {}

        def begin() -> None:
            failpoints.reach("saving.begin", facts["step"])
            withdraw_unfinished(self._root, self._job)  # of a save that failed
            require_room(self._root, self._bytes)
            temporary.mkdir(parents=True)

        def commit() -> None:
            write_manifest(temporary, facts, all_files)
            failpoints.reach("saving.before_commit", facts["step"])
            commit_folder(temporary, target, facts["step"], self.may_commit)
            failpoints.reach("saving.after_commit", facts["step"])

        def write() -> None:
            files.update(self._write_files(temporary, copies, progress))
            failpoints.reach("saving.after_files", facts["step"])

        try:
            together(begin if rank() == 0 else None, self._group, target)
            together(write, self._group, target)
            all_files = sealed_by_all(files, self._group)
            together(commit if rank() == 0 else None, self._group, target)
        except Exception:
            if rank() == 0:
                shutil.rmtree(temporary, ignore_errors=True)
                self.may_commit()  # the reason if another job has taken over and removed the folder
            raise
        if rank() == 0:
            prune(self._root, facts["step"], self._keep, self._keep_steps, self._keep_best)

    def _write_files(self, folder: Path, copies: Copies, progress: dict[str, torch.Tensor]) -> dict[str, FinishedFile]:
        """Write this rank's files; after an error it still receives the others' pieces, so that no rank waits."""
        files: dict[str, FinishedFile] = {}
        failure: Exception | None = None
        sent = self._pieces.send(copies)
        for name, contents in zip(files_of(rank()), self._contents(copies), strict=True):
            file: TensorFile | None = None
            for number, (key, (_, fetch)) in enumerate(contents.items()):
                tensor = fetch()
                if failure is not None:
                    continue
                try:
                    check_finite(key, tensor)
                    if number == 0:
                        file = TensorFile(folder / name, {key: shape for key, (shape, _) in contents.items()})
                    assert file is not None
                    file.append(tensor)
                except Exception as error:
                    failure = error
            try:
                if file is not None and failure is None:
                    files[name] = file.finalize()
            except Exception as error:
                failure = error
            if file is not None:
                file.close_quietly()
        for work in sent:
            work.wait()
        if failure is not None:
            raise failure
        if rank() == 0:
            files["progress-00000.safetensors"] = write_progress(folder, progress)
        return files

    def _contents(self, copies: Copies) -> list[Contents]:
        """The content of each of `files_of(rank())`: weights, objectives' weights, moments, replicated tensors.

        Pieces are received in this order, in which the others send them.
        """
        pieces, kept = self._pieces, self._replicas.copies

        def of(kinds: Iterable[int], encoder: bool, objectives: bool) -> Contents:
            return {
                tensor_key(pieces.names[index], kind): (pieces.shape(index), partial(pieces.whole, kind, index, copies))
                for kind in kinds
                for index in pieces.written
                if (objectives if pieces.names[index].startswith(OWN) else encoder)
            }

        return [
            of((0,), True, False),
            of((0,), False, True),
            of(range(1, len(KINDS)), True, True),
            {name: (shape, partial(kept.__getitem__, name)) for name, shape in self._replicas.shapes.items()},
        ]

    def _bytes_of_all(self) -> int:
        """Bytes of the tensors that all ranks write in a save (collective)."""
        elements = len(KINDS) * sum(torch.Size(self._pieces.shape(index)).numel() for index in self._pieces.written)
        elements += sum(shape.numel() for shape in self._replicas.shapes.values())
        total = torch.tensor([4 * elements])
        if self._group is not None:
            dist.all_reduce(total, group=self._group)
        return int(total)
