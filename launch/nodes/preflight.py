#!/usr/bin/env python3
"""Check the nodes of a hostfile: the script of `metaxlm preflight`."""

from dist_metaxlm.cli.preflight import main
from dist_metaxlm.errors import run_command

if __name__ == "__main__":
    run_command(main)
