"""`python -m dist_metaxlm.kernels.aot`: the table of kernels compiled ahead of time."""

from dist_metaxlm.errors import run_command
from dist_metaxlm.kernels.aot.compile import main

if __name__ == "__main__":
    run_command(main)
