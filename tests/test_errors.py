from __future__ import annotations

import errno
import subprocess
import sys

import pytest

SCRIPT = "from dist_metaxlm.errors import *\ndef main():\n    {body}\nrun_command(main)"


@pytest.mark.parametrize(("body", "code", "words"), [
    ("return None", 0, ""),
    ("raise UserError('seed -1 is negative; give 0 or more')", 2, "error: seed -1 is negative; give 0 or more"),
    ("raise StoppedInGoodOrder('saved; run it again')", 75, "stopped: saved; run it again"),
    ("raise KeyboardInterrupt", 130, "stopped: by Ctrl-C"),
    (f"raise OSError({errno.ENOSPC}, 'No space left on device', 'runs/x')", 74,
     "error: No space left on device: runs/x; free or repair it and run the command again"),
    (f"raise OSError({errno.ENOTDIR}, 'Not a directory', 'recipe.yaml/x')", 2,
     "error: Not a directory: recipe.yaml/x; correct the path"),
    ("raise ValueError('ours')", 1, "ValueError: ours"),
    (f"raise OSError({errno.EINVAL}, 'Invalid argument')", 1, "Traceback"),
])
def test_exit_codes_and_what_is_said(body: str, code: int, words: str) -> None:
    result = subprocess.run([sys.executable, "-c", SCRIPT.format(body=body)], capture_output=True, text=True, check=False)
    assert result.returncode == code
    assert words in result.stderr
    assert ("Traceback" in result.stderr) == (code == 1)


def test_a_reader_that_leaves_is_no_error() -> None:
    script = SCRIPT.format(body="print('x\\n' * 1000000)")
    pipeline = '"$0" -c "$1" | head -1; exit ${PIPESTATUS[0]}'
    result = subprocess.run(["bash", "-c", pipeline, sys.executable, script], capture_output=True, text=True, check=False)
    assert result.returncode == 0
    assert "Traceback" not in result.stderr
