"""The command line: ``prunus inspect | prune | run | evaluate | criteria | demo``."""

from prunus.cli.commands import app

__all__ = ["app"]
