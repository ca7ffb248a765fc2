"""What the site needs beyond mkdocs: folders in its navigation, notebooks, and pages from outside of docs/ (figures, files)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
SHOWN = {".md", ".svg", ".png"}
AT_ROOT = ("SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md")
OUTSIDE = re.compile(r"\[([^\]]*)\]\((?:\.\./)+(?:benchmarks/results/)?([\w.-]+)\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """A folder that the navigation names stands for all of its pages."""

    def expanded(entry: Any) -> Any:
        if isinstance(entry, list):
            return [expanded(item) for item in entry]
        if isinstance(entry, dict):
            return {title: expanded(item) for title, item in entry.items()}
        folder = Path(config.docs_dir) / str(entry)
        if not folder.is_dir():
            return entry
        pages = sorted(folder.glob("*.md"), key=lambda path: (path.name not in ("README.md", "index.md"), path.name))
        return [path.relative_to(config.docs_dir).as_posix() for path in pages]

    config.nav = [*expanded(config.nav), {"Figures": [f"figures/{path.name}" for path in _outside() if path.suffix == ".md"]}]
    return config


def _outside() -> list[Path]:
    results = [path for path in sorted((ROOT / "benchmarks" / "results").iterdir()) if path.suffix in SHOWN]
    return [*results, *(ROOT / name for name in AT_ROOT)]


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Results and root files are pages under figures/, and a notebook is a page beside its file."""
    for path in _outside():
        files.append(File.generated(config, f"figures/{path.name}", abs_src_path=str(path)))
    for path in sorted((Path(config.docs_dir) / "notebook").glob("*.ipynb")):
        files.append(File.generated(config, f"notebook/{path.stem}.md", content=_notebook_page(path)))
    return files


def _notebook_page(path: Path) -> str:
    """The cells of a notebook, with what they print, as Markdown."""
    parts: list[str] = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        parts += [f"```text\n{''.join(output['text']).rstrip()}\n```" for output in cell.get("outputs", [])]
    return "\n\n".join([*parts, f"[This page as a notebook]({path.name})."]) + "\n"


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links that lead out of docs/ lead to those pages; to what isn't on the site (JSON), they become plain text."""
    if page.file.src_uri.startswith("figures/"):
        return markdown.replace("](docs/", "](../").replace("](benchmarks/results/", "](")
    outside = {path.name for path in _outside()}
    up = "../" * page.file.src_uri.count("/")

    def moved(match: re.Match[str]) -> str:
        text, name = match[1], match[2]
        inside = (Path(config.docs_dir) / page.file.src_uri).parent / match[0].partition("](")[2][:-1]
        if inside.exists() and Path(config.docs_dir) in inside.resolve().parents:
            return match[0]
        return f"[{text}]({up}figures/{name})" if name in outside else text

    return OUTSIDE.sub(moved, markdown)
