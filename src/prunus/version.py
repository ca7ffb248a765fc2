"""The version of this package, which files and reports carry."""

VERSION = "0.1.0"
