"""The command line: what ``prunus --help`` lists."""

from prunus.cli import (
    bench,
    benchmark,
    export,
    laboratory,
    latency,
    networks,
    recipes,
    recovery,
    report,
    search,
    sensitivity,
    tickets,
)
from prunus.cli.app import app
from prunus.cli.examples import show_examples

show_examples(app)

__all__ = [
    "app",
    "bench",
    "benchmark",
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
