"""`python -m dist_metaxlm COMMAND ...` is `metaxlm COMMAND ...`."""

from dist_metaxlm.cli.main import run

if __name__ == "__main__":
    run()
