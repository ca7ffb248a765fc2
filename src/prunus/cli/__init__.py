"""The command line: what ``prunus --help`` lists."""

from prunus.cli import __all__, app, laboratory, latency, networks, recipes, recovery, search, sensitivity, tickets
