"""The command line: ``prunus inspect | prune | evaluate | criteria | score | compare | run | demo | recipes``."""

from prunus.cli import laboratory, networks, recipes
from prunus.cli.app import app

__all__ = ["app", "laboratory", "networks", "recipes"]
