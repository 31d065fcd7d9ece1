"""Exit codes and the one exception that a user's mistake raises."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import sys
import time
from collections.abc import Callable

from dist_metaxlm.invocation import as_typed

EXIT_DONE = 0
EXIT_BUG = 1
EXIT_USER = 2
EXIT_IO = 74
EXIT_AGAIN = 75
EXIT_INTERRUPTED = 130

_PATHS = (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP)
"""What an operating system says of a path that cannot be meant."""
_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES, errno.EFBIG, errno.ESTALE)
"""What it says of a disk, its state and its rights."""


class UserError(Exception):
    """A mistake the user can mend: one sentence naming the value at fault and the remedy; the process exits with 2."""


class GracefulStop(Exception):
    """A run was asked to stop and has saved all it did; starting it again goes on from there. The process exits with 75."""


def run_command(main: Callable[[], int | None]) -> None:
    """Run a script's `main` and turn its outcome into an exit code: no traceback for what a user or a disk caused."""
    print_any_text()
    try:
        code = main() or EXIT_DONE
    except UserError as error:
        _report(str(error))
        code = EXIT_USER
    except BrokenPipeError:
        # The reader of our output has gone (`... | head`): nothing is wrong, and nothing more can be said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = EXIT_DONE
    except GracefulStop as stop:
        _report(str(stop), "stopped")
        code = EXIT_AGAIN
    except KeyboardInterrupt:
        _report("by Ctrl-C; what was finished is kept, run the same command again", "stopped")
        code = EXIT_INTERRUPTED
    except OSError as error:
        code = _io_code(error)
    sys.stdout.flush()
    sys.stderr.flush()
    raise SystemExit(code)


def print_any_text() -> None:
    """Let standard output and error print any text: what their encoding lacks as an escape such as `\\u6c49`.

    Else one character that a Latin-1 or ASCII terminal lacks would end a command whose work is done.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _io_code(error: OSError) -> int:
    """Say what the disk or a path did, and its exit code; what is neither is a bug and is raised again."""
    missing = error.errno == errno.ENOENT and _of_the_kernel(error.filename)
    if (error.errno in _PATHS or missing) and error.filename is not None:
        _report(f"{error.strerror}: {error.filename}; correct the path")
        return EXIT_USER
    # Without a path, EPERM is a signal or a setting that we had no right to ask for.
    if error.errno not in _DISKS and not (error.errno == errno.EPERM and error.filename is not None):
        raise error
    written = error.filename2 or error.filename or "while writing"  # the second one of a copy
    _report(f"{error.strerror}: {written}; free or repair it and run the command again")
    return EXIT_IO


def _of_the_kernel(path: object) -> bool:
    """Whether a path is where nobody can make a file and the kernel says that the folder, which is there, is not."""
    return os.path.realpath(os.fsdecode(path) if isinstance(path, bytes) else str(path)).startswith(("/proc/", "/sys/"))


def _report(sentence: str, kind: str = "error") -> None:
    """One sentence on standard error, once a job: all ranks find the same mistake, and the first rank's word is enough."""
    rank, sentence = int(os.environ.get("RANK") or 0), as_typed(sentence)
    if rank:
        # Where rank 0 has failed too, the launcher ends this process while it waits here.
        time.sleep(2.0)
        sentence = f"rank {rank}: {sentence}"
    print(f"{kind}: {sentence}", file=sys.stderr, flush=True)
    _tell_torchrun(f"{kind}: {sentence}")


def _tell_torchrun(sentence: str) -> None:
    """The sentence for torchrun's summary of a failure, which stands below its own traceback and is all that is read."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        failure = {"message": sentence, "extraInfo": {"py_callstack": sentence, "timestamp": str(int(time.time()))}}
        with contextlib.suppress(OSError), open(path, "w", encoding="utf-8") as file:
            json.dump({"message": failure}, file)
