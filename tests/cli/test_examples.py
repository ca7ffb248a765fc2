"""Examples of the help: every command has one, and all of them are command lines that it takes."""

from __future__ import annotations

import shlex

import pytest
import typer
from typer.testing import CliRunner

import prunus
from prunus.cli import app
from prunus.cli.examples import EXAMPLES

COMMANDS = typer.main.get_command(app).commands


def test_every_command_has_examples():
    assert set(EXAMPLES) == set(COMMANDS)


@pytest.mark.parametrize("line", [line for lines in EXAMPLES.values() for line in lines])
def test_an_example_is_a_command_line_that_its_command_takes(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program, name, *arguments = shlex.split(line.partition(" > ")[0])
    assert program == "prunus" and line in EXAMPLES[name]
    try:
        COMMANDS[name].make_context(name, arguments)
    except Exception as error:  # of typer's own click or of click itself, by its version
        if "does not exist" not in str(error):  # no such file here, but everything else is understood
            raise


def test_a_wrong_option_in_an_example_would_be_noticed():
    with pytest.raises(Exception, match="No such option"):
        COMMANDS["prune"].make_context("prune", ["cifar:resnet20", "--no-such-option"])


def test_the_help_shows_them():
    shown = CliRunner().invoke(app, ["recover", "--help"], env={"COLUMNS": "200"}).output
    assert "Examples:" in shown and EXAMPLES["recover"][0] in " ".join(shown.split())


def test_the_version_is_shown():
    shown = CliRunner().invoke(app, ["--version"])
    assert shown.exit_code == 0 and shown.output == f"prunus {prunus.__version__}\n"
