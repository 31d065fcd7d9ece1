#!/usr/bin/env python3
"""Prepare the data of a recipe: the script of `metaxlm prepare`."""

from dist_metaxlm.cli.prepare import main
from dist_metaxlm.errors import run_command

if __name__ == "__main__":
    run_command(main)
