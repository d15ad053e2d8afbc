"""A recording raises alarms while a run goes on: of runs made ill to order, once, with the last steps in full. A report names its worst tensors.

That healthy runs raise none is in test_doctor, which makes them.
"""

from __future__ import annotations

import logging
import math
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from patients import LIVE, SICK, noise

import openadam
from openadam import record
from openadam.measures import columns
from openadam.readings import READINGS
from openadam.record.alarms import Judge
from openadam.reports import Measured, Subjects


def raised(path: Path) -> list[tuple[str, str | None, int]]:
    return [(each.evidence.get("rule", each.what), each.tensor, each.step) for track in record.load(path).tracks.values() for each in track.alarms]


def spiky(path: Path | None, *, every: int = 1, dense: int = 100, at: int = 140, steps: int = 180, **settings: Any) -> Any:
    """Two tensors with noise for gradients; at one step those of ``w`` are thirty times too large."""
    params = {"w": noise(1, (20, 10)), "calm": noise(2, (20, 10))}
    recorder = record.Recorder(path, every=every, dense=dense) if path is not None else None
    optimizer = openadam.Adam(params, lr=1e-3, record=recorder, **settings)
    for t in range(1, steps + 1):
        optimizer.step({"w": noise(t, (20, 10), 30.0 if t == at else 1.0), "calm": noise(-t % 1000 + 1000, (20, 10))})
    if recorder is not None:
        recorder.close()
    return params


# --- what alarms, and what does not --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LIVE)
def test_what_a_run_has_raises_an_alarm(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    id, tensor, step = LIVE[name]
    path = tmp_path / "run.oadam"
    with caplog.at_level(logging.WARNING, "openadam.record"):
        SICK[name][1](path)
    found = raised(path)
    assert (id, tensor, step) in found
    assert [each[:2] for each in found].count((id, tensor)) == 1, "once"
    (track,) = record.load(path).tracks.values()
    (alarm,) = (each for each in track.alarms if (each.evidence["rule"], each.tensor) == (id, tensor))
    assert alarm.what.startswith(f"{id}: ")
    assert {"reading", "value", "null", "threshold"} <= alarm.evidence.keys()
    said = [each for each in caplog.records if f"step {step}: {id}: " in each.getMessage()]
    assert [each.levelname for each in said] == ["WARNING"], "one line"
    ring = track.rings[0]
    assert ring.reason.startswith("alarm: ")
    assert ring.step == found[0][2]
    assert ring.steps[-1] == ring.step or id == "D01", "the step itself is in it, unless it was skipped"


def test_a_small_transformer_raises_none(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from openadam.torch import AdamW

    torch.manual_seed(0)
    torch.set_num_threads(1)
    layer = torch.nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True)
    model = torch.nn.Sequential(
        torch.nn.Embedding(20, 32), torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), torch.nn.Linear(32, 20)
    )
    with record.Recorder(tmp_path / "run.oadam", every=10) as recorder:
        optimizer = AdamW(model.named_parameters(), lr=3e-3, clip_norm=1.0, record=recorder)
        for _ in range(250):
            x = torch.randint(20, (16, 8))
            loss = torch.nn.functional.cross_entropy(model(x).reshape(-1, 20), x.flip(1).reshape(-1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step(loss=loss)
    assert raised(recorder.path) == []
    assert float(record.load(recorder.path).tracks["AdamW"].scalar("loss")["mean"][-1]) < 3


def test_rules_without_a_first_moment_of_adam_are_not_held_against_it(tmp_path: Path) -> None:
    with record.Recorder(tmp_path / "run.oadam", every=1) as recorder:
        for member in (openadam.Momentum, openadam.SGD, openadam.RMSProp, openadam.Adagrad):
            optimizer: Any = member({"w": np.zeros(50)}, lr=1e-3, record=recorder)
            for t in range(1, 80):
                report = optimizer.step({"w": np.full(50, 100.0 if t == 1 else -1.0)}, measure=True)
                assert not {"D14", "D24", "D26"} & report.alarms.keys()
    assert raised(tmp_path / "run.oadam") == []


def test_hints_and_scalers_raise_none(tmp_path: Path) -> None:
    for number, name in enumerate(("gradients near eps", "full batches at the edge of stability", "one element that wakes up")):
        SICK[name][1](tmp_path / f"{number}.oadam")
        assert raised(tmp_path / f"{number}.oadam") == []
    assert list(Judge().skipped(None)) == [], "a scaler skips without a reason"


# --- what an alarm does --------------------------------------------------------------------------------------------------


def test_the_steps_after_an_alarm_are_observed_densely(tmp_path: Path) -> None:
    path = tmp_path / "run.oadam"
    spiky(path, every=10, dense=20)
    assert {each[:2] for each in raised(path)} == {("D16", "w"), ("D17", "w")}
    observed = record.load(path).tracks["Adam"].measure("w", "sampled")["last"].tolist()
    assert observed == [*range(1, 21), *range(30, 140, 10), *range(140, 161), 170, 180]


def test_so_are_those_after_a_step_that_was_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.oadam"
    with record.Recorder(path, every=1000, dense=2) as recorder:
        optimizer = openadam.Adam({"w": np.ones(3)}, record=recorder)
        for t in range(1, 40):
            bad = t == 10
            try:
                optimizer.step({"w": np.full(3, math.nan if bad else 1.0)})
            except openadam.NonFiniteGradientError:
                assert bad
    observed = record.load(path).tracks["Adam"].measure("w", "sampled")["last"].tolist()
    assert observed == [1, 2, *range(10, 31)]


def test_an_alarm_changes_no_bit_of_the_run(tmp_path: Path) -> None:
    expected, found = spiky(None), spiky(tmp_path / "run.oadam", every=10, dense=20)
    assert raised(tmp_path / "run.oadam") != []
    assert all(expected[name].tobytes() == found[name].tobytes() for name in expected)


KILLED = """
import os, signal, sys, time
sys.path.insert(0, sys.argv[2])
import numpy as np
import openadam
from patients import noise
optimizer = openadam.Adam({"w": noise(1, (20, 10))}, record=sys.argv[1])
for t in range(1, 141):
    optimizer.step({"w": noise(t, (20, 10), 30.0 if t == 140 else 1.0)})
time.sleep(1.2)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_ring_of_an_alarm_outlives_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "run.oadam"
    arguments = [sys.executable, "-c", KILLED, str(path), str(Path(__file__).parent)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert "step 140: D16: " in done.stderr, "logged where nothing is configured"
    session = record.load(path)
    assert session.ended is None
    (ring,) = session.tracks["Adam"].rings
    assert (ring.reason[:10], ring.step, ring.steps[-1]) == ("alarm: D16", 140, 140)
    assert ring.values[-1, 0, ring.measures.index("grad_max_abs")] > 30


def test_tensors_of_one_disease_share_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "openadam.record"), record.Recorder(tmp_path / "run.oadam") as recorder:
        params = {"fine": noise(1, (20, 10)), "small": noise(2, (20, 10)), "smaller": noise(3, (20, 10))}
        scales = {"fine": 1e-6, "small": 1e-9, "smaller": 1e-10}
        optimizer = openadam.Adam(params, record=recorder)
        for t in range(10):
            optimizer.step({name: noise(t, (20, 10), scale) for name, scale in scales.items()})
    assert {each[:2] for each in raised(tmp_path / "run.oadam")} == {("D20", "small"), ("D20", "smaller")}
    (line,) = caplog.records
    assert "D20: eps dominates the denominator, in 'small'" in line.getMessage()
    assert " and 1 more: share of sqrt(v) below eps 1, healthy is 0 (alarm at 0.5)" in line.getMessage()


def test_gradients_that_are_only_rounding_raise_none(tmp_path: Path) -> None:
    with record.Recorder(tmp_path / "run.oadam") as recorder:
        optimizer = openadam.Adam({"w": noise(0, (20, 10)), "keys": noise(1, (20, 10))}, record=recorder)
        for t in range(30):
            optimizer.step({"w": noise(t, (20, 10)), "keys": noise(t + 500, (20, 10), 1e-10)})
    assert raised(tmp_path / "run.oadam") == []


def test_skips_raise_one_alarm_until_a_step_is_taken(tmp_path: Path) -> None:
    with record.Recorder(tmp_path / "run.oadam") as recorder:
        optimizer = openadam.Adam({"w": np.ones(4)}, nonfinite="skip", record=recorder)
        for t in range(9):
            optimizer.step({"w": np.full(4, 1.0 if t in (0, 4) else math.inf)})
    assert raised(tmp_path / "run.oadam") == [("D01", "w", 2), ("D01", "w", 3)]


# --- when it is over -----------------------------------------------------------------------------------------------------


def made(step: int, names: tuple[str, ...] = ("w",), **values: Any) -> Measured:
    """What a step of Adam would have seen, a calm one but for these."""
    usual = {
        "grad_sum_squares": 512, "update_sum_squares": 1, "param_sum_squares": 512, "grad_nonfinite": 0, "sampled": 512, "zero_grad": 0,
        "seen_grad_sum_squares": 512, "direction_sum_squares": 50, "descent": 60, "surprise_sum": 512, "v_sum": 1,
    }  # fmt: skip
    values = {**dict.fromkeys(columns(), 0.0), **usual, **values}
    table = np.array([np.broadcast_to(values[name], len(names)) for name in columns()], float).T
    settings = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "lr": 1e-3, "weight_decay": 0.0}
    return Measured(names, columns(), table, None, step, Subjects([(32, 16)] * len(names), [0] * len(names), [("adam", "coupled", settings)]))


def test_an_alarm_is_raised_again_only_after_half_way_back() -> None:
    for between, expected in ((0.15, [5]), (0.09, [5, 25])):
        judge, steps = Judge(), []
        for t in range(1, 31):
            share = between if 10 < t <= 20 else 0.9
            steps += [t for each in judge.observed(made(t, v_frozen=512 * share)) if each.what.startswith("D08")]
        assert steps == expected, "the threshold is 0.2"


def test_few_bad_steps_are_none_and_unknown_ones_do_not_count() -> None:
    judge = Judge()
    for t in range(1, 41):
        bad, unknown = t % 6 < 4, t % 6 == 1
        assert judge.observed(made(t, v_frozen=480.0 if bad else 0.0, zero_grad=500.0 if unknown else 0.0)) == []
    found = [t for t in range(41, 50) for _ in judge.observed(made(t, v_frozen=480.0, zero_grad=500.0 if t == 42 else 0.0))]
    assert found == [46]


def test_tensors_that_take_turns_are_remembered_each_for_itself() -> None:
    judge, found = Judge(), []
    for t in range(1, 13):
        names = (("a", "b"), ("b",), ("b", "c"))[t % 3]
        for each in judge.observed(made(t, names, v_frozen=[480.0 if name != "a" else 0.0 for name in names])):
            found += [(t, name) for name, _ in each.tensors]
    assert found == [(5, "b")]
    for t in range(13, 25):
        for each in judge.observed(made(t, ("c",), v_frozen=480.0)):
            found += [(t, name) for name, _ in each.tensors]
    assert found[1:] == [(13, "c")], "its fifth"


def test_the_settings_of_each_group_count(tmp_path: Path) -> None:
    with record.Recorder(tmp_path / "run.oadam") as recorder:
        groups = [{"params": {"w": noise(1, (20, 10))}, "eps": 1e-4}, {"params": {"v": noise(2, (20, 10))}, "eps": 1e-12}]
        optimizer = openadam.Adam(groups, record=recorder)
        for t in range(12):
            report = optimizer.step([{"w": noise(t, (20, 10), 1e-6)}, {"v": noise(t, (20, 10), 1e-6)}], measure=True)
    assert raised(tmp_path / "run.oadam") == [("D20", "w", 5)]
    assert report.alarms["D20"].tensor == "w"


def test_every_urgent_reading_is_proven() -> None:
    rules = {each.rule for each in READINGS.values() if each.urgent}
    assert rules | {"D14", "D44", "D45", "D47"} == {id for id, *_ in LIVE.values()} | {"D08"}


# --- losses --------------------------------------------------------------------------------------------------------------


def losses(values: Any) -> list[tuple[int, str]]:
    judge = Judge()
    return [(k, each.what) for k, value in enumerate(values) for each in judge.taken(float(value))]


def test_a_loss_that_jumps_or_is_not_finite_raises_an_alarm() -> None:
    falling = 2.3 * np.exp(-np.arange(200) / 60) + 0.1 * np.abs(noise(0, (200,)))
    assert losses(falling) == []
    jumping = falling.copy()
    jumping[150:160] = 5.0
    assert losses(jumping) == [(150, "D45: the loss jumps")]
    jumping[180] = 6.0
    assert losses(jumping)[0] == (150, "D45: the loss jumps")
    jumping[150:160] = math.nan
    assert losses(jumping) == [(150, "D44: the loss is not finite"), (180, "D45: the loss jumps")]
    jumping[155] = 0.2
    assert [k for k, _ in losses(jumping)] == [150, 156, 180]


def test_a_loss_that_stays_far_above_the_first_ones_is_told_once() -> None:
    growing = 2.3 * np.exp(np.arange(400) / 40)
    ((step, what),) = losses(growing)
    assert what == "D47: the loss has risen"
    assert step == 64 + np.flatnonzero(growing > 10 * growing[19])[0]
    again = np.concatenate([growing, np.full(50, 2.3), growing])
    assert [what for _, what in losses(again) if "D47" in what] == ["D47: the loss has risen"] * 2
    assert losses(growing[:200] - 2.3) == [], "first losses of all sizes tell of no size"


def test_losses_of_healthy_runs_raise_none() -> None:
    random = np.random.default_rng(0)
    for values in (
        np.zeros(300), np.full(300, 2.3), random.normal(0, 1, 20_000), random.exponential(1.0, 20_000), -random.exponential(1.0, 3000),
        np.append(np.full(50, 1.0), 1.0 + 1e-9), np.exp(-np.arange(300) / 10), 1e-3 + 2.3 * (np.arange(2000) < 30) + random.exponential(0.02, 2000),
        np.sin(np.arange(3000) / 50), np.linspace(0, 5, 300), 1e5 * np.exp(-np.arange(500) / 5) + random.normal(0, 1, 500),
    ):  # fmt: skip
        assert losses(values) == []


# --- the report of one step ----------------------------------------------------------------------------------------------


def test_a_report_names_the_worst_tensor_of_each_alarm() -> None:
    params = {name: noise(k, (20, 10)) for k, name in enumerate(("calm", "spike", "larger"))}
    optimizer = openadam.Adam(params)
    for t in range(1, 121):
        scales = {"calm": 1.0, "spike": 20.0 if t == 120 else 1.0, "larger": 40.0 if t == 120 else 1.0}
        report: Any = optimizer.step({name: noise(3 * t + k, (20, 10), scale) for k, (name, scale) in enumerate(scales.items())}, measure=True)
        assert ("D16" in report.alarms) == (t == 120)
    worst = report.alarms["D16"]
    seen = report.measures["larger"]
    assert worst.tensor == "larger"
    assert worst.value == pytest.approx(math.sqrt(seen["surprise_sum"] / seen["sampled"]))
    assert (worst.null, worst.reading) == (1.0, "root mean square of g/sqrt(v)")
    assert worst.threshold == pytest.approx(max(3, math.sqrt((1 - 0.999**120) / 1e-3) / 3))
    assert report.alarms["D17"].tensor == "larger"
    assert "calm" not in {each.tensor for each in report.alarms.values() if each.reading != "cosine of direction and gradient"}


def test_a_report_knows_whether_the_whole_step_goes_uphill() -> None:
    optimizer = openadam.Adam({"w": np.ones(100), "b": np.ones(100)}, lr=1e-3)
    for t in range(1, 4):
        report: Any = optimizer.step({"w": np.full(100, 100.0 if t == 1 else -1.0), "b": np.full(100, 0.01)}, measure=True)
    assert report.alarms["D26"].tensor == "w"
    assert "D14" in report.alarms
    assert (report.alarms["D14"].tensor, report.alarms["D14"].threshold) == (None, 0.0)
    assert report.alarms["D14"].value < 0


def test_what_was_not_measured_or_skipped_has_no_alarms() -> None:
    optimizer = openadam.Adam({"w": np.ones(3)}, nonfinite="skip")
    assert optimizer.step({"w": np.ones(3)}).alarms == {}
    assert optimizer.step({"w": np.full(3, math.nan)}, measure=True).alarms == {}
    assert openadam.SGD({"w": np.ones(3)}, lr=0.1).step({"w": np.ones(3)}, measure=True).alarms == {}
    assert openadam.Adam({"w": np.ones(3)}).step({"w": None}, measure=True).alarms == {}


def test_a_gradient_that_is_let_in_is_named() -> None:
    optimizer = openadam.Adam({"w": np.ones(3), "b": np.ones(3)}, nonfinite="propagate")
    report: Any = optimizer.step({"w": np.ones(3), "b": np.array([1.0, math.nan, math.inf])}, measure=True)
    assert report.alarms["D01"][:4] == ("b", "elements that are not finite", 2.0, 0.0)
    report = optimizer.step({"w": np.ones(3), "b": np.ones(3)}, measure=True)
    assert "D01" not in report.alarms
    assert report.alarms["D02"].tensor == "b"


def test_over_torch_too(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from openadam.torch import AdamW, observe

    for kind in (AdamW, torch.optim.AdamW):
        params = [torch.nn.Parameter(torch.ones(20, 10)) for _ in range(2)]
        optimizer: Any = kind([{"params": params[:1]}, {"params": params[1:], "eps": 1e-3}])
        with record.Recorder(tmp_path / f"{kind.__module__}.oadam") as recorder:
            handle = observe(optimizer, recorder)
            for t in range(12):
                for k, p in enumerate(params):
                    p.grad = torch.from_numpy(noise(2 * t + k, (20, 10), (1.0, 1e-4)[k]))
                optimizer.step(**({"measure": True} if kind is AdamW else {}))
            handle.close()
        assert raised(recorder.path) == [("D20", "1", 5)]
        if kind is AdamW:
            assert optimizer.last_step.alarms["D20"].tensor == "1"
            assert optimizer.last_step.measures.about.shapes == [(20, 10), (20, 10)]
