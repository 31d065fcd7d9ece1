"""Exit codes and the exception for user errors."""

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
"""Operating-system errors caused by a wrong path."""
_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES, errno.EFBIG, errno.ESTALE)
"""Operating-system errors of a disk, its state and permissions."""


class UserError(Exception):
    """An error the user can correct: one sentence with the wrong value and the remedy; the process exits with 2."""

    def __str__(self) -> str:
        # Half a surrogate pair, which JSON can hold in a key or value that the sentence quotes, fits in no file.
        return super().__str__().encode("utf-8", "backslashreplace").decode("utf-8")


class GracefulStop(Exception):
    """A run received a stop request and has saved its state; starting it again resumes. The process exits with 75."""


class HardwareFault(Exception):
    """A machine computes or stores wrong values: one sentence that names it; the process exits with 74."""


def run_command(main: Callable[[], int | None]) -> None:
    """Run a script's `main` and turn its outcome into an exit code: no traceback for errors of the user or the disk."""
    print_any_text()
    try:
        code = main() or EXIT_DONE
    except UserError as error:
        _report(str(error))
        code = EXIT_USER
    except HardwareFault as fault:
        _report(str(fault))
        code = EXIT_IO
    except BrokenPipeError:
        # The reader of the output has closed it (`... | head`): not an error, and no more output is possible.
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
    """Let standard output and error print any text: characters outside their encoding as escapes such as `\\u6c49`.

    Otherwise one character outside Latin-1 or ASCII would make a finished command fail on such a terminal.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _io_code(error: OSError) -> int:
    """Report an error of the disk or a path and return its exit code; any other error is a bug and is re-raised."""
    missing = error.errno == errno.ENOENT and _of_the_kernel(error.filename)
    if (error.errno in _PATHS or missing) and error.filename is not None:
        _report(f"{error.strerror}: {error.filename}; correct the path")
        return EXIT_USER
    # Without a path, EPERM is from a signal or a setting for which the process lacks permission.
    if error.errno not in _DISKS and not (error.errno == errno.EPERM and error.filename is not None):
        raise error
    written = error.filename2 or error.filename or "while writing"  # the target of a copy
    _report(f"{error.strerror}: {written}; free or repair it and run the command again")
    return EXIT_IO


def _of_the_kernel(path: object) -> bool:
    """Whether the path is under /proc or /sys, where creating a file fails with ENOENT although the parent exists."""
    return os.path.realpath(os.fsdecode(path) if isinstance(path, bytes) else str(path)).startswith(("/proc/", "/sys/"))


def _report(sentence: str, kind: str = "error") -> None:
    """Print one sentence on standard error, once per job: all ranks detect the same error, so only the first reports it."""
    given, sentence = os.environ.get("RANK", ""), as_typed(sentence)
    rank = int(given) if given.isdecimal() else 0  # the error may be that it is not a number
    if rank:
        # If rank 0 has failed too, the launcher ends this process while it waits here.
        time.sleep(2.0)
        sentence = f"rank {rank}: {sentence}"
    print(f"{kind}: {sentence}", file=sys.stderr, flush=True)
    _tell_torchrun(f"{kind}: {sentence}")


def _tell_torchrun(sentence: str) -> None:
    """The sentence for torchrun's failure summary, which appears below its traceback and is the part that users read."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        failure = {"message": sentence, "extraInfo": {"py_callstack": sentence, "timestamp": str(int(time.time()))}}
        with contextlib.suppress(OSError), open(path, "w", encoding="utf-8") as file:
            json.dump({"message": failure}, file)
