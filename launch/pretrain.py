#!/usr/bin/env python3
"""Pretrain one phase of a recipe: the script of `metaxlm pretrain`."""

from dist_metaxlm.cli.pretrain import main
from dist_metaxlm.errors import run_command

if __name__ == "__main__":
    run_command(main)
