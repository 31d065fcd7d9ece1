#!/usr/bin/env python3
"""Evaluate phases of a run: the script of `metaxlm evaluate`."""

from dist_metaxlm.cli.evaluate import main
from dist_metaxlm.errors import run_command

if __name__ == "__main__":
    run_command(main)
