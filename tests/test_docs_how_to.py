"""Every block of the how-to pages is run in its order, each page in its own folder; every link of the docs leads somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from prunus.cli import app
from prunus.graph import OP_RULES

DOCS = Path(__file__).parents[1] / "docs"
PAGES = [*sorted((DOCS / "how_to").glob("*.md")), *sorted(DOCS.glob("quickstart*.md")), DOCS / "exactness.md", DOCS / "errors.md"]


def blocks(path: Path) -> list[tuple[str, str]]:
    return re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text(encoding="utf-8"), re.M | re.S)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_blocks(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("plotly")
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
