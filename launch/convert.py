#!/usr/bin/env python3
"""Write or read a Hugging Face folder: the script of `metaxlm convert`."""

from dist_metaxlm.cli.convert import main
from dist_metaxlm.errors import run_command

if __name__ == "__main__":
    run_command(main)
