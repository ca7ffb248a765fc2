"""The command line: what ``prunus --help`` lists."""

from prunus.cli import bench, export, laboratory, latency, networks, recipes, recovery, report, search, sensitivity, tickets
from prunus.cli.app import app

__all__ = [
    "app",
    "bench",
    "export",
    "laboratory",
    "latency",
    "networks",
    "recipes",
    "recovery",
    "report",
    "search",
    "sensitivity",
    "tickets",
]
