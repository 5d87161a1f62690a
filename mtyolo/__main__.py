"""`python -m mtyolo`: the command line."""

from mtyolo.cli.main import run

if __name__ == "__main__":
    run()
