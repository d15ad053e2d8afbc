"""Recorded runs: the same run, to the bit; and what the recording then holds is what the steps saw."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family import ENGINES, PLAIN, Variant, same

import openadam
from openadam import HyperparameterError, NonFiniteGradientError, record
from openadam.errors import RecordError, RecordFormatError
from openadam.measures import OCTAVES, count, sampled_elements
from openadam.record.track import Track

SHAPES = {"w": (30, 20), "b": (7,)}


def gradients(t: int) -> dict[str, Any]:
    random = np.random.default_rng(t)
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


def run(variant: Variant, steps: int, **settings: Any) -> tuple[Any, Any]:
    params = {name: np.ones(shape, np.float32) for name, shape in SHAPES.items()}
    optimizer = variant.make(params, clip_norm=3.0, weight_decay=0.1, **settings)
    for t in range(steps):
        optimizer.step(gradients(t), loss=float(t))
    return optimizer, params


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("variant", PLAIN, ids=str)
def test_a_recorded_run_is_the_same_run(variant: Variant, engine: str, tmp_path: Path) -> None:
    calm, expected = run(variant, 12, engine=engine)
    for threads in (1, 2):
        watched, found = run(variant, 12, engine=engine, threads=threads, record=record.Recorder(tmp_path / f"{threads}.oadam", every=3, dense=2))
        assert all(same(expected[name], found[name]) for name in expected)
        assert repr(watched.state_dict()) == repr(calm.state_dict())


@pytest.mark.parametrize("engine", ENGINES)
def test_histograms_are_recorded_evenly_spread(engine: str, tmp_path: Path) -> None:
    path = tmp_path / "run.oadam"
    recorder = record.Recorder(path, every=10, dense=5)
    params = {name: np.ones(shape, np.float32) for name, shape in SHAPES.items()}
    optimizer = openadam.AdamW(params, lr=2.0**-10, record=recorder, engine=engine)
    for t in range(1, 1001):
        optimizer.step(gradients(t))
    recorder.close()
    (track,) = record.load(path).tracks.values()
    assert {(each.tensor, each.name) for each in track.histograms} == {
        (tensor, name) for tensor in SHAPES for name in ("v_root", "direction_abs", "rate")
    }
    steps = [each.step for each in track.histograms if (each.tensor, each.name) == ("w", "rate")]
    assert 16 <= len(steps) <= 32
    assert steps[0] == 1
    assert steps[-1] > 900
    assert len({late - early for early, late in itertools.pairwise(steps[2:])}) == 1
    for each in track.histograms:
        assert each.counts.sum() == sampled_elements(math.prod(SHAPES[each.tensor]))
        assert each.edges.tolist() == list(OCTAVES)
    (last,) = (each for each in track.histograms if (each.tensor, each.name, each.step) == ("w", "rate", steps[-1]))
    assert last.counts[37:40].sum() == 512  # of gradients near 1, within an octave or two of the learning rate


def test_a_measure_that_cannot_be_asked_for_is_no_failed_step(tmp_path: Path) -> None:
    path = tmp_path / "run.oadam"
    recorder = record.Recorder(path)
    optimizer = openadam.Adam({"w": np.ones(3)}, record=recorder)
    for measure in ("yes", [1], [count("zero_grad", lambda x: x.g == 0)]):
        with pytest.raises(HyperparameterError, match="measure"):
            optimizer.step({"w": np.ones(3)}, measure=measure)
    assert optimizer.step({"w": np.ones(3)}, measure=(each for each in [count("all", lambda x: x.g == 1)])).measures["w"]["all"] == 3
    with pytest.raises(NonFiniteGradientError):
        optimizer.step({"w": np.full(3, np.nan)})
    recorder.close()
    (track,) = record.load(path).tracks.values()
    assert [(each.kind, each.step) for each in track.events] == [("failed", 2)]


def test_what_the_environment_asks_for_is_named_in_its_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENADAM_RECORD", str(tmp_path / "missing" / "run.oadam"))
    with pytest.raises(RecordError, match=r"OPENADAM_RECORD=.*missing.*in the environment"):
        openadam.Adam({"w": np.ones(3)})
    with pytest.raises(RecordError) as error:
        openadam.Adam({"w": np.ones(3)}, record=tmp_path / "missing" / "run.oadam")
    assert "OPENADAM_RECORD" not in str(error.value)


def test_recordings_are_reached_by_the_packages_name() -> None:
    code = "import sys, openadam; assert 'sqlite3' not in sys.modules; openadam.record.load; assert 'sqlite3' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_empty_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="name that an optimizer is to have in its recording is empty"):
        openadam.Adam({"w": np.ones(3)}, record=(tmp_path / "run.oadam", ""))


def test_the_recording_holds_what_the_steps_saw(tmp_path: Path) -> None:
    path = tmp_path / "run.oadam"
    recorder = record.Recorder(path, every=4, dense=3)
    params = {name: np.ones(shape, np.float32) for name, shape in SHAPES.items()}
    optimizer = openadam.AdamW(params, lr=lambda t: 0.1 / t, record=(recorder, "model"))
    seen = {}
    for t in range(1, 12):
        report = optimizer.step(gradients(t), loss=np.float32(1 / t), measure=t == 7)
        assert (report.measures is not None) == (t == 7)
        seen[t] = report
    recorder.close()
    track = record.load(path).tracks["model"]
    assert track.about["optimizer"] == "AdamW"
    assert track.about["host"] == "arrays"
    assert list(track.tensors) == ["w", "b"]
    assert track.scalar("loss")["mean"] == pytest.approx([1 / t for t in range(1, 12)], rel=1e-6)
    assert track.scalar("lr")["mean"] == pytest.approx([0.1 / t for t in range(1, 12)], rel=1e-6)
    assert track.scalar("grad_norm")["mean"] == pytest.approx([seen[t].grad_norm for t in range(1, 12)], rel=1e-6)
    assert track.measure("w", "disagree")["first"].tolist() == [1, 2, 3, 4, 7, 8]
    at_seven = track.measure("w", "v_hat_sum")
    assert at_seven["mean"][at_seven["first"] == 7] == pytest.approx(seen[7].measures["w"]["v_hat_sum"], rel=1e-6)
    assert math.isclose(track.scalar("update_norm")["mean"][4], seen[7].update_norm, rel_tol=1e-6)


def test_two_players_are_told_apart_and_marks_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "gan.oadam"
    players = [openadam.Adam(np.ones(4), record=path) for _ in range(2)]
    for t in range(3):
        for k, player in enumerate(players):
            player.step(np.full(4, 1.0 + k))
            if t == 1:
                player.mark("half-way")
    players[0]._stepper.observer.track.recorder.flush()
    tracks = record.load(path).tracks
    assert list(tracks) == ["Adam", "Adam 2"]
    for track in tracks.values():
        assert [(event.step, event.text) for event in track.events if event.kind == "event"] == [(2, "half-way")]


def test_what_is_refused_and_skipped_is_recorded(tmp_path: Path) -> None:
    recorder = record.Recorder(tmp_path / "run.oadam")
    bad = np.array([1.0, math.nan, 0.0])
    strict, lenient = openadam.Adam(np.ones(3), record=recorder), openadam.Adam(np.ones(3), nonfinite="skip", record=recorder)
    for optimizer in (strict, lenient):
        optimizer.step(np.ones(3))
    with pytest.raises(NonFiniteGradientError):
        strict.step(bad)
    assert "not finite" in str(lenient.step(bad).why)
    recorder.close()
    first, second = record.load(tmp_path / "run.oadam").tracks.values()
    assert [(event.kind, event.step) for event in first.events] == [("failed", 2)]
    assert [ring.step for ring in first.rings] == [2]
    assert [(event.kind, event.step) for event in second.events] == [("skipped", 2)]
    assert second.scalar("skipped")["mean"].tolist() == [0.0, 1.0]


def test_copies_record_nothing_and_the_environment_may_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENADAM_RECORD", str(tmp_path / "asked.oadam"))
    optimizer = openadam.Adam(np.ones(3))
    monkeypatch.delenv("OPENADAM_RECORD")
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        other.step(np.ones(3))
        assert other._stepper.observer is None
        other.mark("nothing comes of it")
    optimizer.step(np.ones(3))
    optimizer._stepper.observer.track.recorder.flush()
    assert record.load(tmp_path / "asked.oadam").tracks["Adam"].last_step == 1


def test_impossible_recordings_are_refused_before_anything(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for wrong, error in ((tmp_path, RecordError), (tmp_path / "nowhere" / "x.oadam", RecordError), (tmp_path / "notes.txt", RecordFormatError)):
        with pytest.raises(error):
            openadam.Adam(np.ones(3), record=wrong)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_ones_own_measures_and_a_recording_go_together(tmp_path: Path) -> None:
    recorder = record.Recorder(tmp_path / "run.oadam")
    optimizer = openadam.Adam(np.ones(3), record=recorder)
    report = optimizer.step(np.ones(3), measure=[count("all", lambda x: x.g == x.g)])
    assert report.measures["0"]["all"] == 3
    recorder.close()
    assert record.load(tmp_path / "run.oadam").tracks["Adam"].measure("0", "sampled")["mean"].tolist() == [3.0]


def test_a_parameter_that_comes_later_is_recorded(tmp_path: Path) -> None:
    recorder = record.Recorder(tmp_path / "run.oadam")
    optimizer = openadam.Adam({"a": np.ones(3)}, record=recorder)
    optimizer.step({"a": np.ones(3)})
    optimizer.add_group({"params": {"late": np.ones(2)}})
    optimizer.step([{"a": np.ones(3)}, {"late": np.ones(2)}])
    recorder.close()
    track = record.load(tmp_path / "run.oadam").tracks["Adam"]
    assert track.measure("a", "sampled")["first"].tolist() == [1, 2]
    assert track.measure("late", "sampled")["first"].tolist() == [2]


# --- over torch --------------------------------------------------------------------------------------------------------


def test_a_recorded_run_over_torch_is_the_same_run(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    import openadam.torch as hosts

    for name in ("Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "RMSprop", "SGD"):
        found = []
        for watched in (False, True):
            torch.manual_seed(0)
            model = torch.nn.Sequential(torch.nn.Linear(5, 40), torch.nn.Tanh(), torch.nn.Linear(40, 1))
            recorder = record.Recorder(tmp_path / f"{name}.oadam", every=4, dense=2) if watched else None
            optimizer = getattr(hosts, name)(model.named_parameters(), lr=0.01, record=recorder)
            losses = []
            for t in range(10):

                def closure(model: Any = model, optimizer: Any = optimizer) -> Any:
                    optimizer.zero_grad()
                    loss = (model(torch.ones(4, 5)) - 3).square().mean()
                    loss.backward()
                    return loss

                losses.append(optimizer.step(closure).item())
                if t == 4:
                    optimizer.mark("half")
            assert optimizer.last_step.measures is None
            found.append([p.detach().clone() for p in model.parameters()])
            if recorder is not None:
                recorder.close()
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True)), name
        track = record.load(tmp_path / f"{name}.oadam").tracks[name]
        assert track.scalar("loss")["mean"] == pytest.approx(losses, rel=1e-6)
        assert list(track.tensors) == ["0.weight", "0.bias", "2.weight", "2.bias"]
        assert track.measure("0.weight", "update_sum_squares")["first"].tolist()[:3] == [1, 2, 4]
        assert [event.step for event in track.events] == [5]


def test_a_scaler_that_skips_is_recorded(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    import openadam.torch as hosts

    p = torch.nn.Parameter(torch.ones(3))
    recorder = record.Recorder(tmp_path / "run.oadam")
    optimizer = hosts.Adam([p], record=recorder)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for value in (1.0, math.inf, 1.0):
        optimizer.zero_grad()
        scaler.scale((p * value).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    recorder.close()
    track = record.load(tmp_path / "run.oadam").tracks["Adam"]
    assert [(event.kind, event.step) for event in track.events] == [("skipped", 2)]
    assert track.last_step == 2
    copied = copy.deepcopy(optimizer)
    assert copied._observer is None


@pytest.mark.parametrize("name", ["Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "RMSprop", "SGD"])
def test_an_optimizer_of_torch_is_recorded_from_outside_as_ours_is(name: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    import openadam.torch as hosts

    settings = {"momentum": 0.9} if name == "SGD" else {"eps": 1e-3}
    found: dict[str, Any] = {}
    for whose in ("calm", "ours", "theirs"):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(5, 30), torch.nn.Tanh(), torch.nn.Linear(30, 1))
        recorder = record.Recorder(tmp_path / f"{whose}.oadam")
        if whose == "ours":
            optimizer = getattr(hosts, name)(model.named_parameters(), lr=0.01, weight_decay=0.1, record=recorder, **settings)
        else:
            optimizer = getattr(torch.optim, name)(model.named_parameters(), lr=0.01, weight_decay=0.1, **settings)
        handle = hosts.observe(optimizer, recorder) if whose == "theirs" else None

        def closure(model: Any = model, optimizer: Any = optimizer, handle: Any = handle) -> Any:
            optimizer.zero_grad()
            loss = (model(torch.ones(4, 5)) - 3).square().mean()
            loss.backward()
            if handle is not None:
                handle.loss = loss
            return loss

        for t in range(4):
            if t % 2:
                optimizer.step(closure)
            else:
                closure()
                optimizer.step()
        if handle is not None:
            handle.mark("done")
            handle.close()
        recorder.close()
        found[whose] = [p.detach().clone() for p in model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(found["calm"], found["theirs"], strict=True))
    ours, theirs = (record.load(tmp_path / f"{whose}.oadam").tracks[name] for whose in ("ours", "theirs"))
    assert list(ours.tensors) == list(theirs.tensors)
    assert [event.text for event in theirs.events] == ["done"]
    assert len(theirs.scalar("loss")) == 4
    for tensor in ours.tensors:
        for measure in ("direction_sum_squares", "update_sum_squares", "descent", "disagree", "v_hat_sum", "seen_grad_sum_squares", "sampled"):
            mine, other = (track.measure(tensor, measure)["mean"] for track in (ours, theirs))
            assert mine == pytest.approx(other, rel=1e-3, abs=1e-9), (tensor, measure)


def test_ours_can_be_recorded_from_any_step_on(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    import openadam.torch as hosts

    p = torch.nn.Parameter(torch.ones(3))
    optimizer = hosts.Adam([("w", p)])
    recorder = record.Recorder(tmp_path / "run.oadam")
    for t in range(5):
        p.grad = torch.full((3,), 1.0 + t)
        if t == 2:
            handle = hosts.observe(optimizer, recorder, name="later")
        if t == 3:
            handle.loss = torch.tensor(0.5)
            handle.mark("here")
        if t == 4:
            handle.close()
        optimizer.step()
    recorder.close()
    track = record.load(tmp_path / "run.oadam").tracks["later"]
    assert track.measure("w", "sampled")["first"].tolist() == [3, 4]
    assert (track.scalar("loss")["first"].tolist(), track.scalar("loss")["mean"].tolist()) == ([4], [0.5])
    assert [event.step for event in track.events] == [3]
    opt = openadam.Adam(np.ones(3))
    opt.record(tmp_path / "arrays.oadam")
    opt.step(np.ones(3))
    opt._stepper.observer.track.recorder.flush()
    opt.record(None)
    opt.step(np.ones(3))
    assert record.load(tmp_path / "arrays.oadam").tracks["Adam"].last_step == 1


def test_from_outside_unnamed_parameters_have_the_names_that_ours_have(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    import openadam.torch as hosts

    kinds = {"theirs": torch.optim.Adam, "ours": hosts.Adam}
    found = {}
    for whose, kind in kinds.items():
        params = [torch.nn.Parameter(torch.ones(k + 1)) for k in range(5)]
        optimizer = kind([{"params": params[:3]}, {"params": params[3:], "lr": 0.1}])
        recorder = record.Recorder(tmp_path / f"{whose}.oadam")
        handle = hosts.observe(optimizer, recorder)
        for p in params:
            p.grad = torch.ones_like(p)
        handle.loss = 3
        assert handle.loss == 3
        optimizer.step()
        assert handle.loss is None
        assert handle.steps == 1
        recorder.close()
        track = record.load(tmp_path / f"{whose}.oadam").tracks["Adam"]
        found[whose] = [(name, each["shape"], each["group"], track.measure(name, "sampled")["max"].tolist()) for name, each in track.tensors.items()]
    assert found["theirs"] == found["ours"] == [(str(k), [k + 1], int(k >= 3), [k + 1.0]) for k in range(5)]


@pytest.mark.parametrize("whose", ["arrays", "ours", "theirs"])
def test_what_cannot_be_recorded_stops_no_training(whose: str, tmp_path: Path, monkeypatch: Any, caplog: Any) -> None:
    """A step has been taken when it is told: the recording is given up, with one warning."""
    torch = pytest.importorskip("torch")
    import openadam.torch as hosts

    def full(self: Any, *args: Any, **kwargs: Any) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(Track, "observe", full)
    recorder = record.Recorder(tmp_path / "run.oadam")
    p = torch.nn.Parameter(torch.ones(3))
    if whose == "arrays":
        over_arrays = openadam.Adam({"w": p.detach().numpy()}, lr=0.5, record=recorder)
    else:
        optimizer = (hosts if whose == "ours" else torch.optim).Adam([p], lr=0.5)
        handle = hosts.observe(optimizer, recorder)
    for t in range(3):
        p.grad = torch.ones(3)
        if whose == "arrays":
            assert over_arrays.step({"w": p.grad.numpy()}).step == t + 1
        else:
            optimizer.step()
    assert p.tolist() == pytest.approx([-0.5] * 3)
    if whose != "arrays":
        handle.close()
    assert [each.getMessage() for each in caplog.records] == ["the recording of Adam was given up: MemoryError: no room"]
    recorder.close()
    assert record.load(tmp_path / "run.oadam").tracks["Adam"].steps == 1


def test_what_cannot_be_observed_is_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    import openadam.torch as hosts

    p = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(HyperparameterError, match="LBFGS is none of"):
        hosts.observe(torch.optim.LBFGS([p]), tmp_path / "run.oadam")


# --- losses that are told --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["abc", np.ones(3), True, [1.0]])
def test_a_loss_that_is_no_number_is_refused_before_the_step(loss: Any) -> None:
    w = np.ones(3)
    optimizer = openadam.Adam({"w": w})
    with pytest.raises(openadam.HyperparameterError, match="is not one number"):
        optimizer.step({"w": np.ones(3)}, loss=loss)
    assert (optimizer.steps, w.tolist()) == (0, [1.0] * 3)
    torch = pytest.importorskip("torch")
    from openadam.torch import Adam

    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    theirs = Adam([p])
    with pytest.raises(openadam.HyperparameterError, match="is not one number"):
        theirs.step(loss=torch.ones(3) if isinstance(loss, np.ndarray) else loss)
    assert p.tolist() == [1.0] * 3
    theirs.step(lambda: loss)  # a closure may return anything
    assert theirs.last_step is not None
    assert theirs.last_step.loss is None
