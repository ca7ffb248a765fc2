"""The command line: ``prunus inspect | prune | evaluate | criteria | run | demo | recipes``."""

from prunus.cli import networks, recipes
from prunus.cli.app import app

__all__ = ["app", "networks", "recipes"]
