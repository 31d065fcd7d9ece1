#!/usr/bin/env python3
"""Run a study: the script of `metaxlm study`."""

from dist_metaxlm.cli.study import main
from dist_metaxlm.errors import run_command

if __name__ == "__main__":
    run_command(main)
