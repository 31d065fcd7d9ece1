"""What the scripts say of arguments that they do not take."""

from __future__ import annotations

import json

import pytest

from dist_metaxlm.command_line import Parser
from dist_metaxlm.errors import UserError


def parser() -> Parser:
    made = Parser(prog="script.py")
    made.add_argument("--size", type=int, choices=(1, 2))
    actions = made.add_subparsers(dest="action", required=True)
    write = actions.add_parser("write")
    write.add_argument("--output", required=True)
    write.add_argument("--job", type=json.loads)
    return made


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("write --output x --sice=3", "script.py has no option --sice, did you mean --size? `script.py --help` lists them"),
        (
            "write --output x --outputs",
            "script.py has no option --outputs, did you mean --output? `script.py --help` lists them",
        ),
        ("write --output x 7", "script.py does not accept 7; `script.py --help` lists its arguments"),
        ("wirte --output x", "action wirte is none of write, did you mean write?"),
        ("--size 3 write --output x", "--size 3 is none of 1, 2"),
        ("write", "script.py write needs --output; `script.py write --help` has examples"),
        ("write --output", "--output: expected one argument; `script.py write --help` lists its arguments"),
        ("write --output x --job {", "--job: invalid loads value: '{'; `script.py write --help` lists its arguments"),
    ],
)
def test_mistakes_are_one_sentence(words: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        parser().parse_args(words.split())
    assert str(caught.value) == sentence


def test_what_is_right_is_parsed() -> None:
    found = parser().parse_args(["--size", "2", "write", "--output", "x"])
    assert (found.size, found.action, found.output) == (2, "write", "x")
