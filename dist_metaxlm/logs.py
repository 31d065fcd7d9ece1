"""Log output: the first rank's to standard output, warnings of every rank to standard error.

Modules log to `logging.getLogger(__name__)`; a command calls `set_up` once. A single process writes plain messages. With
several ranks each writes `2026-11-30 18:52:10 rank 3 warning: message`, so that the logs of nodes can be merged and sorted.
"""

from __future__ import annotations

import logging
import os
import sys

from dist_metaxlm.errors import UserError

VARIABLE = "DIST_METAXLM_LOG"
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING}
_ROOT = "dist_metaxlm"


class _Handler(logging.Handler):
    """Writes to the current streams of `sys` at each record; a caller may have redirected them."""

    def __init__(self, rank: int, ranks: int, all_to_stderr: bool) -> None:
        super().__init__()
        self._rank, self._ranks, self._all_to_stderr = rank, ranks, all_to_stderr
        self._time = logging.Formatter("%(asctime)s", "%Y-%m-%d %H:%M:%S")

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        level = "" if record.levelno == logging.INFO else record.levelname.lower()
        words = [word for word in (f"rank {self._rank}" if self._rank else "", level) if word]
        prefix = f"{self._time.format(record)} " if self._ranks > 1 else ""
        prefix += f"{' '.join(words)}: " if words else ""
        to_stderr = self._all_to_stderr or record.levelno >= logging.WARNING
        try:
            print(f"{prefix}{record.getMessage()}", file=sys.stderr if to_stderr else sys.stdout, flush=True)
        except ValueError:  # the stream was closed, at exit
            self.handleError(record)


def set_up(rank: int = 0, ranks: int = 1, all_to_stderr: bool = False) -> None:
    """Send this process's log to its terminal; a second call replaces the first.

    The first rank writes from the level in `DIST_METAXLM_LOG` on (`debug`, `info` or `warning`; `info` if not set),
    the other ranks write warnings, or everything with `debug`.

    Args:
        all_to_stderr: keep standard output free, for a command with `--json`.

    Raises:
        UserError: when the variable has another value.
    """
    name = os.environ.get(VARIABLE) or "info"
    if name not in LEVELS:
        raise UserError(f"{VARIABLE}={name} is not a log level; set it to one of {', '.join(LEVELS)}, or unset it")
    logger = logging.getLogger(_ROOT)
    logger.handlers[:] = [_Handler(rank, ranks, all_to_stderr)]
    logger.setLevel(LEVELS[name] if rank == 0 or name == "debug" else logging.WARNING)
    logger.propagate = False
