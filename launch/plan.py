#!/usr/bin/env python3
"""Show the layouts of a recipe on a cluster: the script of `metaxlm plan`."""

from dist_metaxlm.cli.plan import main
from dist_metaxlm.errors import run_command

if __name__ == "__main__":
    run_command(main)
