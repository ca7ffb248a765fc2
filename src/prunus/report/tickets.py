"""The page of a laboratory of lottery tickets; a single HTML file that works offline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prunus.errors import ExportError
from prunus.report.drawing import Figure, place
from prunus.report.laboratory import laboratory_page
from prunus.report.offline import write_page
from prunus.report.tickets_plots import ARMS, FAMILIES, networks, place_of, shown_rounds, ticket_figures
from prunus.report.wording import (
    MISSING,
    below,
    count,
    duration,
    escape,
    folded,
    is_number,
    moment,
    pairs,
    percent,
    plain,
    points,
    table,
    tag,
)

Result = Mapping[str, Any]
_SUPERMASKS = {
    (False, False): "plain",
    (True, False): "rescaled",
    (False, True): "signed constants",
    (True, True): "rescaled, signed constants",
}


def write_tickets(result: Result, path: Path) -> None:
    """Write the page (of the content of ``tickets.json``), replacing an old one only when complete.

    Raises:
        ExportError: plotly isn't installed, ``result`` lacks something the page shows, or ``path`` can't be written.
    """
    write_page(render_tickets(result), path, "page")


def render_tickets(result: Result) -> str:
    """The page as text. Raises `ExportError` like `write_tickets`."""
    try:
        drawn = ticket_figures(result)
        sections = {title: part for title, part in _sections(result, drawn).items() if part}
        return laboratory_page(f"Lottery tickets: {result['name']}", _subtitle(result), sections, drawn, result)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        told = f"{type(error).__name__} {error}".strip()
        raise ExportError(f"the laboratory can't be shown: {told}; was it written by this version?") from error


def spread(figure: Result) -> str:
    """``97.1 % ± 0.3``: mean and standard deviation over the seeds."""
    return percent(figure["mean"]) + (f" ± {100 * figure['std']:.1f}" if is_number(figure["std"]) else "")


def _subtitle(result: Result) -> str:
    seeds = len(result["recipe"]["seeds"])
    names = ", ".join(f"{name} ({one['model']} on {one['data']})" for name, one in result["recipe"]["networks"].items())
    names = "; ".join([*([names] if names else []), *result["recipe"].get("rethinking", {}).get("runs", ())])
    return escape(f"{names}; {seeds} seed{'s' * (seeds != 1)}; {moment(result['created'])}")


def _sections(result: Result, drawn: Mapping[str, Figure]) -> dict[str, str]:
    return {
        "What became of the claims": _claims(result),
        "Lottery": "".join(_lottery(number, cell) for number, cell in enumerate(result["lottery"])),
        "Deconstruction": "".join(_deconstruction(n, cell, drawn) for n, cell in enumerate(result["deconstruction"])),
        "Supermasks": _supermasks(result),
        "Architecture or weights": "".join(_rethinking(result, name) for name in networks(result["rethinking"])),
        "What was done": _about(result),
    }


def _claims(result: Result) -> str:
    rows = [
        [
            escape(one["claim"]) + below(escape(one["paper"])),
            escape(one["where"]) + (below(escape(one["note"])) if one["note"] else ""),
            _difference(one["difference"]),
            tag(one["verdict"], {"yes": "good", "no": "bad"}.get(one["verdict"], "plain")),
        ]
        for one in result["claims"]
    ]
    if not rows:
        return ""
    note = (
        "Differences are of test accuracies, paired by seed: mean ± standard deviation. Yes or no where the 95 % "
        "confidence interval of the mean leaves out zero; undecided: these few seeds don't settle it. All of it is "
        "about these small networks only."
    )
    return table("Claims of the literature on these networks", ["claim", "where", "difference", "so here"], rows, (2,)) + (
        f'<p class="note">{note}</p>'
    )


def _difference(figure: Result) -> str:
    return points(figure["mean"]) + (f" ± {100 * figure['std']:.1f}" if is_number(figure["std"]) else "")


def _lottery(number: int, cell: Result) -> str:
    ranked = "globally" if cell["scope"] == "global" else "by layer"
    rewound = f"rewound to step {cell['rewind_step']}" if cell["rewind_step"] else "rewound to the start"
    title = f"{cell['network']}, {cell['schedule']}, magnitudes ranked {ranked}, {rewound}"
    parts = [f"<h3>{escape(title)}</h3>"]
    parts.append(place(f"plot-lottery-{number}-accuracy", f"{title}: test accuracy after training"))
    early = f"{title}: test accuracy after {percent(cell['early'])} of the training"
    parts.append(place(f"plot-lottery-{number}-early", early))
    parts.append(folded("Every level as a table", _levels(title, cell)))
    for one in shown_rounds(cell):
        at = f"{title}: learning curves with {percent(one['density'])} of the weights"
        parts.append(place(f"plot-curves-{number}-{one['round']}", at))
    parts.append(place(f"plot-signs-{number}", f"{title}: signs that stay and overlaps of masks"))
    parts.append(place(f"plot-densities-{number}", f"{title}: what is left of every layer"))
    return "".join(parts)


def _levels(title: str, cell: Result) -> str:
    arms = list(cell["rounds"][-1]["arms"])
    head = ["weights left", *(f"{ARMS[arm]}, {when}" for arm in arms for when in ("early", "final"))]
    rows = [
        [
            percent(one["density"]) + below(count(one["kept"])),
            *(
                spread(one["arms"][arm][kind]) if arm in one["arms"] else MISSING
                for arm in arms
                for kind in ("early", "accuracy")
            ),
        ]
        for one in cell["rounds"]
    ]
    more = ["weights left", "signs that stay", "overlap with one-shot", "overlap with random", *cell["rounds"][0]["layers"]]
    figures = [
        [
            percent(one["density"]),
            *(spread(one[key]) for key in ("sign_agreement", "overlap_one_shot", "overlap_random")),
            *(spread(figure) for figure in one["layers"].values()),
        ]
        for one in cell["rounds"]
    ]
    return table(title, head, rows, range(1, len(head))) + table(f"{title}: masks", more, figures, range(1, len(more)))


def _deconstruction(number: int, cell: Result, drawn: Mapping[str, Figure]) -> str:
    how = "made at once" if cell["schedule"] == "one-shot" else f"made in rounds of about {percent(cell['rate'])}"
    where = f"{cell['network']}, {percent(cell['kept'])} of every layer's weights, masks {how}"
    parts = [f"<h3>{escape(where)}</h3>"]
    for family, told in FAMILIES.items():
        identifier = f"plot-{family}-{number}"
        if identifier not in drawn:
            continue
        rows = [[escape(name), spread(one["untrained"]), spread(one["accuracy"])] for name, one in cell[family].items()]
        listed = table(f"{where}: {told}", [told, "before training", "after training"], rows, (1, 2))
        parts += [place(identifier, f"{where}: {told}"), folded("As a table", listed)]
    return "".join(parts)


def _supermasks(result: Result) -> str:
    rows = [
        [
            escape(f"{cell['network']}, {_SUPERMASKS[cell['rescale'], cell['signed_constant']]}"),
            spread(cell["untrained"]),
            spread(cell["accuracy"]),
            spread(cell["sampled"]),
            spread(cell["density"]),
        ]
        for cell in result["supermasks"]
    ]
    head = ["supermask", "without a mask", "trained, by threshold", "trained, drawn masks", "weights in the mask"]
    note = (
        "The weights are never trained. By threshold: a weight is there if its chance is at least one half; drawn: as in the "
        "paper, the mean over several draws."
    )
    return table("Masks trained on untrained weights", head, rows, range(1, 5)) + f'<p class="note">{note}</p>' if rows else ""


def _rethinking(result: Result, name: str) -> str:
    cells = sorted((c for c in result["rethinking"] if c["network"] == name), key=lambda cell: cell["lr"])
    first, title = cells[0], f"{name}, {percent(cells[0]['channels'])} of the channels"
    arms = list(first["arms"])
    rows = [
        [
            plain(cell["lr"]),
            spread(cell["full"]["accuracy"]),
            spread(cell["pruned"]),
            *(spread(cell["arms"][arm]["accuracy"]) for arm in arms),
        ]
        for cell in cells
    ]
    head = ["learning rate", "full network", "just pruned", *(f"{arm} ({first['arms'][arm]['epochs']} epochs)" for arm in arms)]
    cost = f"{count(first['macs'])} multiply-adds become {count(first['small_macs'])}, a ratio of {first['ratio']:.2f}."
    figure = place(f"plot-rethinking-{place_of(name)}", f"{title}: test accuracy by learning rate")
    return f"<h3>{escape(title)}</h3><p>{cost}</p>{figure}{table(title, head, rows, range(1, len(head)))}"


def _about(result: Result) -> str:
    entries = [("time", f"{duration(result['core_seconds'])} of one core"), ("processes", count(result["processes"]))]
    entries += [("seeds", escape(", ".join(map(str, result["recipe"]["seeds"]))))]
    entries += [(name, escape(plain(value))) for name, value in result["environment"].items()]
    parts = [pairs(entries)]
    for name, network in result["recipe"]["networks"].items():
        parts.append(folded(f"Network {name}", pairs(_settings(network))))
    for name in ("lottery", "deconstruction", "supermasks", "rethinking"):
        if name in result["recipe"]:
            parts.append(folded(name.capitalize(), pairs(_settings(result["recipe"][name]))))
    return "".join(parts)


def _settings(section: Result) -> Sequence[tuple[str, str]]:
    return [
        (name.replace("_", " "), escape(", ".join(map(plain, value)) if isinstance(value, list) else plain(value)))
        for name, value in section.items()
    ]
