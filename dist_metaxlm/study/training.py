"""Train arms of a study side by side, each as `metaxlm pretrain` in its own processes on its own cores and devices.

A small model cannot use a whole machine, and ranks of one arm synchronise at every step; arms are independent.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from types import FrameType
from typing import IO, TypeVar

import torch

from dist_metaxlm.errors import EXIT_AGAIN, GracefulStop, UserError
from dist_metaxlm.invocation import MODULE
from dist_metaxlm.parallel.affinity import cores_by_memory
from dist_metaxlm.recipe.load import dump_recipe
from dist_metaxlm.storage.atomic import write_text
from dist_metaxlm.study.arms import Arm

Item = TypeVar("Item")
Result = TypeVar("Result")
PRETRAIN = ("-m", f"{MODULE}.pretrain")
"""Arguments of Python that run a phase of an arm."""


class Workers:
    """`jobs` threads, each with its share of cores and CUDA devices; SIGTERM and SIGUSR1 are forwarded to the arms.

    Use as a context manager, in the main thread.
    """

    def __init__(self, jobs: int, ranks: int, script: Sequence[str] = PRETRAIN) -> None:
        """Errors: UserError if `jobs` arms of `ranks` processes need more CUDA devices than are available."""
        devices = torch.cuda.device_count()
        if jobs < 1:
            raise UserError(f"--jobs {jobs} is not a number of arms at once; give 1 or more")
        if devices and jobs > 1 and jobs * ranks > devices:
            raise UserError(
                f"--jobs {jobs} with --ranks {ranks} need {jobs * ranks} CUDA devices and this machine has "
                f"{devices}; give --jobs {max(1, devices // ranks)}"
            )
        self._script, self._jobs, self._ranks, self._devices = script, jobs, ranks, devices
        self._slots = iter(range(jobs))
        self._slot = threading.local()
        self._running: dict[int, subprocess.Popen[str]] = {}
        self._lock = threading.Lock()
        self._asked: int | None = None

    def __enter__(self) -> Workers:
        self._before = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGUSR1)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def run(self, items: Sequence[Item], work: Callable[[Item], Result], finished: Callable[[Item, Result], None]) -> None:
        """Call `work` for every item and `finished`, in the main thread, with each result as it arrives.

        The first failure stops the other arms, which save, and is raised.
        """
        with ThreadPoolExecutor(self._jobs, initializer=self._take_slot) as pool:
            futures: dict[Future[Result], Item] = {pool.submit(work, item): item for item in items}
            try:
                for future in as_completed(futures):
                    finished(futures[future], future.result())
            except BaseException:
                self._stop(signal.SIGTERM)
                pool.shutdown(cancel_futures=True)
                raise

    @property
    def device(self) -> torch.device:
        """Device on which the calling thread measures its arm."""
        return torch.device("cuda", self._share(range(self._devices))[0]) if self._devices else torch.device("cpu")

    def train(self, arm: Arm, folder: Path) -> None:
        """Run the arm's phases one after the other; a finished one returns at once, an interrupted one resumes.

        Errors: UserError with the last error of the arm; GracefulStop after a stop signal.
        """
        recipe = folder / "study-recipe.yaml"
        write_text(recipe, dump_recipe(arm.recipe))
        launcher = (
            [sys.executable, "-P"]
            if self._ranks == 1
            else [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(self._ranks)]
        )
        for phase in arm.phases:
            command = [*launcher, *self._script, "--phase", phase, "--recipe", str(recipe), "--run_dir", str(folder)]
            with (folder / "log.txt").open("a", encoding="utf-8") as output:
                code = self._call(command, output)
            if code == EXIT_AGAIN:
                raise GracefulStop(
                    f"the study stopped in arm {arm.name}, phase {phase}, and has saved what it did; "
                    "run the same command again to continue"
                )
            if code:
                raise UserError(
                    f"arm {arm.name}, phase {phase} ended with exit code {code}: "
                    f"{_last_error(folder / 'log.txt')}; see the full log in {folder / 'log.txt'}"
                )

    def _take_slot(self) -> None:
        with self._lock:
            self._slot.number = next(self._slots)
        cores = [core for core in cores_by_memory() if core in os.sched_getaffinity(0)]
        if self._jobs > 1 and len(cores) >= self._jobs:
            os.sched_setaffinity(0, self._share(cores))  # of this thread; its child processes inherit it

    def _share(self, things: Sequence[Item]) -> Sequence[Item]:
        each = len(things) // self._jobs
        return things[self._slot.number * each : (self._slot.number + 1) * each]

    def _call(self, command: Sequence[str], output: IO[str]) -> int:
        """Exit code of a command; EXIT_AGAIN after a stop signal."""
        environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // self._ranks))}
        if self._devices and self._jobs > 1:
            visible = (os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(self._devices)))).split(",")
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(self._share(visible))
        with self._lock:
            if self._asked is not None:
                return EXIT_AGAIN
            process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=environment, encoding="utf-8", errors="replace"
            )
            self._running[process.pid] = process
        try:
            code = process.wait()
        finally:
            with self._lock:
                del self._running[process.pid]
        # torchrun has no exit code of its own for ranks that stopped gracefully
        return EXIT_AGAIN if self._asked is not None else code

    def _stop(self, number: int, frame: FrameType | None = None) -> None:
        # no lock: a signal handler runs in the main thread, which may hold it
        self._asked = number
        for process in list(self._running.values()):
            process.send_signal(number)


def _last_error(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line for line in lines if line.startswith("error: ") or "Error" in line]
    return (errors or lines or ["nothing was printed"])[-1].removeprefix("error: ")
