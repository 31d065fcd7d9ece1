"""How this process was started, so that messages and help show commands in the form that the user typed.

Messages and examples are written in the form of an installed package: `metaxlm prepare`, `deepspeed --module
dist_metaxlm.cli.pretrain`, `torchrun -m dist_metaxlm.cli.pretrain`. If a process was started by a script of `launch/`
they are printed as `python launch/prepare.py`, `deepspeed launch/pretrain.py`, `torchrun launch/pretrain.py`.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

SCRIPTS = {
    "init": "init.py",
    "pretrain": "pretrain.py",
    "prepare": "prepare.py",
    "evaluate": "evaluate.py",
    "convert": "convert.py",
    "plan": "plan.py",
    "benchmark": "benchmark.py",
    "study": "study.py",
    "launch": "nodes/start.py",
    "preflight": "nodes/preflight.py",
}
"""The commands, and the script of `launch/` that is the same command in a checkout."""
MODULE = "dist_metaxlm.cli"
"""Package of the commands: `python -m dist_metaxlm.cli.prepare` is `metaxlm prepare`."""

_NAMES = "|".join(SCRIPTS)
_REQUEST = re.compile(r"metaxlm pretrain (?=--(?:phase|run_dir)\b)")
_MODULE = re.compile(rf"(?:--module|-m) {re.escape(MODULE)}\.({_NAMES})\b")
_JOB = re.compile(rf"(?<=-- )({_NAMES})\b")
_COMMAND = re.compile(rf"\bmetaxlm ({_NAMES})\b")


def own_command(name: str) -> list[str]:
    """The words that start the command `name` in a separate process, with this Python and this package.

    With -P the working directory, which may contain other packages, is not searched for modules.
    """
    return [sys.executable, "-P", "-m", f"{MODULE}.{name}"]


def command_of(words: tuple[str, ...]) -> tuple[str | None, int]:
    """The command of this package that the words after `python` start (None for others), and its number of words."""
    if words[:1] == ("-m",):
        name = words[1].removeprefix(f"{MODULE}.") if len(words) > 1 else ""
        return (name if name in SCRIPTS else None), 2
    names = {Path(script).name: name for name, script in SCRIPTS.items()}
    return (names.get(Path(words[0]).name) if words else None), 1


def program(name: str) -> str:
    """Name of the command `name` in usage and errors: `prepare.py` if its script was started, else `metaxlm prepare`."""
    return f"metaxlm {name}" if _script_folder() is None else Path(SCRIPTS[name]).name


def as_typed(text: str) -> str:
    """`text` with its commands in the form that the user of this process typed."""
    folder = _script_folder()
    if folder is not None:
        text = _MODULE.sub(lambda match: _script(folder, match[1]), text)
        text = _JOB.sub(lambda match: _script(folder, match[1]), text)
        text = _REQUEST.sub(f"deepspeed {_script(folder, 'pretrain')} ", text)
        return _COMMAND.sub(lambda match: f"python {_script(folder, match[1])}", text)
    if _started_by_module("pretrain"):
        return _REQUEST.sub(f"deepspeed --module {MODULE}.pretrain ", text)
    return text


def _script(folder: Path, name: str) -> str:
    return str(folder / SCRIPTS[name])


def _script_folder() -> Path | None:
    """The folder of the scripts, as the user can type it, if one of them was started."""
    path = Path(sys.argv[0]) if sys.argv and sys.argv[0] else None
    if path is None or path.name not in {Path(script).name for script in SCRIPTS.values()}:
        return None
    absolute = Path(os.path.abspath(path))
    folder = absolute.parent.parent if absolute.parent.name == "nodes" else absolute.parent
    if folder.name != "launch":
        return None
    return Path(os.path.relpath(folder)) if folder.is_relative_to(Path.cwd()) else folder


def _started_by_module(name: str) -> bool:
    """Whether Python was started with `-m dist_metaxlm.cli.NAME`, as by `deepspeed --module`."""
    return bool(sys.argv) and Path(sys.argv[0]).parts[-3:] == (*MODULE.split("."), f"{name}.py")
