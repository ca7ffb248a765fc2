"""Write docs/methods/: a page for every criterion, from its docstring, its row of the table and its measured figures.

``python docs/make_methods.py`` (or ``make docs-methods``) writes all pages anew and takes away those of criteria that are gone.
A docstring gives the page its text; in it, indented blocks are the formula, and the paragraph that begins with ``When to use:``
says that.
"""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from prunus.files import write_atomically
from prunus.importance.collectors import COLLECTORS
from prunus.importance.criteria import CRITERIA
from prunus.importance.row import COMMON, CriterionRow

DOCS = Path(__file__).parent
FOLDER = DOCS / "methods"
MEASURED = DOCS.parent / "benchmarks" / "results" / "criteria_digits.json"
GENERATED = (
    "<!-- Written by docs/make_methods.py from docstrings and measurements: change those, then run `make docs-methods`. -->"
)
NOT_SAID = "not described yet"
NOT_MEASURED = "not measured yet"

IMAGES, LOSS, GRADIENTS = "images", "images, labels and a loss", "images, labels, a loss and its gradients"
NEEDS: Mapping[str, str] = {
    **dict.fromkeys(
        ("apoz", "activation_mean", "activation_std", "activation_max", "entropy", "feature_map_rank", "lasso_entries"), IMAGES
    ),
    **dict.fromkeys(
        (
            "loss_changes",
            "raced_loss_changes",
            "removal_order",
            "signed_removal_order",
            "half_damages",
            "particle_survival",
        ),
        LOSS,
    ),
}
"""What collecting a kind of evidence takes, where that is less than gradients."""
FAMILIES: Mapping[str, str] = {
    "weights": "weights",
    "gradients": "gradients",
    "activations": "activations",
    "functionality": "functions",
}
"""Module of a criterion's function -> its family; anything else is measured by trying."""
SHARED_OPTIONS: Mapping[str, str] = {
    "normalisation": "scores of each layer divided by their mean, maximum or L2 norm, or replaced by ranks; layers then compare",
    "macs_penalty": "taken off the score for every million multiply-adds that go with the channel, after normalisation",
    "layer_adaptive": "squared scores over the sum of those that aren't smaller (LAMP), so that layers compare",
    "greedy": "kernels on inputs that count as removed don't count: True with `removed=plan`, or a share of every earlier layer",
    "members": "how scores of several weights (or norms, or readers) of a group become one",
}


@dataclass(frozen=True)
class Described:
    """A docstring in parts: ``text`` is Markdown, with the formula where it stands. ``formula`` and ``when`` may be empty."""

    summary: str
    text: tuple[str, ...]
    formula: str
    when: str


def described(function: Callable[..., Any]) -> Described:
    """The parts of a criterion's docstring."""
    head, *blocks = re.split(r"\n\s*\n", inspect.cleandoc(function.__doc__ or ""))
    text: list[str] = []
    formulas: list[str] = []
    when = ""
    for block in blocks:
        if block.startswith("    "):
            formulas.append(textwrap.dedent(block))
            text.append(f"```text\n{formulas[-1]}\n```")
        elif block.startswith("When to use:"):
            when = _flowing(block.removeprefix("When to use:"))
        else:
            text.append(_flowing(block))
    return Described(_flowing(head), tuple(text), "\n\n".join(formulas), when[:1].upper() + when[1:])


def _flowing(block: str) -> str:
    return " ".join(block.replace("``", "`").split())


# -- parts of a page


def needs(row: CriterionRow) -> str:
    """What the criterion must be given, in words."""
    if not row.needs:
        return "nothing but the network"
    words = {NEEDS.get(kind, GRADIENTS) for kind in row.needs}
    return max(words, key=(IMAGES, LOSS, GRADIENTS).index)


def evidence(row: CriterionRow) -> Iterator[str]:
    """A line for every kind of evidence, with what its collector says of it."""
    for kind in sorted(row.needs):
        collector = COLLECTORS[kind]
        function = collector.func if isinstance(collector, partial) else collector
        says = _flowing((function.__doc__ or "").strip().split("\n\n")[0])
        yield f"- evidence `{kind}`" + (f": {says}" if says else "")


def options(row: CriterionRow, leave_out: frozenset[str] = frozenset()) -> str:
    """A table of options, their values and what holds without them."""
    lines = ["| option | values | default |", "|---|---|---|"]
    for name, values in row.options.items():
        if name not in leave_out:
            lines.append(f"| `{name}` | {_cell(values)} | {_default(row, name)} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def _default(row: CriterionRow, option: str) -> str:
    if option in row.variants:
        return next(str(value) for value, other in row.variants[option].items() if _same(other, row))
    if option in row.settings:
        return str(row.bound.get(option, inspect.signature(row.function).parameters[option].default))
    return str(getattr(row, option))


def _same(one: CriterionRow, other: CriterionRow) -> bool:
    return one.function is other.function and one.needs == other.needs


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def scale(row: CriterionRow) -> str:
    """Whether scores of different layers may be compared."""
    if not row.comparable:
        return "of one layer only: rank there, or give `normalisation`"
    how = f" ({row.normalisation}-normalised within each)" if row.normalisation != "none" else ""
    return "one for all layers" + how


def body(row: CriterionRow) -> Iterator[str]:
    """What is said of a row and of a variant of it alike."""
    said = described(row.function)
    yield said.summary
    yield from said.text
    if not said.formula:
        yield f"Formula: {NOT_SAID}."
    yield f"**When to use.** {said.when or NOT_SAID}"


# -- measurements

COLUMNS: Mapping[str, str] = {
    "spearman_global": "as they are",
    "spearman_l2": "L2-normalised",
    "spearman_within": "within layers, mean",
    "seconds": "seconds",
}
"""Figure of the laboratory -> its column."""


def measured() -> dict[str, dict[str, Any]]:
    """The laboratory's figures on digits: name -> figure of `COLUMNS` -> mean and std; empty where nobody has measured yet."""
    if not MEASURED.exists():
        return {}
    found = json.loads(MEASURED.read_text(encoding="utf-8")).get("criteria", {})
    if isinstance(found, Mapping):
        return {name: dict(row) for name, row in found.items()}
    return {row["name"]: _figures(row) for row in found if "spearman" in row}


def _figures(row: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a row of the laboratory's result."""
    ranks = row["spearman"]
    names = {"spearman_global": "raw", "spearman_l2": "l2", "spearman_within": "within"}
    return {"seconds": row.get("seconds"), **{figure: ranks.get(name) for figure, name in names.items()}}


def figures_of(name: str, figures: Mapping[str, Any]) -> dict[str, Any]:
    """The rows of a criterion: its own, and those of its variants, which begin with its name."""
    return {key: row for key, row in figures.items() if re.match(r"\w*", key)[0] == name}  # type: ignore[index]


def _figure(row: Mapping[str, Any], name: str) -> str:
    found = row.get(name)
    mean, deviation = (found.get("mean"), found.get("std")) if isinstance(found, Mapping) else (found, None)
    if mean is None:
        return "-"
    form = ".2g" if name == "seconds" else ".2f"
    return f"{mean:{form}}" + ("" if deviation is None else f" ± {deviation:{form}}")


def measurement(name: str, figures: Mapping[str, Any]) -> str:
    """The measured rows of a criterion, as a table."""
    rows = figures_of(name, figures)
    if not rows:
        return f"{NOT_MEASURED.capitalize()}."
    lines = [f"| criterion | {' | '.join(COLUMNS.values())} |", "|---|" + "---:|" * len(COLUMNS)]
    lines += [f"| {_cell(key)} | {' | '.join(_figure(row, column) for column in COLUMNS)} |" for key, row in rows.items()]
    about = (
        "Rank correlation (Spearman) with the oracle on a small network for handwritten digits: over all layers, with the scores "
        "as they are or L2-normalised within each layer, and the mean of the layers' own; then the time that scoring took. Mean "
        "± standard deviation over seeds, from `benchmarks/results/criteria_digits.json`."
    )
    return "\n".join([about, "", *lines])


# -- pages


def page(row: CriterionRow, figures: Mapping[str, Any]) -> str:
    """The page of one criterion."""
    parts = [GENERATED, f"# {row.name}", *body(row)]
    twin = next((other.name for other in CRITERIA.values() if _same(other, row)), row.name)
    if twin != row.name:
        parts.append(f"It is [{twin}]({twin}.md) under another name.")
    facts = [f"- paper: {row.paper}", f"- needs: {needs(row)}", *evidence(row), f"- scale: {scale(row)}"]
    parts.append("\n".join(facts))
    parts += ["## Options", options(row), "Options that many criteria share are explained in [the list](README.md#options)."]
    for option, values in row.variants.items():
        for value, other in values.items():
            if not _same(other, row):
                parts += [f"## With `{option}={value!r}`", *body(other)]
                if needs(other) != needs(row):
                    parts.append(f"It needs {needs(other)}.")
                parts.append(options(other, frozenset({*COMMON, *row.settings})))
    return _joined([*parts, "## Measured", measurement(row.name, figures)])


def index(figures: Mapping[str, Any]) -> str:
    """The list of all criteria."""
    lines = ["| criterion | family | what | needs | layers compare | measured |", "|---|---|---|---|---|---:|"]
    for row in CRITERIA.values():
        family = FAMILIES.get(row.function.__module__.rpartition(".")[2], "trials")
        what, own = _cell(described(row.function).summary), figures.get(row.name)
        found = NOT_MEASURED if own is None else f"{_figure(own, 'spearman_global')}, {_figure(own, 'spearman_l2')}"
        compare = "yes" if row.comparable else "normalised"
        lines.append(f"| [`{row.name}`]({row.name}.md) | {family} | {what} | {needs(row)} | {compare} | {found} |")
    shared = ["| option | what it does |", "|---|---|", *(f"| `{name}` | {what} |" for name, what in SHARED_OPTIONS.items())]
    about = (
        "Each gives every channel an importance, higher = keep: `prunus.score(model, graph, NAME, data=..., **options)`, "
        "`prune.criterion` in a recipe. A weighted sum such as `l1 + 0.5*taylor` is a criterion, too. *Measured* is the rank "
        "correlation with the oracle over all layers of a small network for handwritten digits: of the scores as they are, and "
        "L2-normalised within each layer."
    )
    return _joined([GENERATED, "# Criteria of importance", about, "\n".join(lines), "## Options", "\n".join(shared)])


def _joined(parts: list[str]) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"


def pages() -> dict[str, str]:
    """File name -> content, of the whole folder."""
    figures = measured()
    return {"README.md": index(figures), **{f"{row.name}.md": page(row, figures) for row in CRITERIA.values()}}


def main() -> None:
    """Write what is new, take away what is old."""
    FOLDER.mkdir(exist_ok=True)
    found = pages()
    for old in FOLDER.glob("*.md"):
        if old.name not in found:
            old.unlink()
    for name, text in found.items():
        write_atomically(FOLDER / name, text.encode())
    print(f"{len(found)} pages in {FOLDER}")


if __name__ == "__main__":
    main()
