from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = "import os\nfrom dist_metaxlm.errors import *\ndef main():\n    {body}\nrun_command(main)"


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ("return None", 0, ""),
        ("raise UserError('seed -1 is negative; give 0 or more')", 2, "error: seed -1 is negative; give 0 or more"),
        ("raise GracefulStop('saved; run it again')", 75, "stopped: saved; run it again"),
        ("raise KeyboardInterrupt", 130, "stopped: by Ctrl-C"),
        (
            f"raise OSError({errno.ENOSPC}, 'No space left on device', 'runs/x')",
            74,
            "error: No space left on device: runs/x; free or repair it and run the command again",
        ),
        (
            f"raise OSError({errno.ENOSPC}, 'No space left on device', 'data/a', None, 'runs/b')",
            74,
            "error: No space left on device: runs/b; free",
        ),
        (
            f"raise OSError({errno.ENOTDIR}, 'Not a directory', 'recipe.yaml/x')",
            2,
            "error: Not a directory: recipe.yaml/x; correct the path",
        ),
        (
            "open('loop/a', 'w') if not os.symlink('loop', 'loop') else 0",
            2,
            "error: Too many levels of symbolic links: loop/a",
        ),
        ("os.mkdir('/proc/runs')", 2, "error: No such file or directory: /proc/runs; correct the path"),
        (
            f"raise PermissionError({errno.EPERM}, 'Operation not permitted', 'runs/x')",
            74,
            "error: Operation not permitted: runs/x; free or repair it and run the command again",
        ),
        (f"raise PermissionError({errno.EPERM}, 'Operation not permitted')", 1, "Traceback"),
        ("open('not/there')", 1, "Traceback"),
        ("raise ValueError('ours')", 1, "ValueError: ours"),
        (f"raise OSError({errno.EINVAL}, 'Invalid argument')", 1, "Traceback"),
    ],
)
def test_exit_codes_and_what_is_said(body: str, code: int, words: str, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(body=body)], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert result.returncode == code
    assert words in result.stderr
    assert ("Traceback" in result.stderr) == (code == 1)


def test_a_reader_that_leaves_is_no_error() -> None:
    script = SCRIPT.format(body="print('x\\n' * 1000000)")
    pipeline = '"$0" -c "$1" | head -1; exit ${PIPESTATUS[0]}'
    result = subprocess.run(["bash", "-c", pipeline, sys.executable, script], capture_output=True, text=True, check=False)
    assert result.returncode == 0
    assert "Traceback" not in result.stderr


def test_torchrun_shows_the_sentence_in_its_summary(tmp_path: Path) -> None:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    file = tmp_path / "error.json"
    subprocess.run(
        [sys.executable, "-c", SCRIPT.format(body="raise UserError('seed -1 is negative; give 0 or more')")],
        env={**os.environ, "TORCHELASTIC_ERROR_FILE": str(file)},
        capture_output=True,
        check=False,
    )
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=2, error_file=str(file))
    assert "error: seed -1 is negative; give 0 or more" in str(ChildFailedError("pretrain.py", {0: failure}))
