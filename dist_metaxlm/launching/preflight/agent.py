"""The part of the preflight that runs on a node: answers requests, one JSON object per line, until its input ends.

Its input is the ssh connection that started it: when that closes, the agent exits and leaves nothing on the node.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from typing import Any

from dist_metaxlm.errors import UserError
from dist_metaxlm.launching.preflight.facts import collect
from dist_metaxlm.launching.preflight.links import measure

MARK = "@preflight "
"""Prefix of an answer; other output of a login shell is ignored."""


def serve() -> None:
    """Answer until standard input ends."""
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        _answer(answers, {"ready": True})
        for line in sys.stdin:
            _answer(answers, _outcome(json.loads(line)))


def _answer(stream: Any, answer: dict[str, Any]) -> None:
    print(MARK + json.dumps(answer), file=stream, flush=True)


def _outcome(question: dict[str, Any]) -> dict[str, Any]:
    kind = question.pop("ask")
    try:
        if kind == "clock":
            return {"clock": time.time()}
        return collect(**question) if kind == "facts" else measure(**question)
    except UserError as error:
        return {"error": str(error)}
    except Exception as error:
        # An exception is reported as this node's answer and does not end the preflight.
        return {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
