"""The gallery's words and figures, and its page in headless Chromium."""

from __future__ import annotations

import base64
import io
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from prunus.errors import ExportError
from prunus.report.gallery import GalleryGroup, gallery, write_gallery

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))), None)


def bars(channels: int = 1, side: int = 4) -> Tensor:
    """Five patterns: rows up, rows down, columns, a spot, and a channel that nothing wakes."""
    rows = torch.linspace(-1, 1, side).reshape(side, 1).expand(side, side)
    spot = torch.zeros(side, side)
    spot[1, 2] = -2.0
    return torch.stack([rows, -rows, rows.T, spot, torch.zeros(side, side)]).unsqueeze(1).repeat(1, channels, 1, 1)


def group(name: str = "layer1.conv", **changed: object) -> GalleryGroup:
    """Two clusters; channel 0 is removed. Training leaves 1 alone, turns 2 round, swings 3 by 60 degrees and wakes 4."""
    patterns = bars()
    swung = 0.5 * patterns[3] / 2 + math.sqrt(0.75) * torch.eye(1, 16).reshape(1, 4, 4)
    values: dict[str, object] = {
        "patterns": patterns,
        "clusters": torch.tensor([7, 2, 7, 7, 2]),
        "contributions": torch.tensor([1.0, 4, 3, 2, 0]),
        "removed": torch.tensor([True, False, False, False, False]),
        "after": {"bad retraining": torch.stack([3 * patterns[1], -patterns[2], swung, patterns[0]])},
    }
    return GalleryGroup(name, **{**values, **changed})


def words(markup: str) -> list[str]:
    """What stands on every tile and heading."""
    parts = re.findall(r"<h3>.*?</h3>|<li.*?</li>", markup, re.DOTALL)
    return [re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", part)).strip() for part in parts]


def test_clusters_by_size_and_channels_by_contribution() -> None:
    assert words(gallery([group(after={})])) == [
        "Cluster 1: 3 channels, 1 removed",
        "channel 2 ✓ kept contribution 3",
        "channel 3 ✓ kept contribution 2",
        "channel 0 ✗ removed contribution 1",
        "Cluster 2: 2 channels, 0 removed",
        "channel 1 ✓ kept contribution 4",
        "never active channel 4 ✓ kept contribution 0",
    ]


def test_every_group_has_a_section() -> None:
    assert re.findall(r"<h2>(.*?)</h2>", gallery([group("one"), group("two")])) == ["Overview", "Group one", "Group two"]


def test_contributions_are_drawn_beside_the_largest() -> None:
    assert re.findall(r"width:([\d.]+)%", gallery([group(after={})])) == ["75.0", "50.0", "25.0", "100.0", "0.0"]


def test_what_was_lost_comes_first() -> None:
    assert words(gallery([group()]))[7:] == [
        "What became of the kept channels: those that bad retraining changed most come first",
        "channel 2 ✗ lost before bad retraining: \u22121.00",
        "channel 4 ✗ lost never active before bad retraining: 0.00",
        "channel 3 before bad retraining: 0.50",
        "channel 1 before bad retraining: 1.00",
    ]


def test_the_overview_counts_groups_one_by_one() -> None:
    second = group("layer2", after={"good retraining": bars()[1:], **group().after})
    markup = gallery([group(), second])
    rows = [
        re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)
        for row in re.findall(r"<tr>(.*?)</tr>", markup.split("</table>")[0], re.DOTALL)
    ]
    assert rows == [
        ["group", "channels", "clusters", "removed", *(f"{w}, {t} retraining" for t in ("bad", "good") for w in WHAT)],
        ["layer1.conv", "5", "2", "1", "0.25", "2 of 4", "\u2013", "\u2013"],
        ["layer2", "5", "2", "1", "0.25", "2 of 4", "1.00", "1 of 4"],
    ]
    assert "those that good retraining changed most come first" in markup


WHAT = ("similarity", "lost")


def test_a_similarity_of_exactly_the_bound_is_not_lost() -> None:
    found = group().similarities("bad retraining")
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx([1, -1, 0.5, 0], abs=1e-6)


def pixels(uri: str) -> tuple[Image.Image, str]:
    kind, _, text = uri.partition(";base64,")
    return Image.open(io.BytesIO(base64.b64decode(text))), kind


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_is_zero_and_each_picture_has_its_own_contrast(channels: int) -> None:
    patterns = bars(channels)
    patterns[3, 0] *= 1 if channels == 1 else 0  # in colour, the first channel of the spot is left at zero
    markup = gallery([group(patterns=patterns, after={})])
    source = re.search(r'<img src="([^"]*)" alt="channel 3" class="small">', markup)
    assert source
    picture, kind = pixels(source[1])
    assert kind == "data:image/png" and picture.size == (4, 4) and picture.mode == ("L" if channels == 1 else "RGB")
    assert picture.getpixel((2, 1)) == (0 if channels == 1 else (128, 0, 0))
    assert picture.getpixel((0, 0)) == (128 if channels == 1 else (128, 128, 128))


def test_large_pictures_are_made_smaller() -> None:
    markup = gallery([group(patterns=bars(3, 300), after={})])
    sources = re.findall(r'<img src="([^"]*)" alt="channel \d">', markup)
    assert len(sources) == 4
    for source in sources:
        picture, kind = pixels(source)
        assert (picture.size, kind) == ((112, 112), "data:image/jpeg")
    assert len(markup) < 60_000


def test_the_page_loads_nothing_and_runs_nothing(tmp_path: Path) -> None:
    hostile = "<img src=x onerror=alert(1)>"
    write_gallery([group(hostile, after={hostile: bars()[1:]})], tmp_path / "new" / "gallery.html", title=hostile, note=hostile)
    page = (tmp_path / "new" / "gallery.html").read_text(encoding="utf-8")
    assert "<img src=x" not in page and "<script" not in page and "http" not in page.replace("http-equiv", "")
    assert page.count("&lt;img src=x onerror=alert(1)&gt;") >= 4
    assert len(list((tmp_path / "new").iterdir())) == 1


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        (
            {"patterns": torch.zeros(5, 2, 4, 4)},
            r"shape \(5, 2, 4, 4\): the gallery shows \(num_channels, 1 or 3, height, width\)",
        ),
        ({"patterns": torch.zeros(5, 16)}, r"patterns of group `layer1\.conv` have the shape \(5, 16\)"),
        ({"clusters": torch.zeros(4, dtype=torch.int64)}, r"group `layer1\.conv` has 5 patterns: give as many clusters"),
        (
            {"after": {"luck": bars()}},
            r"after luck have the shape \(5, 1, 4, 4\), not \(4, 1, 4, 4\): one for each channel that was",
        ),
    ],
)
def test_arrays_that_do_not_fit(changed: dict[str, object], text: str) -> None:
    with pytest.raises(ExportError, match=text):
        group(**changed)


def test_what_hinders_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match=r"the gallery can't be written to .*gallery\.html"):
        write_gallery([], tmp_path / "file" / "gallery.html", title="none")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ExportError, match=r"Pillow can't be imported .* pip install 'prunus\[data\]'"):
        gallery([group()])


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the PATH")
def test_it_fits_a_phone(tmp_path: Path) -> None:
    write_gallery([group("a" * 90), group(after={"b" * 60: bars()[1:]})], tmp_path / "gallery.html", title="c" * 80)
    page = (tmp_path / "gallery.html").read_text(encoding="utf-8").replace("</body>", PROBE + "</body>")
    (tmp_path / "page.html").write_text(re.sub(r"<meta http-equiv[^>]*>", "", page), encoding="utf-8")
    (tmp_path / "frame.html").write_text(FRAME, encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--virtual-time-budget=4000"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", (tmp_path / "frame.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title and title[1] == "0 wide, 21 of 21 pictures", done.stderr[-500:]


FRAME = """<!doctype html><title>waiting</title><iframe src="page.html" style="width:390px;height:900px;border:0"></iframe>
<script>addEventListener("message", (event) => { document.title = event.data; });</script>"""
PROBE = """<script>addEventListener("load", () => {
const room = document.documentElement.clientWidth + 1;
const all = [...document.querySelectorAll("body *")].filter((e) => !e.closest(".scroll"));
const wide = all.filter((e) => e.getBoundingClientRect().right > room);
const images = [...document.images];
parent.postMessage(`${wide.length} wide, ${images.filter((i) => i.naturalWidth > 0).length} of ${images.length} pictures`, "*");
});</script>"""
