"""Every block of the how-to pages is run in its order, each page in its own folder; every link of the docs leads somewhere."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from typer.testing import CliRunner

import prunus
from prunus.cli import app
from prunus.errors import PrunusError
from prunus.graph import OP_RULES

DOCS = Path(__file__).parents[1] / "docs"
FOUND = [*sorted((DOCS / "how_to").glob("*.md")), *sorted(DOCS.glob("quickstart*.md")), DOCS / "exactness.md", DOCS / "errors.md"]
LONG = {"detection", "yolo"}
NEEDS = {"lightning": "lightning", "transformers": "transformers", "yolo": "ultralytics"}
"""Packages that a page is about."""
PAGES = [pytest.param(path, marks=pytest.mark.slow if path.stem in LONG else ()) for path in FOUND]


def blocks(path: Path) -> list[tuple[str, str]]:
    return re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text(encoding="utf-8"), re.M | re.S)


@pytest.mark.pages
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_blocks(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if path.stem in NEEDS:
        warnings.simplefilter("ignore")  # what other libraries say about themselves; pytest puts the filters back
    pytest.importorskip(NEEDS.get(path.stem, "plotly"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    rules = dict(OP_RULES)
    namespace: dict[str, object] = {}
    try:
        for kind, text in blocks(path):
            if kind == "python":
                exec(compile(text, path.name, "exec"), namespace)
            elif kind == "toml":
                (tmp_path / text.splitlines()[0].removeprefix("# ")).write_text(text, encoding="utf-8")
            elif kind == "sh":
                for line in (line for line in text.splitlines() if line.startswith("prunus ")):
                    done = CliRunner().invoke(app, shlex.split(line, comments=True)[1:])
                    assert done.exit_code == 0, f"{line}\n{done.stderr}"
            else:
                assert kind == "text", f"a block of {kind or 'no kind'} isn't run"
    finally:
        OP_RULES.clear()
        OP_RULES.update(rules)


@pytest.mark.parametrize("path", sorted(DOCS.rglob("*.md")), ids=lambda path: str(path.relative_to(DOCS)))
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        target, _, anchor = link.partition("#")
        if target.startswith(("http:", "https:")):
            continue
        page = path if not target else (path.parent / target)
        assert page.exists(), f"{link}: there is no {page.name}"
        if anchor and page.suffix == ".md":
            titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
            assert anchor in {_anchor(title) for title in titles}, f"{link}: no such heading"


def _anchor(title: str) -> str:
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title.lower()).strip())


@pytest.mark.pages
def test_the_site_builds_strictly(tmp_path: Path) -> None:
    """Every page is in the navigation, every public name has its docstring there."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "-q", "-d", str(tmp_path / "site")]
    done = subprocess.run(
        command, cwd=DOCS.parent, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    site = tmp_path / "site"
    assert (site / "figures" / "latency.html").exists() and (site / "figures" / "tickets.png").exists()
    reference = (site / "api" / "index.html").read_text(encoding="utf-8") + (site / "api" / "surgery.html").read_text(
        encoding="utf-8"
    )
    undocumented = {"ALLOCATORS", "CRITERIA", "OP_RULES", "__version__"}
    missing = [name for name in prunus.__all__ if name not in undocumented and not re.search(rf'id="[\w.]+\.{name}"', reference)]
    assert not missing
    for page in site.rglob("*.html"):
        assert not re.search(r'(?:src|href)="https?://fonts', page.read_text(encoding="utf-8")), page.name


def test_the_page_of_errors_names_all() -> None:
    titles = set(re.findall(r"^## (\w+)$", (DOCS / "errors.md").read_text(encoding="utf-8"), re.M))
    errors = {name for name, kind in vars(prunus.errors).items() if isinstance(kind, type) and issubclass(kind, PrunusError)}
    assert titles == errors - {"PrunusError"}


def test_the_list_for_language_models_names_pages() -> None:
    for link in re.findall(r"\]\(([^)]+)\)", (DOCS / "llms.txt").read_text(encoding="utf-8")):
        assert (DOCS / link).is_file(), link
