"""Exit codes and the one exception that a user's mistake raises."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable

EXIT_DONE = 0
EXIT_BUG = 1
EXIT_USER = 2
EXIT_IO = 74
EXIT_AGAIN = 75


class UserError(Exception):
    """A mistake the user can mend: one sentence naming the value at fault and the remedy; the process exits with 2."""


def run_command(main: Callable[[], int | None]) -> None:
    """Run a script's `main` and turn its outcome into an exit code: no traceback for what a user or a disk caused."""
    try:
        code = main() or EXIT_DONE
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = EXIT_USER
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES):
            raise
        print(f"error: {error.strerror}: {error.filename or 'while writing'}; free or repair it and run the command again",
              file=sys.stderr)
        code = EXIT_IO
    sys.stdout.flush()
    sys.stderr.flush()
    raise SystemExit(code)
