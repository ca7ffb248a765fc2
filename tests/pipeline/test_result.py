"""What a result says of how its run was started."""

from __future__ import annotations

import pytest

from prunus.pipeline.result import _command


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["/usr/bin/prunus", "run", "my recipe.toml"], "prunus run 'my recipe.toml'"),
        (["/site-packages/prunus/__main__.py", "run", "digits"], "python -m prunus run digits"),
        (["benchmarks/cats_dogs.py", "--jobs", "2"], "cats_dogs.py --jobs 2"),
    ],
)
def test_the_command_repeats_the_run(arguments: list[str], told: str) -> None:
    assert _command(arguments) == told
