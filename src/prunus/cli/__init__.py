"""The command line: what ``prunus --help`` lists."""

from prunus.cli import bench, laboratory, latency, networks, recipes, recovery, search, sensitivity, tickets
from prunus.cli.app import app

__all__ = ["app", "bench", "laboratory", "latency", "networks", "recipes", "recovery", "search", "sensitivity", "tickets"]
