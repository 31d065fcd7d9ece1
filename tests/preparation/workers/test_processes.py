"""Worker processes start from any script."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import os
from concurrent.futures import ProcessPoolExecutor
from dist_metaxlm.preparation.workers.processes import WORKERS, end_with_parent
print("script")
with ProcessPoolExecutor(1, WORKERS, end_with_parent) as pool:
    assert pool.submit(os.getppid).result() == os.getpid()
with WORKERS.Pool(1) as pool:
    assert pool.map(abs, [-3]) == [3]
print(__name__)
"""


def test_a_script_without_a_guard_runs_once(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SCRIPT)
    for command in (["mine.py"], ["-m", "mine"]):
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
        )
        assert (done.returncode, done.stdout) == (0, "script\n__main__\n"), done.stderr
