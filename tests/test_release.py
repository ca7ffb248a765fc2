"""The files of a release: sdist and wheel are built, hold what they must, and the wheel works where it is installed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow

WORK = """
import sys
from importlib.metadata import version
from pathlib import Path
import torch
from torch import nn
import prunus
assert Path(prunus.__file__).is_relative_to(sys.prefix), f"{prunus.__file__} isn't that of {sys.prefix}"
assert version("prunus") == sys.argv[1]

def network():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()

model = network()
result = prunus.prune(model, torch.randn(2, 3, 9, 9), prunus.Budget(macs=0.5))
assert result.verification.passed and result.model[0].out_channels == 4
prunus.save(result.model, result.record, "small.prunus")
again = prunus.load("small.prunus", network())
x = torch.randn(1, 3, 9, 9)
assert torch.equal(again(x), result.model(x))
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Source distribution and wheel; the wheel is built from the former, as `python -m build` does it."""
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.tar.gz")), next(folder.glob("*.whl"))


def version() -> str:
    found = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)
    assert found is not None
    return found[1]


def test_what_the_files_hold(built: tuple[Path, Path]) -> None:
    sdist, wheel = built
    assert sdist.name == f"prunus-{version()}.tar.gz" and wheel.name == f"prunus-{version()}-py3-none-any.whl"
    inside = set(zipfile.ZipFile(wheel).namelist())
    source = ROOT / "src"
    expected = {p.relative_to(source).as_posix() for p in source.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert expected <= inside, "sources, recipes, the report's page and py.typed"
    assert {name.split("/")[0] for name in inside} == {"prunus", f"prunus-{version()}.dist-info"}
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {"README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml", "tests/test_release.py", "src/prunus/py.typed"} <= names
    assert not {name for name in names if name.startswith(("benchmarks", "docs"))}


def test_the_wheel_works_in_a_fresh_environment(built: tuple[Path, Path], tmp_path: Path) -> None:
    """Fresh but for PyTorch and the other dependencies, which are those of this one."""
    place = tmp_path / "fresh"
    venv.create(place, with_pip=True)
    python = place / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    ask = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    packages = Path(subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True).stdout.strip())
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
    install = [
        python,
        "-m",
        "pip",
        "install",
        "-q",
        "--disable-pip-version-check",
        "--no-deps",
        "--no-index",
        "--force-reinstall",
    ]
    subprocess.run([*install, str(built[1])], check=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*command: object) -> str:
        done = subprocess.run(
            [str(part) for part in command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    run(python, "-c", WORK, version())
    prunus = python.parent / "prunus"
    assert "bench" in run(prunus, "--help")
    assert "cats_dogs" in run(prunus, "recipes")
    run(prunus, "prune", "cifar:resnet8", "--budget", "macs=0.5", "--out", tmp_path / "resnet8.prunus")
    assert (tmp_path / "resnet8.prunus").is_file()
