"""Reports and the live view: what they say of a recording, that they say it safely, and that they fit."""

from __future__ import annotations

import html
import html.parser
import importlib.util
import io
import json
import math
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import openadam
from openadam import cli, record
from openadam.cli.watch import _apart
from openadam.errors import RecordError
from openadam.measures import OCTAVES, columns
from openadam.readings import READINGS, Numbers, crossing
from openadam.theory import Settings, agreement_alone, noise_rms
from openadam.views import charts, histograms, histories
from openadam.views.derived import noise
from openadam.views.figures import Sight, noise_in_words
from openadam.views.plots import plots
from openadam.views.report import LARGEST, report
from openadam.views.watch import Findings, News, line, screen, sparkline

HOSTILE = [
    "</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", '" onload="alert(1)', "' autofocus onfocus='alert(1)", "<!--", "]]>",
    "&lt;b&gt;", "=HYPERLINK(1)", "\x1b[31mred\x07", "two\nlines", "\u202eright to left", "\u2028", "javascript:alert(1)",
    "https://example.invalid/x.png", "n" * 10_000, "",
]  # fmt: skip
VOID = {"meta", "link", "br", "img", "input", "hr"}
BLOCKS = {"div", "ul", "table", "p", "figure", "h1", "h2", "h3", "section", "details", "nav"}


class Page(html.parser.HTMLParser):
    """What is in a page; every element closed where it must be."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.raw: list[tuple[str, dict[str, Any], str]] = []  # scripts and styles
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open
        ids = [given["id"] for _, given in self.tags if "id" in given]
        assert len(ids) == len(set(ids))
        for _, given in self.tags:
            for name in ("aria-labelledby", "aria-describedby"):
                assert {*given.get(name, "").split()} <= {*ids}

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        assert len(dict(attrs)) == len(attrs)
        assert not (tag in BLOCKS and "p" in self.open), f"<{tag}> in a paragraph"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        assert "svg" in self.open
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("script", "style"):
            self.raw.append((self.open[-1], self.tags[-1][1], data))
        else:
            self.text.append(data)

    @property
    def data(self) -> Any:
        (found,) = [text for _, given, text in self.raw if given.get("id") == "data"]
        return json.loads(found, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def train(path: Path, names: list[str], steps: int = 60, *, size: int = 40, **settings: Any) -> record.Session:
    """A recorded run over arrays with noise for gradients; a tensor called ``tiny`` has gradients below eps."""
    recorder = record.Recorder(path)
    random = np.random.default_rng(0)
    params = {name: random.standard_normal(size).astype(np.float32) for name in names}
    optimizer = openadam.AdamW(params, lr=1e-2, record=recorder, **settings)
    for t in range(steps):
        grads = {name: random.standard_normal(size).astype(np.float32) * np.float32(1e-10 if name == "tiny" else 1) for name in names}
        optimizer.step(grads, loss=10.0 / (t + 1))
        if t == 30:
            optimizer.mark("target <b>sync</b>")
    recorder.close()
    return record.load(path)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> record.Session:
    return train(
        tmp_path_factory.mktemp("run") / "run.oadam", ["w", "tiny", "layers.0.attention.query.weight", "layers.1.attention.query.weight"], 300
    )


# --- readings ----------------------------------------------------------------------------------------------------------


def test_null_values_are_those_of_noise(session: record.Session) -> None:
    assert noise_rms(0.9) == pytest.approx(0.229, abs=5e-4)
    assert agreement_alone(0.9) == pytest.approx(0.357, abs=1e-3)
    assert [round(float(agreement_alone(beta)), 3) for beta in (0.5, 0.95)] == [0.167, 0.399]
    track = session.tracks["AdamW"]
    first, _, found = histories.histories(track, ["w"])
    late = first > 100
    assert found["disagreement"][1, late, 0].mean() == pytest.approx(agreement_alone(0.9), abs=0.05)
    assert found["direction"][1, late, 0].mean() == pytest.approx(noise_rms(0.9), abs=0.05)
    assert found["surprise"][1, late, 0].mean() == pytest.approx(1, abs=0.1)


def test_readings_are_what_the_measures_say(session: record.Session) -> None:
    track = session.tracks["AdamW"]
    first, last, found = histories.histories(track, list(track.tensors))
    table = {name: track.measure("w", name) for name in ("surprise_sum", "update_sum_squares", "param_sum_squares", "grad_sum_squares")}
    assert first.tolist() == table["surprise_sum"]["first"].tolist()
    assert (first <= last).all()
    assert found["surprise"][1, :, 0] == pytest.approx(np.sqrt(table["surprise_sum"]["mean"] / 40))
    assert found["grad_rms"][2, :, 0] == pytest.approx(np.sqrt(table["grad_sum_squares"]["max"] / 40))
    assert found["update_weight"][1, :, 0] == pytest.approx(np.sqrt(table["update_sum_squares"]["mean"] / table["param_sum_squares"]["mean"]))
    assert (found["eps_share"][1, :, 1] == 1).all()
    assert histories.by_trouble(track)[0][0] == "tiny"
    newest, buckets = histories.latest(track, ["tiny", "w"])
    assert newest["surprise"] == pytest.approx(found["surprise"][1, -buckets:, :2].mean(axis=0)[::-1])


def test_a_few_elements_are_no_alarm_by_chance() -> None:
    def level(name: str, value: float, sampled: int, beta1: float = 0.9) -> str:
        x = Numbers({"sampled": sampled, "zero_grad": 0}.__getitem__, Settings(beta1, 0.999, 1e-8))
        return READINGS[name].limits(x).level(value)

    assert [level("disagreement", 0.5, seen) for seen in (3, 40, 10_000)] == ["unknown", "look", "alarm"]
    assert [level("surprise", value, 100) for value in (3.0, 4.0, 11.0, math.nan)] == ["fine", "look", "alarm", "unknown"]
    assert level("disagreement", 0.6, 100, beta1=math.nan) == "unknown"
    assert [level("eps_share", value, 100) for value in (0.2, 0.3, 0.6)] == ["fine", "look", "alarm"]


def test_bounds_hold_what_they_bound() -> None:
    reading, h = READINGS["update_weight"], Settings(0.9, 0.999, 1e-8)
    numbers = [{"update_sum_squares": 1.0, "param_sum_squares": 4.0}, {"update_sum_squares": 9.0, "param_sum_squares": 16.0}]
    low, high = (Numbers({name: np.float64(value) for name, value in each.items()}.__getitem__, h) for each in numbers)
    assert reading.of(Numbers(low._pick, h, over=high)) == 0.25
    assert reading.of(Numbers(high._pick, h, over=low)) == 1.5
    nothing = {"update_sum_squares": np.float64(1), "param_sum_squares": np.float64(0)}
    assert math.isnan(reading.of(Numbers(nothing.__getitem__, h)))


def test_thinning_keeps_the_extremes() -> None:
    n = np.arange(1000)
    values = np.sin(n / 50.0)
    values[333] = 40.0
    values[500:600] = np.nan
    thinned = histories.thin(histories.Series(n, n, values, values, values), 60)
    assert len(thinned.first) <= 60
    assert (thinned.first[0], thinned.last[-1]) == (0, 999)
    assert np.nanmax(thinned.high) == 40
    assert np.nanmin(thinned.low) == np.nanmin(values)
    assert np.isnan(thinned.mid).any()
    assert (thinned.first[1:] == thinned.last[:-1] + 1).all()


@pytest.mark.parametrize(
    ("low", "high", "log"), [(0, 1, False), (-3, 1e9, False), (1e-12, 2e-12, False), (1e-9, 1e5, True), (5, 5.0001, False), (3e-4, 0.011, True)]
)
def test_ticks_are_few_and_within(low: float, high: float, log: bool) -> None:
    found = charts.ticks(low, high, log)
    assert 2 <= len(found) <= 11
    assert all(low - 1e-9 * abs(low) <= each <= high * (1 + 1e-9) for each in found)
    assert found == sorted(set(found))


# --- the report --------------------------------------------------------------------------------------------------------


def test_a_report_holds_what_was_recorded(session: record.Session) -> None:
    text = report(session)
    page = Page(text)
    assert len(text.encode()) < LARGEST < 1_000_000
    told = "".join(page.text)
    for part in (
        "RMS_t",
        "noise alone",
        "Norm of the gradient",
        "Learning rate",
        "eps-dominated",
        "Alarm",
        "target <b>sync</b>",
        "AdamW",
        "0.229",
        "(decoupled)",
    ):
        assert part in told, part
    (track,) = page.data["tracks"]
    loss = track["scalars"]["loss"]
    assert loss["mid"][0] == pytest.approx(session.tracks["AdamW"].scalar("loss")["mean"][0], rel=0.5)
    assert loss["high"][0] == 10.0
    assert (loss["first"][0], loss["last"][-1]) == (1, 300)
    assert track["tensors"][0]["name"] == "tiny"
    assert all(len(values["mid"]) == len(track["first"]) for tensor in track["tensors"] for values in tensor["values"].values())
    drawn = [given.get("data-chart") or given["data-plane"] for tag, given in page.tags if tag == "svg"]
    assert drawn == [*page.data["charts"]]
    assert all(given["role"] == "img" and given["tabindex"] == "0" for tag, given in page.tags if tag == "svg")
    assert sum(tag == "title" for tag, _ in page.tags) > len(drawn) == sum(tag == "desc" for tag, _ in page.tags)
    assert sum(tag == "table" for tag, _ in page.tags) >= len(drawn)


def test_nothing_leaves_the_page(session: record.Session) -> None:
    text = report(session)
    page = Page(text)
    (policy,) = [given["content"] for tag, given in page.tags if given.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert {tag for tag, _ in page.tags}.isdisjoint({"img", "link", "iframe", "object", "embed", "base", "form", "image", "use"})
    for _, given in page.tags:
        assert given.keys().isdisjoint({"src", "style", "srcset", "action", "xlink:href"})
        assert given.get("href", "#").startswith("#")
        assert not any(name.startswith("on") for name in given)
    assert {*re.findall(r"https?://[^\"' ]*", text)} == {"http://www.w3.org/2000/svg"}  # the name of a namespace


def test_names_do_no_harm(tmp_path: Path) -> None:
    names = [*HOSTILE, *(f"<b>{k}</b>" for k in range(9))]
    session = train(tmp_path / "a.oadam", names, 20, size=3)
    recorder = record.Recorder(tmp_path / "b.oadam")
    about = {"rule": HOSTILE[1], HOSTILE[2]: HOSTILE[0], "groups": "<none>", "tensors": [{"name": HOSTILE[0]}], "measures": []}
    track = recorder.track(about, HOSTILE[0])
    track.step(1, {"loss": 1.0, HOSTILE[0]: 2.0})
    track.alarm(1, HOSTILE[0], HOSTILE[1], {HOSTILE[0]: HOSTILE[1]})
    track.event(1, HOSTILE[0] * 10_000)
    recorder.close()
    harmless = Page(report(train(tmp_path / "c.oadam", [f"n{k}" for k in range(len(names))], 20, size=3)))
    page = Page(report(session))
    count = [sum(tag == each for tag, _ in page.tags) for each in ("script", "img", "b")]
    assert count == [2, 0, 0]
    assert {tag for tag, _ in page.tags} == {tag for tag, _ in harmless.tags}
    assert {name for _, given in page.tags for name in given} == {name for _, given in harmless.tags for name in given}
    assert {HOSTILE[0], "=HYPERLINK(1)"} <= {tensor["name"] for tensor in page.data["tracks"][0]["tensors"]}
    other = Page(report(record.load(tmp_path / "b.oadam")))
    assert sum(tag == "script" for tag, _ in other.tags) == 2
    assert {tag for tag, _ in other.tags} <= {tag for tag, _ in harmless.tags} | {"nav"}
    shown = io.StringIO()
    rich_console(shown, 80).print(screen(session, None, 80, 60))
    assert not {"\x1b", "\x07", "\u202e"} & {*shown.getvalue(), *line(session, None)}
    assert "\n" not in line(record.load(tmp_path / "b.oadam"), None)


def test_a_large_recording_still_fits(tmp_path: Path) -> None:
    recorder = record.Recorder(tmp_path / "large.oadam")
    random = np.random.default_rng(0)
    measures = [{"name": name, "reduction": "sum"} for name in columns()]
    for k in range(11):
        tensors = [{"name": f"{'block.' * 30}{k}.{n}", "elements": 100, "group": 0} for n in range(400 if k == 0 else 20)]
        groups = [{"params": [each["name"] for each in tensors], "beta1": 0.9, "eps": 1e-8}]
        track = recorder.track({"rule": "adam", "groups": groups, "tensors": tensors, "measures": measures}, f"optimizer {k}")
        for t in range(60 if k == 0 else 30):
            track.observe(t, random.uniform(1, 99, (len(tensors), len(measures))), {"loss": random.uniform(), "grad_norm": 1.0})
            track.event(t, "x" * 1000)
    recorder.close()
    session = record.load(tmp_path / "large.oadam")
    text = report(session)
    assert len(text.encode()) < LARGEST
    page = Page(text)
    assert len(page.data["tracks"]) == 8
    assert "3 more optimizers" in "".join(page.text)
    (only,) = Page(report(session, "optimizer 10")).data["tracks"]
    assert len(only["tensors"]) == 20
    with pytest.raises(RecordError, match="there is no track 'x'"):
        report(session, "x")


def test_what_was_not_recorded_is_left_out(tmp_path: Path) -> None:
    record.Recorder(tmp_path / "empty.oadam").close()
    empty = record.load(tmp_path / "empty.oadam")
    assert "No optimizer has told anything yet" in "".join(Page(report(empty)).text)
    assert line(empty, None) == "nothing is recorded yet"
    recorder = record.Recorder(tmp_path / "begun.oadam")
    begun = openadam.Adam(np.ones(3), record=(recorder, "begun"))
    lost = openadam.SGD({"w": np.ones(3)}, record=(recorder, "no gradients"), nonfinite="skip")
    lost.step({"w": np.full(3, np.nan)})
    plain = openadam.Momentum({"w": np.ones(3)}, lr=0.1, record=(recorder, "plain"))
    plain.step({"w": np.zeros(3)})
    recorder.close()
    session = record.load(tmp_path / "begun.oadam")
    page = Page(report(session))
    told = "".join(page.text)
    assert "No step was measured" in told
    assert "1 skipped" in told
    assert [track["name"] for track in page.data["tracks"]] == ["begun", "no gradients", "plain"]
    assert "begun: step –" in line(session, None)
    for width in (40, 80):
        assert "no step was measured yet" in picture(session, width)
    assert begun.steps == 0


def test_tracks_are_told_apart(tmp_path: Path) -> None:
    recorder = record.Recorder(tmp_path / "gan.oadam")
    players = [openadam.Adam({"w": np.ones(4)}, beta1=beta1, record=(recorder, name)) for name, beta1 in (("generator", 0.5), ("critic", 0.9))]
    for _ in range(5):
        for player in players:
            player.step({"w": np.ones(4)})
    recorder.close()
    session = record.load(tmp_path / "gan.oadam")
    page = Page(report(session))
    assert [track["name"] for track in page.data["tracks"]] == ["generator", "critic"]
    told = "".join(page.text)
    assert "noise alone 0.577" in told
    assert "noise alone 0.229" in told
    assert [track["name"] for track in Page(report(session, "critic")).data["tracks"]] == ["critic"]
    assert "generator: step 5" in line(session, None)
    assert "generator" not in line(session, "critic")
    assert "generator" not in picture(session, 80, track="critic")


def test_a_run_over_torch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    import openadam.torch as hosts

    recorder = record.Recorder(tmp_path / "torch.oadam")
    model = torch.nn.Sequential(torch.nn.Linear(5, 20), torch.nn.Tanh(), torch.nn.Linear(20, 1))
    optimizer = hosts.AdamW(model.named_parameters(), lr=0.01, record=recorder)
    for _ in range(12):
        optimizer.zero_grad()
        (model(torch.ones(4, 5)) - 3).square().mean().backward()
        optimizer.step()
    recorder.close()
    session = record.load(tmp_path / "torch.oadam")
    page = Page(report(session))
    assert {tensor["name"] for tensor in page.data["tracks"][0]["tensors"]} == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert "noise alone 0.229" in "".join(page.text)
    assert "0.weight" in picture(session, 80)


def test_findings_are_shown_where_there_are_any(session: record.Session, monkeypatch: pytest.MonkeyPatch) -> None:
    evidence = {"reading": "share", "value": 0.5, "null": 0.0, "threshold": 0.1}
    ill = [record.Finding("D20", "warning", "Adam", name, 1, 9, evidence, "eps dominates", "lower eps", "somebody") for name in ("tiny", *HOSTILE)]
    monkeypatch.setattr(record.Session, "diagnose", lambda self: ill)
    page = Page(report(session))
    told = "".join(page.text)
    assert "Findings" in told
    assert "eps dominates" in told
    assert "share" in told
    assert "lower eps" in told
    assert sum(tag == "script" for tag, _ in page.tags) == 2
    monkeypatch.setattr(record.Session, "diagnose", lambda self: [])
    assert "Nothing was found." in "".join(Page(report(session)).text)


def test_the_command_writes_a_report(session: record.Session, tmp_path: Path, capsys: Any) -> None:
    own = tmp_path / "my run.oadam"
    shutil.copy(session.path, own)
    assert cli.main(["report", str(own)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'my run.html'}\n"
    assert Page((tmp_path / "my run.html").read_text("utf-8")).data["name"] == "my run.oadam"
    before = own.read_bytes()
    assert cli.main(["report", str(own), "--output", str(own)]) == 2
    assert own.read_bytes() == before
    assert cli.main(["report", str(own), "--track", "x"]) == 2
    for wrong in (["--output", str(tmp_path)], ["--output", str(tmp_path / "nowhere" / "x.html")], ["--session", "5"]):
        assert cli.main(["report", str(own), *wrong]) == 1
    assert cli.main(["report", str(tmp_path / "none.oadam")]) == 1
    assert all(text.startswith("openadam: error: ") for text in capsys.readouterr().err.splitlines())


def test_what_the_documentation_shows_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    document = (Path(__file__).parent.parent / "docs" / "recording.md").read_text("utf-8")
    for source in re.findall(r"^```python\n(.*?)^```", document, re.MULTILINE | re.DOTALL):
        if "for_lightning" in source and not importlib.util.find_spec("lightning"):
            continue
        names: dict[str, Any] = {}
        exec(compile(source, "recording.md", "exec"), names)
        if "optimizer" not in names:
            continue
        observer = names["optimizer"]._stepper.observer if "w" in names else names["optimizer"]._observer
        if observer is None:
            continue
        observer.track.recorder.close()
    for name, step in (("run.oadam", 200), ("torch.oadam", 20)):
        (track,) = record.load(name).tracks.values()
        assert track.last_step == step
        assert cli.main(["report", name]) == 0
        assert cli.main(["watch", name, "--once"]) == 0
    assert [event.text for event in record.load("run.oadam").tracks["AdamW"].events] == ["the data changed"]


# --- in a browser ------------------------------------------------------------------------------------------------------

BROWSER = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)

USE = """
const found = {};
const svg = document.querySelector("svg[data-chart]");
const box = svg.getBoundingClientRect();
svg.dispatchEvent(new PointerEvent("pointermove", {clientX: box.left + box.width / 2, bubbles: true}));
found.pointer = document.getElementById(svg.dataset.chart + "-r").textContent;
svg.dispatchEvent(new KeyboardEvent("keydown", {key: "Home"}));
found.home = document.getElementById(svg.dataset.chart + "-r").textContent;
const heat = document.querySelector("[data-heat]");
found.options = heat.querySelectorAll("option").length;
heat.querySelector("select").value = "eps_share";
heat.querySelector("select").dispatchEvent(new Event("change"));
heat.querySelector("svg").dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight"}));
found.cell = heat.querySelector(".readout").textContent;
const plane = document.querySelector("svg[data-plane]");
plane.dispatchEvent(new KeyboardEvent("keydown", {key: "End"}));
found.plane = document.getElementById(plane.dataset.plane + "-r").textContent;
const histograms = document.querySelector("[data-histograms]");
found.tensors = histograms.querySelectorAll("option").length;
histograms.querySelector("svg").dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowUp"}));
found.bin = histograms.querySelector(".readout").textContent;
found.eps = histograms.querySelector(".beside").textContent;
const texts = [];
window.Blob = class { constructor(parts) { texts.push(parts[0]); } };
URL.createObjectURL = () => "#";
HTMLAnchorElement.prototype.click = function () { found.saved = (found.saved || []).concat(this.download); };
for (const button of document.querySelectorAll("button[data-file]")) button.click();
found.json = JSON.parse(texts[0]).tracks[0].tensors.length;
found.csv = texts[1].split("\\r\\n").slice(0, 2);
found.quoted = texts[1].includes(`"'=HYPERLINK(1)"`);
const shown = document.createElement("pre");
shown.id = "found";
shown.textContent = JSON.stringify(found);
document.body.append(shown);
"""


@pytest.mark.skipif(BROWSER is None, reason="there is no browser")
def test_a_browser_opens_it_without_complaint(tmp_path: Path) -> None:
    text = report(train(tmp_path / "run.oadam", ["tiny", *HOSTILE], 40))
    open_with = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr"]

    try:
        subprocess.run([*open_with, "--dump-dom", "about:blank"], capture_output=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        pytest.skip("the browser does not start here")

    def opened(page: str) -> tuple[str, list[str]]:
        path = tmp_path / "page.html"
        path.write_text(page, "utf-8")
        done = subprocess.run([*open_with, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=60, check=True)
        return done.stdout, [each for each in done.stderr.splitlines() if "CONSOLE" in each]

    shown, complaints = opened(text)
    assert complaints == []
    assert "<rect" in shown  # of the heatmap, which the page's script draws
    inline = text.replace("</body>", "<script>document.title = 'harm'</script></body>")
    assert any("Content Security Policy" in each for each in opened(inline)[1])
    free = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text).replace("</body>", f"<script>{USE}</script></body>")
    shown, complaints = opened(free)
    assert complaints == []
    found = json.loads(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', shown, re.DOTALL).group(1)))  # type: ignore[union-attr]
    assert re.match(r"step (19|20|21): loss 0\.", found["pointer"])
    assert found["home"] == "step 1: loss 10"
    assert found["options"] >= 10
    assert found["cell"] == "tiny, step 1: eps-dominated 1"
    assert re.match(r".+, step 40: rms\(g\) \S+ · rms\(m\) \S+ · m/g 0\.\d+$", found["plane"])
    assert found["tensors"] == 12  # those in most trouble
    assert re.match(r"step \d+: [\d.]+% from \S+ to \S+$", found["bin"])
    assert found["eps"].startswith("eps 1e-")
    assert found["saved"] == ["run.oadam.json", "run.oadam.csv"]
    assert found["json"] == 1 + len(HOSTILE)
    assert found["csv"] == ['"track","tensor","reading","first","last","min","mean","max"', '"AdamW","","loss",1,1,10,10,10']
    assert found["quoted"]


# --- the live view -----------------------------------------------------------------------------------------------------


def rich_console(file: io.StringIO, width: int) -> Any:
    return pytest.importorskip("rich.console").Console(file=file, width=width, color_system=None, highlight=False)


def picture(session: record.Session, width: int, height: int = 30, track: str | None = None) -> str:
    shown = io.StringIO()
    rich_console(shown, width).print(screen(session, track, width, height))
    return shown.getvalue()


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_the_live_view_fits_the_terminal(session: record.Session, width: int) -> None:
    lines = picture(session, width).splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) <= 30
    told = "\n".join(lines)
    assert "step 300" in told
    assert "ended" in told
    assert "▁" in told
    names = [each.split()[0] for each in lines]
    assert names.index("tensor") + 1 == names.index("tiny")  # in the most trouble
    assert "mark: target" in told
    if width >= 60:
        assert "!100%" in told
        assert {"layers.0", "layers.1"} <= {name[:8] for name in names}
    for head, narrowest in (("RMS_t", 0), ("dis-null", 0), ("eps", 60), ("upd/w", 60), ("rms g", 80), ("spikes", 120)):
        assert (f" {head}" in told) == (width >= narrowest), head


def test_the_view_on_one_line(session: record.Session) -> None:
    told = line(session, None)
    assert re.match(
        r"AdamW: step 300  ended  loss 0\.0333  \|g\| \S+  clip 1  lr 0\.01  "
        r".*worst tiny: dir \S+, RMS_t \S+, dis-null [+-]\S+, upd/w \S+, eps !100%$",
        told,
    )


def test_sparklines() -> None:
    assert sparkline([], 5) == sparkline([math.nan], 5) == sparkline([1.0], 0) == ""
    assert sparkline([3.0, 3.0], 5) == "▁▁"
    assert sparkline([0, math.inf, 1], 9) == "▁·█"
    assert sparkline([0, 1, math.nan, math.nan], 2) == "▁·"
    assert len(sparkline(list(range(1000)), 20)) == 20


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_watch_on_a_terminal_and_elsewhere(session: record.Session, monkeypatch: Any, capsys: Any) -> None:
    pytest.importorskip("rich")
    for once in (["--once"], []):
        assert cli.main(["watch", session.path, *once]) == 0
        told = capsys.readouterr().out
        mark, told = told.splitlines()
        assert mark.startswith("AdamW: step 31  mark: target")
        assert told.startswith("AdamW: step 300")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "70")
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    assert cli.main(["watch", session.path]) == 0
    assert "tensor" in terminal.getvalue()
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]", terminal.getvalue())
    assert cli.main(["watch", session.path, "--track", "x"]) == 2
    assert cli.main(["watch", session.path, "--interval", "0"]) == 2


def test_an_alarm_of_many_tensors_is_told_once(tmp_path: Path, capsys: Any) -> None:
    """With the tensors, by what was seen of the worst; each once, where it is followed; and diseases by their tensors on the page."""
    path = tmp_path / "run.oadam"
    with record.Recorder(path, every=1) as recorder:
        params = {f"w{k}": np.ones((20, 10)) for k in range(9)}
        optimizer = openadam.Adam(params, record=recorder)
        random = np.random.default_rng(0)
        for t in range(1, 161):
            optimizer.step({name: random.normal(0, 40 if t == 140 else 1, p.shape) for name, p in params.items()})
    session = record.load(path)
    news = News(None)
    (told,) = [each for each in news(session) if "D16" in each]
    assert re.fullmatch(
        r"Adam: step 140  alarm: D16: .*, in w\d and 8 more: root mean square of g/sqrt\(v\) [\d.]+, healthy is 1 \(alarm at .*\)", told
    )
    assert news(session) == []
    page = report(session)
    assert page.count("spikes of single coordinates</b>") == 1
    assert "<summary>6 more</summary>" in page
    assert "threshold" not in page  # evidence is told in words
    assert cli.main(["watch", "--once", str(path)]) == 0
    assert capsys.readouterr().out.count("D16") == 1


def test_watch_is_interrupted_cleanly(session: record.Session, monkeypatch: Any, capsys: Any) -> None:
    pytest.importorskip("rich")

    def follow(self: record.Session, seconds: float) -> Any:
        yield self
        raise KeyboardInterrupt

    running = record.load(session.path)
    running.ended = None
    monkeypatch.setattr(record, "load", lambda *_: running)
    monkeypatch.setattr(record.Session, "follow", follow)
    assert cli.main(["watch", session.path]) == 130
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    assert cli.main(["watch", session.path]) == 130
    assert "no news for" in terminal.getvalue() or "running" in terminal.getvalue()
    assert terminal.getvalue().rstrip().endswith("\x1b[?25h")  # the cursor is back
    assert "openadam: interrupted" in capsys.readouterr().err


def test_watch_follows_another_process_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "run.oadam"
    program = f"""
import time, numpy as np, openadam
optimizer = openadam.Adam({{"w": np.ones(3)}}, record={str(path)!r})
for t in range(150):
    optimizer.step({{"w": np.ones(3)}}, loss=1.0)
    time.sleep(0.01)
"""
    training = subprocess.Popen([sys.executable, "-c", program])
    try:
        began = time.monotonic()
        while not (path.exists() and path.stat().st_size) and time.monotonic() - began < 30:
            time.sleep(0.05)
        command = [sys.executable, "-m", "openadam", "watch", str(path), "--interval", "0.1"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert training.wait(timeout=30) == 0
    finally:
        training.kill()
    lines = done.stdout.splitlines()
    assert len(lines) >= 2
    assert lines[-1].startswith("Adam: step 150  ended  loss 1")
    assert "steps/s" in lines[-1]


def test_the_view_tells_findings_and_what_the_moments_remember(session: record.Session) -> None:
    pytest.importorskip("rich")
    findings = Findings(session)()
    assert [each.first_step or 0 for each in findings] == sorted((each.first_step or 0 for each in findings), reverse=True)
    shown = io.StringIO()
    rich_console(shown, 140).print(screen(session, None, 140, 40, findings))
    told = shown.getvalue()
    for part in (
        "D20 tiny: eps dominates",
        "share of sqrt(v) below eps 1",
        "→ Lower eps",
        "m ━━━━━━ 10/10",
        "v ━━┄┄┄┄ 300/1000",
        "c_t 0.509",
        "recording ",
    ):
        assert part in told, part
    assert told.index("target <b>sync") < told.index("D20")  # the latest first
    assert "RMS_t so far" in told
    few = io.StringIO()
    rich_console(few, 60).print(screen(session, None, 60, 20, findings))
    assert max(map(len, few.getvalue().splitlines())) <= 60
    assert len(few.getvalue().splitlines()) <= 20


def test_a_run_that_is_all_nan_does_not_look_healthy(tmp_path: Path) -> None:
    path = tmp_path / "run.oadam"
    optimizer = openadam.AdamW({"w": np.ones((10, 10))}, record=(recorder := record.Recorder(path)), nonfinite="propagate")
    for t in range(300):
        grads = np.random.default_rng(t).normal(size=(10, 10))
        optimizer.step({"w": np.where(np.eye(10) > 0, math.nan, grads) if t == 200 else grads if t < 200 else grads * math.nan}, loss=1.0)
    recorder.close()
    session = record.load(path)
    told = line(session, None)
    assert "|g| nan" in told
    assert "worst w: dir !nan" in told
    page = Page(report(session))
    assert "not finite100" in "".join(page.text)
    drawn = picture(session, 100)
    assert "!nan" in drawn


def test_a_program_that_stopped_is_no_refused_step(tmp_path: Path) -> None:
    path = tmp_path / "run.oadam"

    def run() -> None:
        with record.Recorder(path) as recorder:
            optimizer = openadam.Adam({"w": np.ones(50)}, record=recorder)
            optimizer.step({"w": np.ones(50)})
            raise ValueError("my own")

    with pytest.raises(ValueError, match="my own"):
        run()
    told = line(record.load(path), None)
    assert told.endswith("  1 stopped")
    assert "refused" not in told


def test_watch_can_wait_for_the_run_to_begin(tmp_path: Path) -> None:
    path = tmp_path / "run.oadam"
    command = [sys.executable, "-m", "openadam", "watch", "--wait", "--interval", "0.1", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        assert watching.stderr is not None
        assert watching.stderr.readline() == f"openadam: waiting for {path}\n"
        with record.Recorder(path, flush=0.05) as recorder:
            optimizer = openadam.Adam({"w": np.ones(50)}, record=recorder)
            for t in range(1, 6):
                optimizer.step({"w": np.random.default_rng(t).normal(size=50)}, loss=1.0)
        told, complaint = watching.communicate(timeout=60)
        assert (watching.returncode, complaint) == (0, "")
    assert told.splitlines()[-1].startswith("Adam: step 5  ended")


def test_lines_are_so_many_steps_apart(monkeypatch: Any, capsys: Any, session: record.Session) -> None:
    class Look:
        def __init__(self, steps: int, ended: float | None = None) -> None:
            self.tracks = {"w": type("Track", (), {"steps": steps})}
            self.is_over = ended is not None

    looks = [Look(10), Look(50), Look(109), Look(110), Look(300), Look(301, 1.0)]
    assert [each.tracks["w"].steps for each, due in _apart(looks, 100) if due] == [10, 110, 300, 301]
    assert len(list(_apart(looks, None))) == len(looks)
    assert cli.main(["watch", session.path, "--every", "100"]) == 0
    assert capsys.readouterr().out.count("\n") == 2
    assert cli.main(["watch", session.path, "--every", "0"]) == 2


# --- what follows from several measures --------------------------------------------------------------------------------


def noisy(path: Path, signal: float, batch: int, steps: int = 4000) -> record.Session:
    """A run whose gradients are means over a batch, of samples with variance 1 around a signal."""
    recorder, random = record.Recorder(path), np.random.default_rng(3)
    optimizer = openadam.Adam({"w": np.zeros(300)}, lr=1e-6, beta2=0.99, record=recorder)
    for _ in range(steps):
        optimizer.step({"w": signal + random.standard_normal(300) / math.sqrt(batch)})
    recorder.close()
    return record.load(path)


def test_the_noise_scale_is_that_of_the_samples(tmp_path: Path) -> None:
    session = noisy(tmp_path / "a.oadam", signal=0.2, batch=5)
    sight = Sight(session.tracks["Adam"], ["w"], 100, 10)
    assert float(sight.latest_noise.trace) == pytest.approx(300 / 5, rel=0.05)
    assert float(sight.latest_noise.signal) == pytest.approx(300 * 0.04, rel=0.05)
    told = "".join(Page(report(session, batch_size=5)).text)
    scale = 1 / 5 / 0.04  # in batches: 25 samples
    batches, samples = re.search(r"Noise scale: (\S+) batches, (\S+) samples at 5 in a batch", told).groups()  # type: ignore[union-attr]
    assert float(batches) == pytest.approx(scale, rel=0.1)
    assert float(samples) == pytest.approx(25, rel=0.1)
    assert "Noise scale: " in "".join(Page(report(session)).text)
    assert "samples at" not in "".join(Page(report(session)).text)


def test_noise_that_drowns_the_gradient_has_no_scale() -> None:
    assert math.isnan(noise(5.0, 5 * 0.05, 0.9, 1000).scale)
    assert "Noise drowns the gradient" in noise_in_words(noise(5.0, 5 * 0.05, 0.9, 1000), 32)
    assert "cannot be told" in noise_in_words(noise(math.nan, math.nan, 0.9, 10), None)
    assert math.isnan(noise(1.0, 1.0, 0.9, 1).scale)  # one gradient tells of no variance
    assert float(noise(1.0, 1.0, 0.9, 1000).scale) == 0.0


def test_forecasts_are_of_what_falls() -> None:
    steps = np.arange(100)
    falling = crossing(steps, np.exp2(20 - steps / 10))
    assert falling is not None
    assert falling.crossing == 200
    assert crossing(steps, np.full(100, 50.0)) is None
    assert crossing(steps, np.exp2(steps / 10)) is None
    assert crossing(steps, np.exp2(-steps / 10)) is None  # below already
    assert crossing(steps, np.exp2(20 - steps / 1e4)) is None  # some day
    assert crossing(steps, np.exp(5 + np.random.default_rng(0).standard_normal(100))) is None
    assert crossing(steps[:5], np.exp2(20 - steps[:5])) is None


def test_the_way_to_eps_is_told_and_drawn(tmp_path: Path) -> None:
    recorder, random = record.Recorder(tmp_path / "run.oadam", every=5), np.random.default_rng(0)
    optimizer = openadam.Adam({"w": np.zeros(50)}, beta2=0.9, eps=1e-4, record=recorder)
    for t in range(600):
        optimizer.step({"w": 10.0 ** (-3 * t / 1000) * random.standard_normal(50)})
    recorder.close()
    session = record.load(tmp_path / "run.oadam")
    text = report(session)
    step = int(re.search(r"√v̂ comes down to eps in w at about step (\d+)", text).group(1))  # type: ignore[union-attr]
    assert step == pytest.approx(4000 / 3, rel=0.1)  # where 10^(-3t/1000) is eps
    assert 'class="line ahead c0"' in text
    (_, ahead) = Sight(session.tracks["Adam"], ["w"], 100, 10).figures["epsway"].steps  # type: ignore[union-attr]
    assert ahead == pytest.approx(600 + 0.5 * 599)  # no further than half the run


def test_rotation_and_size_come_where_theory_says(tmp_path: Path) -> None:
    recorder, random = record.Recorder(tmp_path / "run.oadam"), np.random.default_rng(0)
    optimizer = openadam.AdamW({"w": random.standard_normal(2000) * 0.07}, lr=1e-2, weight_decay=1.0, record=recorder)
    for _ in range(1500):
        optimizer.step({"w": random.standard_normal(2000)})
    recorder.close()
    sight = Sight(record.load(tmp_path / "run.oadam").tracks["AdamW"], ["w"], 100, 10)
    assert sight.equilibrium is not None
    size, _, turn = sight.equilibrium
    assert sight.series[0, "param_rms"].mid[-1] == pytest.approx(size, rel=0.1)
    assert sight.series[0, "rotation"].mid[-1] == pytest.approx(turn, rel=0.1)


# --- histograms --------------------------------------------------------------------------------------------------------


def test_histograms_are_told_in_words(tmp_path: Path) -> None:
    groups = [{"params": ["w"], "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}]
    with record.Recorder(tmp_path / "run.oadam") as recorder:
        track = recorder.track({"rule": "adam", "groups": groups, "tensors": [{"name": "w", "elements": 4}], "measures": []}, "AdamW")
        track.step(60, {"lr": 1e-2})
        for name in ("rate", "v_root", "direction_abs", "something else"):
            track.histogram(1, "w", name, np.bincount([43], minlength=64), np.array(OCTAVES))
            track.histogram(60, "w", name, np.bincount([0, 46, 46, 46], minlength=64), np.array(OCTAVES))
    session = record.load(tmp_path / "run.oadam")
    root, direction, rate = histograms.spreads(session.tracks["AdamW"], "w")
    assert root.edges.tolist() == [2.0**k for k in range(-5, 0)]  # no further than it ever held anything
    assert root.shares.tolist() == [[1, 0, 0, 0], [0, 0, 0, 0.75]]
    assert (root.below.tolist(), root.above.tolist()) == ([0, 0.25], [0, 0])
    assert histograms.quantile(root, -1, 0.25 + 0.375) == pytest.approx(0.25 * math.sqrt(2))
    assert histograms.quantile(root, -1, 0.1) == 0
    assert histograms.quantile(root, 0, 0.99) <= 2.0**-4
    assert histograms.share_below(root, -1, 1e-8) == 0.25
    assert histograms.share_below(root, -1, 0.25 * math.sqrt(2)) == pytest.approx(0.625)
    told = [histograms.words(each) for each in (root, direction, rate)]
    assert "25% below eps, 1e-08" in told[0]
    assert "25% zero or below 7.11e-15, which is not drawn" in told[0]
    assert "none above bound, 7.27" in told[1]
    assert "above lr/eps, 1e+06" in told[2]
    assert told[0].startswith("Step 60: median 0.315")
    page = "".join(Page(report(session)).text)
    assert all(each in page for each in told)
    assert histograms.spreads(session.tracks["AdamW"], "nobody") == []


# --- pictures ----------------------------------------------------------------------------------------------------------


def test_the_figures_as_files(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    session = train(tmp_path / "run.oadam", ["$x_1$", "_w", "</svg><script>", "层"], 120)
    drawn = dict(plots(session, None, "svg"))
    assert {"AdamW-loss", "AdamW-phase", "AdamW-epsway", "AdamW-noise", "AdamW-rotation", "AdamW-heat-surprise", "AdamW-histograms-1"} <= {*drawn}
    for name in ("AdamW-direction", "AdamW-heat-direction", "AdamW-histograms-1", "AdamW-phase"):
        text = drawn[name]().decode()
        assert "<script>" not in text
        assert xml.etree.ElementTree.fromstring(text).tag.endswith("svg")
        assert drawn[name]().decode() == text  # the same again
    for name in ("loss", "phase", "noise"):
        assert dict(plots(session, None, "png"))[f"AdamW-{name}"]().startswith(b"\x89PNG")
    with pytest.raises(RecordError, match="there is no track"):
        next(plots(session, "x", "png"))
    monkeypatch.setattr("openadam.views.plots.plots", lambda *given: [("a", lambda: b"x")])
    assert cli.main(["report", session.path, "--png", str(tmp_path / "pictures"), "--svg", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / each) for each in ("run.html", "pictures/a.png", "a.svg")]
    for wrong in (session.path, str(tmp_path / "nowhere" / "x")):
        assert cli.main(["report", session.path, "--png", wrong]) == 1
    assert cli.main(["report", session.path, "--batch-size", "0"]) == 2
    assert capsys.readouterr().err.count("openadam: error: ") == 3


def test_pictures_without_their_library_are_refused(session: record.Session, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    own = tmp_path / "run.oadam"
    shutil.copy(session.path, own)
    assert cli.main(["report", str(own), "--png", str(tmp_path)]) == 1
    assert "pip install 'openadam[demo]'" in capsys.readouterr().err
    assert (tmp_path / "run.html").exists()  # the page needs none


# --- what recording costs ----------------------------------------------------------------------------------------------


def test_the_cost_of_recording_is_what_observed_steps_take_longer(tmp_path: Path) -> None:
    recorder = record.Recorder(tmp_path / "run.oadam")
    track = recorder.track({"tensors": [], "measures": []}, "w")
    clock = iter(np.arange(1e9, 1e9 + 1000, 1.0))  # a step each second
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", lambda: float(next(clock)))
        for t in range(101):
            track.step(t, {"observed_step_seconds" if t % 10 == 0 else "step_seconds": 0.5 if t % 10 == 0 else 0.2, "telling_seconds": 0.01})
    recorder.close()
    found = histories.overhead(record.load(tmp_path / "run.oadam").tracks["w"])
    assert found is not None
    assert found[:2] == pytest.approx((0.5, 0.2))
    assert found.share == pytest.approx((11 * 0.3 + 101 * 0.01) / 100, rel=0.02)
    assert "recording took 4.3% of the run" in histories.overhead_in_words(record.load(tmp_path / "run.oadam").tracks["w"])
