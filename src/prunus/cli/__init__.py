"""The command line: what ``prunus --help`` lists."""

from prunus.cli import laboratory, networks, recipes, recovery, search, sensitivity, tickets
from prunus.cli.app import app

__all__ = ["app", "laboratory", "networks", "recipes", "recovery", "search", "sensitivity", "tickets"]
