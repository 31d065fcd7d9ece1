"""Which stream a line of the log goes to, what stands before it, and from which level on it is written."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator

import pytest

from dist_metaxlm import logs
from dist_metaxlm.errors import UserError

LOGGER = logging.getLogger("dist_metaxlm.somewhere")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    root = logging.getLogger("dist_metaxlm")
    handlers, level, propagate = root.handlers[:], root.level, root.propagate
    yield
    root.handlers[:], root.propagate = handlers, propagate
    root.setLevel(level)


def speak() -> None:
    LOGGER.debug("detail")
    LOGGER.info("news")
    LOGGER.warning("trouble")


def test_one_process_writes_plain_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(logs.VARIABLE, raising=False)
    logs.set_up()
    logs.set_up()  # does not double the lines
    speak()
    assert capsys.readouterr() == ("news\n", "warning: trouble\n")


def test_ranks_write_time_rank_and_level(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(logs.VARIABLE, raising=False)
    time = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    logs.set_up(0, 4)
    speak()
    out, err = capsys.readouterr()
    assert re.fullmatch(f"{time} news\n", out)
    assert re.fullmatch(f"{time} warning: trouble\n", err)
    logs.set_up(3, 4)
    speak()
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(f"{time} rank 3 warning: trouble\n", err)


def test_standard_output_stays_free_for_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(logs.VARIABLE, raising=False)
    logs.set_up(all_to_stderr=True)
    speak()
    assert capsys.readouterr() == ("", "news\nwarning: trouble\n")


@pytest.mark.parametrize(
    ("level", "rank", "out", "err"),
    [
        ("debug", 0, "debug: detail\nnews\n", "warning: trouble\n"),
        ("debug", 1, "rank 1 debug: detail\nrank 1: news\n", "rank 1 warning: trouble\n"),
        ("warning", 0, "", "warning: trouble\n"),
    ],
)
def test_the_level_is_the_environments(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, level: str, rank: int, out: str, err: str
) -> None:
    monkeypatch.setenv(logs.VARIABLE, level)
    logs.set_up(rank)
    speak()
    assert capsys.readouterr() == (out, err)


def test_an_unknown_level_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(logs.VARIABLE, "loud")
    with pytest.raises(UserError, match=r"DIST_METAXLM_LOG=loud is not a log level; set it to one of debug, info, warning"):
        logs.set_up()
