"The command line; `main` is the program."
from metakd.cli.shell import main

__all__ = ["main"]
