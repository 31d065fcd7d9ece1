#!/usr/bin/env python3
"""Write a recipe for your own text: the script of `metaxlm init`."""

from dist_metaxlm.cli.init import main
from dist_metaxlm.errors import run_command

if __name__ == "__main__":
    run_command(main)
