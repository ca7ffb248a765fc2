"""The command line: ``prunus inspect | prune | evaluate | criteria | methods | score | compare | sensitivity | run | demo |
recipes``."""

from prunus.cli import laboratory, networks, recipes, sensitivity
from prunus.cli.app import app

__all__ = ["app", "laboratory", "networks", "recipes", "sensitivity"]
