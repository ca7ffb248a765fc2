"""``python -m prunus``: the program, where its script isn't on the path."""

from prunus.cli import app

app(prog_name="prunus")
