"""Processes for tests that begin where the imports are done: a server imports torch, DeepSpeed and megatron-core and forks.

Every rank of a test is still a process of its own that runs its script as `__main__`. Started in the ordinary way it would
spend five to eight seconds on imports, and the suite starts hundreds. Ranks with even and odd numbers come from two servers,
whose hash seeds differ, so that a set's order is not by accident the same on all ranks. Tests of launchers and of the README
start processes in the ordinary way.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

IMPORTS = (
    "torch",
    "torch.distributed",
    "torch.distributed.checkpoint",
    "safetensors.torch",
    "transformers",
    "dist_metaxlm.training.pretrain",
    "dist_metaxlm.evaluation.probe",
    "dist_metaxlm.evaluation.run",
    "dist_metaxlm.interop.folders",
    "dist_metaxlm.preparation.prepare",
    "deepspeed.runtime.engine",
    "deepspeed.runtime.pipe.engine",
)
ON_A_CPU = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
"""Variables of the processes that tests start."""
READ_BY_IMPORTS = ("TRITON_", "CUDA_", "OMP_", "DS_", "HF_", "TRANSFORMERS_", "ATEN_", "PYTHON", "TORCH_", "LC_", "LANG")
"""Beginnings of the names of variables that a library or the interpreter reads when it is imported."""

OF_A_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_")


def read_by_imports(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(READ_BY_IMPORTS)}


USUAL = read_by_imports({**os.environ, **ON_A_CPU})
"""What the servers import with: the variables of the tests' own process before any test has changed one."""


def without_rank(environment: Mapping[str, str]) -> dict[str, str]:
    """Without the variables of a launcher: /proc shows those that the server was started with, of all ranks it forks."""
    return {name: value for name, value in environment.items() if not name.startswith(OF_A_LAUNCHER)}


class Child:
    """A forked process, with the methods of `subprocess.Popen` that tests use. Its output goes to files."""

    def __init__(self, server: Server, pid: int, args: Sequence[str], outputs: Sequence[str]) -> None:
        self.pid, self.args, self.returncode = pid, list(args), None
        self._server, self._outputs, self._ended = server, outputs, os.pidfd_open(pid)
        self.returncode: int | None

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._ended], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            self.returncode = self._server.ask({"wait": self.pid})
            os.close(self._ended)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        out, err = (Path(name).read_text(encoding="utf-8") for name in self._outputs)
        return out, err

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            signal.pidfd_send_signal(self._ended, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Server:
    """Client side of one server."""

    def __init__(self, environment: Mapping[str, str], hash_seed: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="tests-output-")
        self._started = 0
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**without_rank(environment), "PYTHONHASHSEED": str(hash_seed)},
            start_new_session=True,
        )

    def ask(self, request: dict[str, Any]) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def start(self, args: Sequence[str], cwd: str | Path, environment: Mapping[str, str]) -> Child:
        """Run `python args...`: a script, `-c CODE ...` or `-m MODULE ...`."""
        self._started += 1
        outputs = [f"{self._folder.name}/{self._started}.{name}" for name in ("out", "err")]
        request = {"args": list(args), "cwd": str(cwd), "environment": dict(environment), "outputs": outputs}
        return Child(self, self.ask(request), args, outputs)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._folder.cleanup()


_servers: list[Server] = []


def start(
    args: Sequence[str], cwd: str | Path, environment: Mapping[str, str], rank: int = 0
) -> Child | subprocess.Popen[str]:
    """Run `python args...`, forked, or in the ordinary way where a variable asks for other imports than the servers'."""
    if read_by_imports(environment) != USUAL:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen([sys.executable, *args], cwd=cwd, text=True, env=dict(environment), **pipes)
    if not _servers:  # both begin to import at once
        _servers.extend(Server(environment, hash_seed) for hash_seed in (1, 2))
    return _servers[rank % 2].start(args, cwd, environment)


def close() -> None:
    """End the servers."""
    while _servers:
        _servers.pop().close()


def become(request: dict[str, Any]) -> None:
    """Turn this process, just forked, into what `python args...` would be, and run it."""
    os.setsid()
    for number, name in ((0, os.devnull), (1, request["outputs"][0]), (2, request["outputs"][1])):
        opened = os.open(name, os.O_RDWR | os.O_CREAT, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    first, *rest = request["args"]
    if first == "-c":
        sys.argv, sys.path[0] = ["-c", *rest[1:]], ""
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__", "__builtins__": __builtins__})
    elif first == "-m":
        sys.argv, sys.path[0] = rest, os.getcwd()
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = [first, *rest], str(Path(first).resolve().parent)
        runpy.run_path(first, run_name="__main__")


def serve() -> dict[str, Any] | None:
    """Fork for every request until the input ends; in a child, return what it is to run."""
    from dist_metaxlm.parallel.deepspeed_import import import_deepspeed, without_compiling

    for name in IMPORTS:
        importlib.import_module(name)
    import_deepspeed()
    with without_compiling():
        importlib.import_module("megatron.core.tensor_parallel.layers")
    gc.collect()
    gc.freeze()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
        else:
            answer = os.fork()
            if answer == 0:
                answers.detach()
                return dict(request)
        answers.write(f"{answer}\n")
        answers.flush()
    return None


if __name__ == "__main__":
    job = serve()
    if job is not None:
        become(job)
