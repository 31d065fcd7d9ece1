#!/usr/bin/env python3
"""Start a job on several nodes: the script of `metaxlm launch`."""

from dist_metaxlm.cli.launch import main
from dist_metaxlm.errors import run_command

if __name__ == "__main__":
    run_command(main)
