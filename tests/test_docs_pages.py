"""Pages of docs whose code is run, and the plots that go with them."""

from __future__ import annotations

import re
from pathlib import Path

import torch

DOCS = Path(__file__).parents[1] / "docs"


def plot(alphas: list[float], penalties: list[float], best: float) -> str:
    """The penalty over alpha, the latter on a logarithmic axis, as SVG."""
    top, low, high = max(penalties), torch.tensor(alphas[0]).log(), torch.tensor(alphas[-1]).log()

    def at(alpha: float, value: float) -> str:
        share = float((torch.tensor(alpha).log() - low) / (high - low))
        return f"{60 + 440 * share:.1f},{210 - 180 * value / top:.1f}"

    points = " ".join(at(a, p) for a, p in zip(alphas, penalties, strict=True))
    ticks = [
        f'<text x="{at(a, 0).split(",")[0]}" y="228" text-anchor="middle" fill="#555">{a:g}</text>'
        for a in (0.25, 0.5, 1, 2, 4, 8)
    ]
    mark = at(best, min(penalties)).split(",")
    return "\n".join(
        [
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 520 260" font-family="sans-serif" font-size="12">',
            '<rect width="520" height="260" fill="#fff"/>',
            '<line x1="60" y1="210" x2="500" y2="210" stroke="#555"/>',
            f'<polyline points="{points}" fill="none" stroke="#2a78d6" stroke-width="2.5"/>',
            f'<circle cx="{mark[0]}" cy="{mark[1]}" r="5" fill="#2a78d6"/>',
            f'<text x="{mark[0]}" y="{float(mark[1]) + 22}" text-anchor="middle">alpha = sqrt(S2 / S1) = {best:.2f}</text>',
            *ticks,
            '<text x="280" y="248" text-anchor="middle" fill="#555">alpha: the network computes the same for each</text>',
            '<text x="12" y="20" fill="#555">penalty: sum of absolute weights</text>',
            "</svg>",
            "",
        ]
    )


def test_the_page_on_smaller_norms_is_right_and_its_plot_is_of_its_numbers() -> None:
    page = (DOCS / "smaller_norms.md").read_text(encoding="utf-8")
    namespace: dict[str, object] = {}
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
    assert len(blocks) == 5
    for block in blocks:
        exec(compile(block, "smaller_norms.md", "exec"), namespace)
    alphas = [0.2 * 1.06**n for n in range(66)]
    penalty = namespace["penalty"]
    drawn = plot(alphas, [penalty(alpha) for alpha in alphas], namespace["best"])  # type: ignore[operator, arg-type]
    assert (DOCS / "smaller_norms.svg").read_text(encoding="utf-8") == drawn


def test_the_hours_of_the_plan_for_imagenet_follow_from_the_model_of_scale() -> None:
    scale = (DOCS / "scale.md").read_text(encoding="utf-8")
    plan = (DOCS / "imagenet_plan.md").read_text(encoding="utf-8")
    (rate,) = re.findall(r"^\| 1 \| 256 \| ([\d,]+) \|", scale, re.M)
    hours_of_an_epoch = 1_281_167 / float(rate.replace(",", "")) / 3600
    rows = [(float(epochs), float(hours)) for epochs, hours in re.findall(r"\| (\d+) \| ([\d.]+) \|", plan)]
    assert len(rows) == 13 and f"({rate} images/s)" in plan
    assert all(abs(hours - epochs * hours_of_an_epoch) < 0.06 for epochs, hours in rows)
    one_seed = sum(hours for _, hours in rows)
    assert f"One seed of every row is {one_seed:.0f} GPU-hours, three seeds are {3 * one_seed:.0f}." in plan
    recipes = {path.stem for path in (DOCS.parent / "src" / "prunus" / "recipes").glob("*.toml")}
    assert set(re.findall(r"prunus run (\w+)", plan)) <= recipes
