"""Reports: what they say is true, what they show is escaped, and a browser finds nothing wrong with the page."""

from __future__ import annotations

import csv
import doctest
import html
import itertools
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import tersor
from tersor import cli
from tersor.errors import DataError, FormatError
from tersor.report import charts, collect, model_card, write

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

GOLDEN = Path(__file__).parent / "golden"
EVIL = '<script>alert("x")</script>&"\'|`$x$'
MEASURED = {"count": 500, "kl": 0.01, "kl_error": 0.001, "snr": 20.5, "agreement": 0.98, "top1_reference": 0.9,
            "top1": 0.895, "top1_change": -0.005, "top1_change_error": 0.004}


def decision(weights: int, tool: str = "scalar", label: str = "scalar, trellis of 8") -> dict[str, object]:
    return {"tool": tool, "label": label, "weights": weights, "bits": 2.0, "side_bits": 0.0, "distortion": weights / 7,
            "losers": [["dct1", 1.07], ["klt-taps", 1.02]]}


def point(bits: float, name: str = "") -> dict[str, object]:
    size = int(bits * 1250)
    return {"asked_bits": bits, "file": f"{bits:g}-bits.tersor", "sha256": "", "bytes": size, "measured":
            MEASURED | {"kl": 0.1 / bits**3}, "total_bytes": size, "header_bytes": 50, "side_bytes": 100,
            "payload_bytes": size - 150, "snr_db": 21.0, "notes": [f"note {name}"],
            "decisions": {f"conv{name}.weight": decision(6000),
                          f"fc{name}.weight": decision(4000, "transform", "dct1")}}


def document(name: str = "") -> dict[str, object]:
    """A made-up sweep of three points."""
    return {"kind": "tersor sweep", "version": 1, "tersor": "0.1.0", "name": f"net{name}", "notes": [f"remark {name}"],
            "parameters": 10_000, "raw_bytes": 40_000, "calibration_images": 256, "samples": 500, "top1": 0.9,
            "points": [*(point(bits, name) for bits in (2, 3, 4)),
                       {"asked_bits": 0.1, "error": f"out of reach {name}"}],
            "baselines": [{"codec": f"int8 per channel + zstd -19{name}", "setting": "8 bits", "bytes": 9000,
                           "ideal": False, "measured": MEASURED | {"kl": 1e-5}}]}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "sweep.json").write_text(json.dumps(document()))
    return tmp_path / "s"


class Page(HTMLParser):
    """Tags, texts, attributes; checks that what is opened is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "wbr", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for found, attributes in self.tags if found == tag]


def page_of(*paths: object, tmp_path: Path) -> tuple[Page, str]:
    write(list(paths), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    return Page(text), text


def test_figures_of_a_sweep_are_on_the_page(folder, tmp_path):
    page, _ = page_of(folder, tmp_path=tmp_path)
    for expected in ("10,000", "40,000 bytes", "2,500", "90.00%", "-0.50 ± 0.40", "0.0125", "dct1 ×1.070", "256 inputs",
                     "out of reach", "int8 per channel + zstd -19", "20.5", "60.0%", "note ", "klt-taps ×1.020"):
        assert expected in page.text, expected
    assert len(page.all("svg")) == 4


def test_page_is_accessible_and_self_contained(folder, tmp_path):
    page, text = page_of(folder, GOLDEN / "kernels-options.tersor", tmp_path=tmp_path)
    assert page.all("html")[0]["lang"] == "en" and page.all("title") and len(page.all("h1")) == 1
    assert len(page.all("main")) == 1 and page.all("header") and page.all("footer") and page.all("nav")
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(cell.get("scope") in ("col", "row") for cell in page.all("th"))
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.all("svg"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.tags:
        for key in ("aria-labelledby", "href", "xlink:href"):
            if (target := attributes.get(key) or "").startswith("#") or (target and key == "aria-labelledby"):
                assert target.removeprefix("#") in ids
            else:
                assert not target or target.startswith("data:")
        if attributes.get("class") == "scroll":
            assert attributes["tabindex"] == "0" and attributes["role"] == "region"
    assert not page.all("script") and "default-src 'none'" in text
    assert not [url for url in re.findall(r"https?://[^\s\"'<]+", text) if "w3.org" not in url]
    assert "mathdefault" not in text and "var(--s0)" in text and "#0103" not in text


def test_names_of_strangers_are_text(tmp_path):
    """In file names, tensors, metadata, labels, notes, codecs."""
    array = np.random.default_rng(0).normal(size=(32, 64)).astype("f4")
    packed = tersor.compress({f"{EVIL}.weight": array, "b.weight": array}, bits=6, effort=1)
    packed.save(tmp_path / "x.tersor")
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "sweep.json").write_text(json.dumps(document(EVIL)))
    losers = [[EVIL, 1.5]]
    (tmp_path / "d.json").write_text(json.dumps({
        "input": EVIL, "total_bytes": 900, "header_bytes": 1, "side_bytes": 2, "payload_bytes": 897, "parameters": 50,
        "decisions": {EVIL: decision(50, EVIL, EVIL) | {"losers": losers}}, "notes": [EVIL], "snr_db": None}))
    page, text = page_of(tmp_path / "x.tersor", tmp_path / "s", tmp_path / "d.json", tmp_path=tmp_path)
    assert not page.all("script") and text.count(EVIL) == 0
    assert page.text.count(EVIL) > 15
    assert not [attributes for _, attributes in page.tags if any(key.startswith("on") for key in attributes)]
    drawn = "".join(re.findall(r"<svg.*?</svg>", text, re.S))
    assert "alert" not in drawn, "charts hold no names"
    write([tmp_path / "s", tmp_path / "d.json"], markdown=tmp_path / "card.md", csv_file=tmp_path / "t.csv")
    assert "<script>" not in (tmp_path / "card.md").read_text()


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_spreadsheets_get_no_formulas(tmp_path):
    name = '=HYPERLINK("http://x")'
    (tmp_path / "d.json").write_text(json.dumps({
        "total_bytes": 900, "header_bytes": 1, "side_bytes": 2, "payload_bytes": 897, "parameters": 50,
        "decisions": {name: decision(50)}}))
    write([tmp_path / "d.json"], csv_file=tmp_path / "t.csv")
    assert [row["layer"] for row in rows_of(tmp_path / "t-layers.csv")] == ["'" + name]


def test_tables_and_pictures(folder, tmp_path):
    from PIL import Image
    written = write([folder], png=tmp_path / "p.png", csv_file=tmp_path / "t.csv", markdown=tmp_path / "card.md")
    assert {Path(path).name: size for path, size in written.files.items()} == {
        path.name: path.stat().st_size for path in tmp_path.iterdir() if path.is_file()}
    rows = rows_of(tmp_path / "t.csv")
    assert [(row["codec"], row["bytes"]) for row in rows] == [
        ("tersor", "2500"), ("tersor", "3750"), ("tersor", "5000"), ("int8 per channel + zstd -19", "9000")]
    layers = rows_of(tmp_path / "t-layers.csv")
    assert len(layers) == 6 and layers[0]["next_best"] == "klt-taps" and float(layers[0]["error_share"]) == 0.6
    card = (tmp_path / "card.md").read_text()
    assert "| tersor, 2 bits/weight | 2,500 | 2.00 | 16.0 | 89.50 | -0.50 ± 0.40 | 0.0125 | 20.5 |" in card
    assert card.count("| int8 per channel") == 1 and "tersor.restore" in card
    with Image.open(tmp_path / "p.png") as image:
        assert image.width > 800 and len(image.convert("RGB").getcolors(1 << 20)) > 50


@pytest.mark.parametrize("name", ["network-small", "kernels-options", "kernels-coders", "transform-small",
                                  "transform-fixed", "codebook-layouts", "trellis-fast", "raw", "scalar-types"])
def test_files_of_every_tool(name, tmp_path):
    page, _ = page_of(GOLDEN / f"{name}.tersor", tmp_path=tmp_path)
    assert f"{(GOLDEN / f'{name}.tersor').stat().st_size:,} bytes" in page.text
    titles = {"kernels-options": "Codebook of kernels", "transform-small": "Basis over", "network-small": "Histograms",
              "codebook-layouts": "Codebook of"}
    assert titles.get(name, "Where the bytes are") in page.text


def test_bytes_of_a_file_add_up():
    (subject,) = collect([GOLDEN / "network-small.tersor"])
    (coded,) = subject.files
    assert sum(coded.budget.values()) == coded.bytes == (GOLDEN / "network-small.tersor").stat().st_size
    assert 0 < sum(layer.bytes or 0 for layer in coded.layers) < coded.bytes


def test_the_same_page_every_time(folder, tmp_path):
    first = page_of(folder, GOLDEN / "kernels-options.tersor", tmp_path=tmp_path)[1]
    assert page_of(folder, GOLDEN / "kernels-options.tersor", tmp_path=tmp_path)[1] == first


@pytest.mark.parametrize(("change", "message"), [
    ({"parameters": "many"}, "parameters is 'many'"), ({"points": 3}, "points is no list"), ({"top1": True}, "top1"),
    ({"points": [point(2) | {"bytes": 0}]}, "bytes is 0"), ({"points": [point(2) | {"bytes": 1e300}]}, "bytes is 1e"),
    ({"points": [point(2) | {"decisions": {"a": {}}}]}, "a: distortion is None"),
    ({"points": [point(2) | {"measured": {"kl": "x"}}]}, "kl is 'x'"), ({"points": []}, "nothing to report"),
    ({"baselines": [{"bytes": -1}]}, "bytes is -1"), ({"version": 1, "samples": -5}, "samples is -5"),
])
def test_records_that_cannot_be(folder, tmp_path, change, message):
    (folder / "sweep.json").write_text(json.dumps(document() | change))
    with pytest.raises(DataError, match=re.escape(message)):
        write([folder], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_paths_that_are_no_reports(tmp_path):
    (tmp_path / "a.json").write_text("[]")
    (tmp_path / "b.json").write_text("{}")
    (tmp_path / "c.json").write_text("nothing")
    (tmp_path / "x.tersor").write_bytes(b"nothing")
    (tmp_path / "empty").mkdir()
    for name, message in (("a.json", "no object"), ("b.json", "neither a"), ("c.json", "no JSON"),
                          ("empty", "holds no")):
        with pytest.raises(DataError, match=message):
            collect([tmp_path / name])
    with pytest.raises(FormatError):
        collect([tmp_path / "x.tersor"])


def test_command(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", "s", "--csv", "t.csv", "--png", "p.png", "--md", "c.md"]) == 0
    assert re.search(r"1 path -> s/report\.html [\d,]+ bytes", capsys.readouterr().err)
    assert {"t.csv", "t-layers.csv", "p.png", "c.md"} <= {path.name for path in tmp_path.iterdir()}
    assert cli.main(["report", "s"]) == 1 and "exists already" in capsys.readouterr().err
    shutil.copy(GOLDEN / "raw.tersor", "raw.tersor")
    assert cli.main(["report", "raw.tersor", "--json", "-q"]) == 0
    assert list(json.loads(capsys.readouterr().out)["outputs"]) == ["raw.html"]
    assert cli.main(["report", "absent.tersor"]) == 1


def test_json_of_compress(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    from tersor.adapters import safetensors
    array = np.random.default_rng(0).normal(size=(64, 64)).astype("f4")
    safetensors.write("m.safetensors", {"a.weight": array, "b.weight": array[:, ::-1].copy()})
    assert cli.main(["compress", "m.safetensors", "--bits", "4", "--json", "-q", "--effort", "6"]) == 0
    Path("m.json").write_text(capsys.readouterr().out)
    (subject,) = collect(["m.json"])
    assert [layer.name for layer in subject.files[0].layers] == ["a.weight", "b.weight"]
    assert subject.files[0].layers[0].losers and subject.files[0].layers[0].error
    assert subject.raw_bytes == Path("m.safetensors").stat().st_size


# --- colours, and a real browser ------------------------------------------------------------------------

CSS = (Path(tersor.__file__).parent / "report" / "page.css").read_text()


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_contrast(scheme):
    """WCAG 2: text 4.5, graphics 3."""
    block = re.findall(r":root \{(.*?)\}", CSS, re.S)[scheme]
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block))
    for name, ground, least in [("ink", "ground", 7), ("dim", "ground", 4.5), ("ink", "raised", 7),
                                ("dim", "raised", 4.5), ("link", "ground", 4.5),
                                *((f"s{i}", "ground", 3) for i in range(5))]:
        low, high = sorted(luminance(colours[each]) for each in (name, ground))
        assert (high + 0.05) / (low + 0.05) >= least, name


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MEASURE = """<script>addEventListener("load", () => { const r = document.documentElement, wide = [];
for (const e of document.querySelectorAll("body *")) { const b = e.getBoundingClientRect();
if (b.right > r.clientWidth + 1 && !e.closest(".scroll, svg, .skip")) wide.push(e.tagName + "." + e.className); }
const dark = matchMedia("(prefers-color-scheme: dark)").matches;
parent.document.title = JSON.stringify({width: r.clientWidth, scroll: r.scrollWidth, wide, dark,
ground: getComputedStyle(document.body).backgroundColor}); });</script>"""


def browse(page: Path, width: int, dark: bool, *more: str) -> subprocess.CompletedProcess[str]:
    command = [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
               "--enable-logging=stderr", f"--window-size={width},1400", f"--user-data-dir={page.parent / 'profile'}"]
    command += ["--blink-settings=preferredColorScheme=0"] if dark else []
    return subprocess.run([*command, *more, page.as_uri()], capture_output=True, text=True, timeout=120)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_in_a_browser(folder, tmp_path, width, dark):
    """No word on the console, nothing wider than the window, the scheme of the system, and something to see."""
    from PIL import Image
    long_name = "features." * 30 + "weight"
    text = json.dumps(document()).replace("fc.weight", long_name).replace('"net"', f'"{"net" * 40}"')
    (folder / "sweep.json").write_text(text)
    write([folder, GOLDEN / "kernels-options.tersor"], tmp_path / "page.html")
    shot = tmp_path / "shot.png"
    done = browse(tmp_path / "page.html", width, dark, f"--screenshot={shot}")
    assert done.returncode == 0 and "CONSOLE" not in done.stderr, done.stderr
    with Image.open(shot) as image:
        assert image.width == width
        corner = image.convert("L").getpixel((2, 2))
        assert (corner < 60) == dark and len(image.convert("RGB").getcolors(1 << 22)) > 100
    page = (tmp_path / "page.html").read_text()
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', MEASURE, page)
    # In a frame: windows have a least width.
    (tmp_path / "measured.html").write_text(f'<!DOCTYPE html><title></title><meta name="color-scheme" content="light '
                                            f'dark"><iframe width="{width}" height="1400" style="border:0" '
                                            f'srcdoc="{html.escape(page)}"></iframe>')
    dom = browse(tmp_path / "measured.html", width, dark, "--dump-dom").stdout
    found = json.loads(re.search(r"<title>(.*?)</title>", dom)[1].replace("&quot;", '"'))
    assert (found["width"], found["scroll"], found["wide"], found["dark"]) == (width, width, [], dark)


def test_doctests():
    for module in (charts, model_card):
        assert doctest.testmod(module).failed == 0
