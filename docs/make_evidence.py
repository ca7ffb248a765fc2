"""Write docs/evidence.md: every claim of benchmarks/claims with what the figures of benchmarks/results say of it.

``python docs/make_evidence.py`` (or ``make docs-evidence``). No verdict and no figure is typed: the page is made of the claims'
files and of the JSON that their commands left.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from prunus.claims import Claim, load_claims
from prunus.files import read_json_file, write_atomically
from prunus.laboratory.verdicts import Verdict, judge, limits, spread
from prunus.recipe_text import read_toml

DOCS = Path(__file__).parent
BENCHMARKS = DOCS.parent / "benchmarks"
PAGE = DOCS / "evidence.md"
FAMILIES = (
    "Oracle and Taylor",
    "Magnitudes and medians",
    "Activations",
    "Functions",
    "Scales of batch norms",
    "ResRep",
    "AOFP",
    "Lasso, least squares, factors",
    "How much to prune where",
    "Tickets, masks, scratch",
    "Transfer of selected widths",
    "Sparse gradients",
    "Beside torch-pruning",
    "Full size",
)
"""Headings, in the order of the page."""
VERDICTS = {
    "reproduced": (
        "every comparison holds in the mean over the runs, and so surely that the one-sided 95 % bound of the mean "
        "holds as well (Student's t over the runs; differences are taken seed by seed)"
    ),
    "not reproduced": (
        "at least one doesn't: the figures say otherwise, or agree in the mean but not beyond the noise of so few runs, "
        "which is then said"
    ),
    "not run here": "there is no result yet, or fewer runs than the claim needs; the command makes it",
    "out of reach here": "neither this project's commands nor the data and machines at hand can try it, for the reason given",
}
"""When a verdict is given."""
HEAD = """<!-- Written by docs/make_evidence.py from benchmarks/claims and benchmarks/results: run `make docs-evidence`. -->

# What the literature claims, tried again

Claims of pruning papers, each tried on the network and the budget named beside it, mostly small ones that a laptop runs in
minutes. Such a trial can show that a mechanism works as told, or that it doesn't carry over to small networks and short
schedules; it can't refute a figure for ImageNet. Where our figures contradict a paper, the verdict says *not reproduced*.

{verdicts}

Figures are means ± standard deviations over *n* runs, of the last epoch, and in brackets the limit that the mean must keep.
CIFAR-10 (JPEG) is never comparable with CIFAR-10. Every claim is a file, `benchmarks/claims/NAME.toml`, and one command in a
clone of this repository tries it again:

```sh
prunus benchmark list
prunus benchmark resrep_lossless --seeds 3
prunus benchmark all --data cifar10=cifar10_jpeg.zip
```

What is up to date isn't run again (a hash of script and arguments lies beside each result); what was stopped goes on. Full-size
claims are recipes with the command for machines with GPUs ([the plan](imagenet_plan.md)).
"""


def page() -> str:
    """The whole page."""
    claims = load_claims(BENCHMARKS / "claims")
    verdicts = {name: judge(claim, BENCHMARKS / "results") for name, claim in claims.items()}
    unknown = {claim.family for claim in claims.values()} - set(FAMILIES)
    assert not unknown, f"add the families {unknown} to FAMILIES"
    told = ["| verdict | it is read from the figures, never typed |", "|---|---|"]
    told += [f"| **{word}** | {when} |" for word, when in VERDICTS.items()]
    parts = [HEAD.format(verdicts="\n".join(told)), *_totals(verdicts)]
    for family in FAMILIES:
        chosen = {name: claim for name, claim in claims.items() if claim.family == family}
        parts += [f"\n## {family}\n", *_table(chosen, verdicts), *_plots(chosen)]
    parts += [
        "\n## Results\n",
        "Numbers in braces are those of the claims' files, data are named below.\n",
        *_results(claims, verdicts),
    ]
    parts += ["\n## Data\n", "`--data NAME=PATH` tells where they are:\n", "| name | what |", "|---|---|"]
    parts += [f"| `{name}` | {what} |" for name, what in read_toml(BENCHMARKS / "data.toml").items()]
    return "\n".join(parts) + "\n"


def _totals(verdicts: Mapping[str, Verdict]) -> Iterator[str]:
    words = [verdict.word for verdict in verdicts.values()]
    counts = ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(sorted(words, reverse=True)))
    yield f"So far, of {len(words)} claims: {counts}."


def _table(claims: Mapping[str, Claim], verdicts: Mapping[str, Verdict]) -> Iterator[str]:
    yield "| claim | tried on | verdict | n | figures | made by |"
    yield "|---|---|---|---:|---|---|"
    for name, claim in claims.items():
        verdict = verdicts[name]
        cells = (
            _claim(claim),
            _subject(claim),
            _verdict(verdict),
            _runs(verdict),
            _figures(claim, verdict),
            _made(claim, verdict),
        )
        yield "| " + " | ".join(_cell(text) for text in cells) + " |"


def _claim(claim: Claim) -> str:
    return f"`{claim.name}`<br>{claim.claim}<br>{claim.paper}: {claim.where}"


def _subject(claim: Claim) -> str:
    return f"{claim.network}<br>{claim.data}<br>{claim.budget}"


def _verdict(verdict: Verdict) -> str:
    return f"**{verdict.word}**" + (f"<br>{verdict.why}" if verdict.why else "")


def _runs(verdict: Verdict) -> str:
    return "" if verdict.n is None else str(verdict.n)


def _figures(claim: Claim, verdict: Verdict) -> str:
    if not verdict.findings:
        return f"expected: {claim.expected}"
    lines = [f"{f.comparison.says}: **{spread(f)}** ({limits(f.comparison)})" for f in verdict.findings]
    return "<br>".join(lines)


def _made(claim: Claim, verdict: Verdict) -> str:
    """The result, whose command and machine stand in the last table; or command and time of what wasn't run."""
    if verdict.environment is not None:
        return f"[{claim.result}](../benchmarks/results/{claim.result})"
    return "" if claim.command is None else f"`{claim.command}`<br>{claim.time}"


def _results(claims: Mapping[str, Claim], verdicts: Mapping[str, Verdict]) -> Iterator[str]:
    """A row for every result: how it was made, on what, in how many seconds; and how long it takes, for who runs it again."""
    yield "| result | made by | on | seconds | it takes |"
    yield "|---|---|---|---:|---|"
    made = {claim.result: name for name, claim in claims.items() if verdicts[name].environment is not None}
    for result, name in sorted(made.items()):
        claim, verdict = claims[name], verdicts[name]
        machine = verdict.environment or {}
        threads = f", {machine['threads']} thread{'s' * (machine['threads'] != 1)}" if "threads" in machine else ""
        took = f"{verdict.seconds:,.0f}" if verdict.seconds is not None else "not recorded"
        link = f"[{result}](../benchmarks/results/{result})"
        takes = claim.time + _share(result)
        cells = (link, f"`{claim.command}`", f"{machine['cpu']}{threads}, torch {machine['torch']}", took, takes)
        yield "| " + " | ".join(_cell(text) for text in cells) + " |"


def _share(result: str) -> str:
    """How many of the parts that a table has were run, where its result tells."""
    tree = read_json_file(BENCHMARKS / "results" / result)
    made, planned = len(tree.get("parts", ())), tree.get("planned", 0)
    return f"; {made} of {planned} parts were run" if made < planned else ""


def _plots(claims: Mapping[str, Claim]) -> Iterator[str]:
    for plot in dict.fromkeys(claim.plot for claim in claims.values() if claim.plot is not None):
        if (BENCHMARKS / "results" / plot).exists():
            names = ", ".join(name for name, claim in claims.items() if claim.plot == plot)
            yield f"\n![Figures of {names}](../benchmarks/results/{plot})"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    """Write the page."""
    write_atomically(PAGE, page().encode())
    print(PAGE)


if __name__ == "__main__":
    main()
