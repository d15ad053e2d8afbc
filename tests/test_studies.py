"""Studies: the frame, its file and its verdicts on made-up data; and the claims of each study, where the effect is far beyond noise."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openadam import NonFiniteGradientError, cli
from openadam.studies import digits, frame, gan, nlp, rl
from openadam.studies.frame import Cell, CellFile, Claim, Setting, Study, StudyError, judge, planned, run_cells
from openadam.views import study as view

for needed in ("scipy", "sklearn", "rich", "matplotlib"):
    pytest.importorskip(needed)


def made_up(setting: Setting, seed: int, full: bool) -> Cell:
    """A cell that costs nothing."""
    random = np.random.default_rng(seed)
    value = setting.hyperparameters["level"] + float(random.standard_normal())
    return Cell(setting.name, seed, {"x": value, "budget": float(full)}, {"walk": ([1.0, 2.0], [value, -value])})


STUDY = Study(
    "made-up", "Nothing at all", {"x": "a number"}, [Setting("low", {"level": 0.0}), Setting("high", {"level": 1.0})],
    [Claim("low is lower", "nobody", "x", "low", "high", "below")], made_up, 3, 5,
)  # fmt: skip
CELLS = planned(["low", "high"], 4)


# --- verdicts -----------------------------------------------------------------------------------------------------------


def cells(low: Any, high: Any) -> list[Cell]:
    return [Cell(name, seed, {"x": value}) for name, values in (("low", low), ("high", high)) for seed, value in values.items()]


def numbered(*values: float) -> dict[int, float]:
    return dict(enumerate(values))


BELOW, ABOVE = STUDY.claims[0], dataclasses.replace(STUDY.claims[0], direction="above")
RATIO = dataclasses.replace(BELOW, statistic="ratio", bound=1.0)
NOISE = (0.3, -0.2, 0.1, -0.1, 0.2)
VERDICTS: dict[str, tuple[Claim, list[Cell], str, int]] = {
    "an effect": (BELOW, cells(numbered(*NOISE), numbered(*(x + 5 for x in NOISE[::-1]))), "seen", 5),
    "the opposite": (ABOVE, cells(numbered(*NOISE), numbered(*(x + 5 for x in NOISE[::-1]))), "not seen", 5),
    "no effect": (BELOW, cells(numbered(*NOISE), numbered(*NOISE[::-1])), "within noise", 5),
    "a small effect, paired": (BELOW, cells(numbered(*(100 * x for x in NOISE)), numbered(*(100 * x + 1e-3 for x in NOISE))), "seen", 5),
    "one seed": (BELOW, cells(numbered(0), numbered(9)), "within noise", 1),
    "no seed": (BELOW, [], "within noise", 0),
    "no seed in common": (BELOW, cells({0: 0.0}, {1: 9.0}), "within noise", 0),
    "unequal seeds": (BELOW, cells({0: 0.0, 1: 0.1, 7: 99.0}, {0: 5.0, 1: 5.2, 2: -99.0}), "seen", 2),
    "NaN and infinity are no seeds": (BELOW, cells(numbered(0, 0.1, math.nan, 0.0), numbered(5, 5.1, 5, math.inf)), "seen", 2),
    "a number": (dataclasses.replace(BELOW, against=None, bound=2.0), cells(numbered(*NOISE), {}), "seen", 5),
    "a bound": (dataclasses.replace(BELOW, bound=-6.0), cells(numbered(*NOISE), numbered(*(x + 5 for x in NOISE))), "not seen", 5),
    "within": (dataclasses.replace(BELOW, direction="within", bound=1.0), cells(numbered(*NOISE), numbered(*NOISE[::-1])), "seen", 5),
    "within, and far below": (
        dataclasses.replace(BELOW, direction="within", bound=1.0),
        cells(numbered(*NOISE), numbered(*(x + 5 for x in NOISE))),
        "not seen",
        5,
    ),
    "within, and far above": (
        dataclasses.replace(BELOW, direction="within", bound=1.0),
        cells(numbered(*NOISE), numbered(*(x - 5 for x in NOISE))),
        "not seen",
        5,
    ),
    "within, and across": (
        dataclasses.replace(BELOW, direction="within", bound=0.1),
        cells(numbered(*NOISE), numbered(*NOISE[::-1])),
        "within noise",
        5,
    ),
    "a ratio": (dataclasses.replace(BELOW, statistic="ratio", bound=0.6), cells(numbered(1, 2, 4), numbered(2, 4, 8)), "seen", 3),
    "a ratio above": (dataclasses.replace(BELOW, statistic="ratio", bound=0.4), cells(numbered(1, 2, 4), numbered(2, 4, 8)), "not seen", 3),
    "a ratio of what is not positive": (RATIO, cells(numbered(-1, 0), numbered(1, 1)), "within noise", 0),
}


@pytest.mark.parametrize("case", VERDICTS)
def test_a_verdict_is_computed(case: str) -> None:
    claim, given, verdict, seeds = VERDICTS[case]
    found = judge(claim, given)
    assert (found.verdict, found.seeds) == (verdict, seeds)
    if seeds > 1:
        assert found.interval is not None
        assert found.interval[0] <= found.effect <= found.interval[1]
    else:
        assert found.interval is None


def test_the_interval_is_students() -> None:
    found = judge(BELOW, cells(numbered(1.0, 2.0, 4.0), numbered(0.0, 0.0, 0.0)))
    reach = 4.302653 * statistics.stdev([1, 2, 4]) / math.sqrt(3)
    assert found.interval == pytest.approx((7 / 3 - reach, 7 / 3 + reach), rel=1e-6)


# --- running, and going on ----------------------------------------------------------------------------------------------


def without_time(done: Any) -> list[Cell]:
    return sorted((dataclasses.replace(cell, seconds=0.0) for cell in done), key=lambda cell: (cell.seed, cell.setting))


def test_cells_side_by_side_are_those_of_one_after_the_other() -> None:
    one = list(run_cells(digits_quickly(), planned(["adam", "momentum"], 2)))
    two = list(run_cells(digits_quickly(), planned(["adam", "momentum"], 2), workers=2))
    for a, b in zip(without_time(one), without_time(two), strict=True):
        assert {**a.metrics, "microseconds": 0, "diverged_at": 0} == {**b.metrics, "microseconds": 0, "diverged_at": 0}
        assert a.curves == b.curves


def digits_quickly() -> Study:
    settings = [Setting(name, {"lr": digits.RATES[name], "epochs": 1}) for name in ("adam", "momentum")]
    return dataclasses.replace(digits.STUDY, settings=settings, claims=[])


def test_resumed_is_as_if_never_interrupted(tmp_path: Path) -> None:
    whole = without_time(run_cells(STUDY, CELLS))
    path = tmp_path / "cells.jsonl"
    file = CellFile(path, STUDY, full=False, resume=False)
    running = run_cells(STUDY, CELLS)
    for _ in range(3):
        file.append(next(running))
    running.close()
    with path.open("a") as torn:
        torn.write('{"setting": "low", "se')  # killed while it wrote
    again = CellFile(path, STUDY, full=False, resume=True)
    assert len(again.cells) == 3
    done = {(cell.setting, cell.seed) for cell in again.cells}
    for cell in run_cells(STUDY, [each for each in CELLS if each not in done]):
        again.append(cell)
    last = CellFile(path, STUDY, full=False, resume=True)
    assert json.dumps([dataclasses.asdict(cell) for cell in without_time(last.cells)]) == json.dumps([dataclasses.asdict(cell) for cell in whole])
    assert [judge(claim, last.cells) for claim in STUDY.claims] == [judge(claim, whole) for claim in STUDY.claims]


def test_going_on_writes_nothing_that_it_need_not(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    file = CellFile(path, STUDY, full=False, resume=False)
    for cell in run_cells(STUDY, CELLS):
        file.append(cell)
    before, modified = path.read_bytes(), path.stat().st_mtime_ns
    assert len(CellFile(path, STUDY, full=False, resume=True).cells) == len(CELLS)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (before, modified)
    path.write_bytes(before[:-7])  # the last line lost its end
    assert len(CellFile(path, STUDY, full=False, resume=True).cells) == len(CELLS) - 1
    assert path.read_bytes() == before[: before[:-1].rindex(b"\n") + 1]


@pytest.mark.parametrize(
    "line",
    [b"[]", b"{}", b"5", b'"x"', b"nothing", b"\xff\xfe", b"", b'{"setting": "low", "seed": 0}']
    + [
        json.dumps({**dataclasses.asdict(Cell("low", 0, {"x": 1.0})), **wrong}).encode()
        for wrong in (
            {"seed": "0"},
            {"metrics": {}},
            {"metrics": [1]},
            {"metrics": {"x": "a"}},
            {"curves": {"walk": [1]}},
            {"colour": 1},
            {"setting": 3},
        )
    ],
)
def test_a_line_that_is_no_cell_is_named_and_left(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "cells.jsonl"
    file = CellFile(path, STUDY, full=False, resume=False)
    file.append(made_up(STUDY.settings[0], 0, False))
    with path.open("ab") as damaged:
        damaged.write(line + b"\n")
    file.append(made_up(STUDY.settings[1], 0, False))
    before = path.read_bytes()
    with pytest.raises(StudyError, match=r"line 3 of .* is no cell of a study"):
        CellFile(path, STUDY, full=False, resume=True)
    assert path.read_bytes() == before


def test_what_cannot_be_gone_on_with(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="leave --resume out"):
        CellFile(tmp_path / "typo.jsonl", STUDY, full=False, resume=True)
    with pytest.raises(IsADirectoryError, match="is a directory"):
        CellFile(tmp_path, STUDY, full=False, resume=False)
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    CellFile(empty, STUDY, full=False, resume=False)
    header = json.loads(empty.read_text())
    empty.write_text(json.dumps({**header, "openadam": "0.0.1"}) + "\n")
    with pytest.raises(StudyError, match=r"begun by openadam 0\.0\.1"):
        CellFile(empty, STUDY, full=False, resume=True)


def test_a_study_that_contradicts_itself_is_refused() -> None:
    for wrong in ({"direction": "under"}, {"statistic": "quotient"}, {"statistic": "ratio"}, {"direction": "within"}):
        with pytest.raises(StudyError, match="low is lower"):
            dataclasses.replace(BELOW, **wrong)
    with pytest.raises(StudyError, match="has no setting 'lower'; there are: low; high"):
        dataclasses.replace(STUDY, claims=[dataclasses.replace(BELOW, setting="lower")])
    with pytest.raises(StudyError, match="two settings of one name"):
        dataclasses.replace(STUDY, settings=[*STUDY.settings, STUDY.settings[0]])
    with pytest.raises(StudyError, match="has no setting 'lower'"):
        list(run_cells(STUDY, [("lower", 0)]))


def test_files_of_others_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    CellFile(path, STUDY, full=False, resume=False)
    with pytest.raises(FileExistsError, match="--resume"):
        CellFile(path, STUDY, full=False, resume=False)
    with pytest.raises(StudyError, match="not a file of cells of the study made-up --full"):
        CellFile(path, STUDY, full=True, resume=True)
    with pytest.raises(StudyError, match="study gan"):
        CellFile(path, gan.STUDY, full=False, resume=True)
    path.write_text("something else\n")
    with pytest.raises(StudyError):
        CellFile(path, STUDY, full=False, resume=True)
    assert path.read_text() == "something else\n"


@pytest.mark.parametrize("study", [digits.STUDY, gan.STUDY, rl.STUDY, nlp.STUDY], ids=lambda study: study.name)
def test_claims_are_of_settings_and_numbers_that_there_are(study: Study) -> None:
    names = {setting.name for setting in study.settings}
    for claim in study.claims:
        assert claim.setting in names
        assert claim.against is None or claim.against in names
        assert claim.metric in study.metrics
        assert claim.source


def test_a_study_as_data_and_picture() -> None:
    done = list(run_cells(STUDY, CELLS))
    data = json.loads(json.dumps(view.as_json(STUDY, done, ["a file"]), allow_nan=False))
    assert list(data) == ["openadam", "study", "full", "settings", "claims", "files"]
    assert [list(setting) for setting in data["settings"]] == [["name", "hyperparameters", "metrics", "seeds", "diverged"]] * 2
    assert len(data["settings"][0]["metrics"]["x"]["values"]) == 4
    assert list(data["claims"][0])[:7] == ["claim", "source", "verdict", "effect", "interval", "seeds", "left_out"]
    assert {name: data["claims"][0][name] for name in ("metric", "setting", "direction")} == {"metric": "x", "setting": "low", "direction": "below"}
    assert view.picture(STUDY, done, ".png")[:4] == b"\x89PNG"
    assert b"<svg" in view.picture(STUDY, done[:1], ".svg")[:1000]


def diverges(setting: Setting, seed: int, full: bool) -> Cell:
    if seed == 1:
        raise NonFiniteGradientError("w", 0, math.inf, 1, 7)
    return made_up(setting, seed, full)


def test_a_run_that_diverges_has_no_numbers_and_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    study = dataclasses.replace(STUDY, run=diverges)
    done = list(run_cells(study, planned(["low", "high"], 3)))
    assert [cell.refused != "" for cell in done] == [False, False, True, True, False, False]
    assert judge(STUDY.claims[0], done).seeds == 2
    view.print_results(study, done, [])
    assert "low diverged in 1 of 3 runs" in capsys.readouterr().out


# --- the command --------------------------------------------------------------------------------------------------------


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(digits, "EPOCHS", 1)
    ask = ["study", "digits", "--seeds", "2", "--settings", "adam; amsgrad", "--workers", "1", "--out", "cells.jsonl"]
    assert cli.main([*ask, "--json", "--picture", "digits.svg"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [setting["name"] for setting in data["settings"]] == ["adam", "amsgrad"]
    assert data["files"] == ["digits.svg", "cells.jsonl"]
    assert cli.main(ask) == 2  # the file is there
    assert "give --resume" in capsys.readouterr().err
    assert cli.main([*ask, "--resume"]) == 0
    out, err = capsys.readouterr()
    assert "within noise" in out or "seen" in out
    assert err == ""
    assert cli.main([*ask[:-2], "--settings", "adam;adam"]) == 0
    out, err = capsys.readouterr()
    assert "1 of 2 done (adam, seed 0); about" in err
    for wrong, says in (
        (["study", "gann"], "did you mean 'gan'?"),
        (["study", "digits", "--settings", "adm"], "no setting 'adm'; did you mean 'adam'?"),
        (["study", "digits", "--resume"], "name it with --out"),
        (["study", "digits", "--resume", "--out", "typo.jsonl"], "there is no typo.jsonl to go on with"),
        (["study", "digits", "--out", "x.png", "--picture", "x.png"], "cannot hold both"),
        (["study", "digits", "--list", "--json", "--seeds", "2"], "leave --seeds, --json out"),
        (["study", "digits", "--sweep", "--settings", "adam"], "leave --settings out"),
        (["study", "gan", "--settings", "nonsense"], "betas (0.9, 0.999); betas (0.5, 0.999)"),
        (["study", "json:loads"], "not an openadam.studies.frame.Study"),
        (["study"], "which study? digits, gan, rl, nlp"),
        (["study", "digits", "--picture", "x.bmp"], "--picture x.bmp"),
        (["study", "gan", "--sweep"], "chooses no learning rates"),
    ):
        assert cli.main(wrong) == 2
        assert says in capsys.readouterr().err
    assert cli.main(["study", "--list"]) == 0
    assert capsys.readouterr().out.startswith("digits  Handwritten digits")
    for name in ("digits", "gan", "rl", "nlp"):
        assert cli.main(["study", name, "--list"]) == 0
        assert "Claims" in capsys.readouterr().out


def test_an_interrupt_keeps_what_is_done(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(study: Study, cells: Any, **_: Any) -> Any:
        for name, seed in cells[:3]:
            yield Cell(name, seed, {"test_loss": 1.0 + seed})
        raise KeyboardInterrupt

    monkeypatch.setattr(frame, "run_cells", interrupted)
    path = tmp_path / "cells.jsonl"
    assert cli.main(["study", "digits", "--settings", "adam;amsgrad", "--seeds", "2", "--json", "--out", str(path)]) == 130
    out, err = capsys.readouterr()
    assert f"interrupted after 3 of 4 cells; go on with --out {path} --resume" in err
    assert [len(setting["metrics"]["test_loss"]["values"]) for setting in json.loads(out)["settings"]] == [2, 1]
    assert len(path.read_text().splitlines()) == 4


def test_a_full_disk_loses_no_result(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: CellFile, cell: Cell) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(digits, "EPOCHS", 1)
    monkeypatch.setattr(CellFile, "append", full)
    ask = ["study", "digits", "--settings", "adam", "--seeds", "2", "--workers", "1", "--out", str(tmp_path / "cells.jsonl")]
    assert cli.main(ask) == 1
    out, err = capsys.readouterr()
    assert "test accuracy" in out
    assert err.count("No space left on device; the cells from here on are in no file") == 1


def test_a_study_of_ones_own_runs_by_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)  # closed
    assert cli.main(["study", f"{__name__}:STUDY", "--seeds", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["study"] == "made-up"


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_the_program(tmp_path: Path, number: int) -> None:
    (tmp_path / "endless.py").write_text(
        "import dataclasses, os, pathlib, time\n"
        "from openadam.studies.frame import Cell, Setting, Study\n"
        "def run(setting, seed, full):\n"
        "    pathlib.Path(str(os.getpid())).touch()\n"
        "    time.sleep(600)\n"
        "STUDY = Study('endless', 'Endless', {'x': 'nothing'}, [Setting('a', {}), Setting('b', {})], [], run, 1, 1)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "openadam", "study", "endless:STUDY", "--workers", "2"], cwd=tmp_path, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while len(workers := [int(file.name) for file in tmp_path.iterdir() if file.name.isdecimal()]) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(60) == (-number if number == signal.SIGKILL else 128 + number)
        while any(alive(worker) for worker in workers):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.kill()


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# --- what the studies show, on a small budget ---------------------------------------------------------------------------


def means(study: Study, names: list[str], seeds: int) -> dict[str, dict[str, float]]:
    done = list(run_cells(study, planned(names, seeds)))
    return {
        name: {key: statistics.fmean(cell.metrics[key] for cell in done if cell.setting == name) for key in done[0].metrics if key in found.metrics}
        for name in names
        for found in [next(cell for cell in done if cell.setting == name)]
    }


def test_a_first_moment_hinders_players_whose_gradients_turn() -> None:
    pytest.importorskip("torch")
    seen = means(gan.STUDY, ["betas (0.9, 0.999)", "betas (0, 0.9)"], 2)
    without, usual = seen["betas (0, 0.9)"], seen["betas (0.9, 0.999)"]
    assert without["frechet_distance"] < 0.7 * usual["frechet_distance"]
    assert without["classes"] >= 7
    assert without["generator_disagreement"] == 0
    assert 0.05 < usual["generator_disagreement"] < 0.3
    assert 0.05 < usual["discriminator_disagreement"] < 0.3


def test_on_the_saddle_memory_makes_the_players_spiral_outwards() -> None:
    seen = means(gan.STUDY, ["xy, beta1 0", "xy, beta1 0.5", "xy, beta1 0.9", "xy, beta1 0.99"], 1)
    assert [round(each["radius"], 3) for each in seen.values()] == [0.007, 0.125, 3.343, 32.491]


def test_a_change_of_the_target_makes_a_comb_that_counting_anew_removes() -> None:
    for needed in ("torch", "gymnasium"):
        pytest.importorskip(needed)
    seen = means(rl.STUDY, ["Adam", "reset t", "reset all"], 1)
    assert seen["Adam"]["rms_comb"] > 2.5
    assert seen["Adam"]["step_comb"] > 3.5
    assert seen["reset t"]["step_comb"] < 0.75 * seen["Adam"]["step_comb"]
    assert seen["reset all"]["rms_comb"] < 1.5


def test_adam_learns_rare_words_and_moves_those_that_are_absent() -> None:
    seen = means(nlp.STUDY, ["SGD", "Adam"], 2)
    assert seen["Adam"]["loss_rare"] < seen["SGD"]["loss_rare"] - 0.3
    assert abs(seen["Adam"]["loss_frequent"] - seen["SGD"]["loss_frequent"]) < 0.15
    assert 0.75 < seen["Adam"]["absent_motion"] < 0.87
    assert seen["SGD"]["absent_motion"] == 0


def test_without_correction_the_first_updates_of_a_transformer_are_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.setattr(nlp, "TRANSFORMER_STEPS", 40)
    seen = means(nlp.STUDY, ["AdamW, no correction", "AdamW, beta2 0.999"], 1)
    assert seen["AdamW, no correction"]["largest_update"] > 2 * seen["AdamW, beta2 0.999"]["largest_update"]


def test_the_frame_restores_the_environment() -> None:
    import os

    before = dict(os.environ)
    list(run_cells(digits_quickly(), planned(["adam"], 2), workers=2))
    assert dict(os.environ) == before
    assert frame.ONE_THREAD


def test_a_picture_that_cannot_be_drawn_does_not_lose_the_results(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails(*_: Any) -> bytes:
        raise RuntimeError("no font")

    monkeypatch.setattr(digits, "EPOCHS", 1)
    monkeypatch.setattr(view, "picture", fails)
    ask = ["study", "digits", "--settings", "adam;amsgrad", "--seeds", "1", "--workers", "1", "--picture"]
    assert cli.main([*ask, str(tmp_path / "x.png")]) == 1
    out, err = capsys.readouterr()
    assert "test accuracy" in out
    assert "the picture could not be drawn (RuntimeError: no font)" in err
    assert cli.main([*ask, str(tmp_path / "nowhere" / "x.png")]) == 1
    assert "no such directory" in capsys.readouterr().err
