"""`python -m dist_metaxlm.cli.benchmark`."""

from dist_metaxlm.cli.benchmark import main
from dist_metaxlm.errors import run_command

if __name__ == "__main__":
    run_command(main)
