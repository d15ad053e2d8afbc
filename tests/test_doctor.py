"""The doctor finds what runs have that were made ill to order, finds nothing in healthy ones, and says it so that people and programs can read it."""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from patients import HEALTHY, SICK, learn_digits, matrix, noise, plain, pull, recorded, synthetic, with_losses

import openadam
from openadam import cli, record, theory
from openadam.errors import OpenAdamError, RecordError
from openadam.record import checks, diseases

ROOT = Path(__file__).resolve().parent.parent


def findings(path: Path, run: Any) -> list[record.Finding]:
    run(path)
    return record.load(path).diagnose()


def alarms(found: list[record.Finding]) -> list[Any]:
    return [(each.id, each.tensor, each.evidence) for each in found if each.severity != "hint"]


@pytest.mark.parametrize("name", SICK)
def test_what_a_run_has_is_found(name: str, tmp_path: Path) -> None:
    id, run = SICK[name]
    found = findings(tmp_path / "run.oadam", run)
    assert id in [each.id for each in found], alarms(found)
    finding = next(each for each in found if each.id == id)
    rule = diseases.RULES[id]
    assert (finding.meaning, finding.source) == (rule.meaning, rule.source)
    assert finding.remedy in (rule.remedy, *rule.instead.values())
    assert {"reading", "value", "null", "threshold"} <= finding.evidence.keys()
    assert all(math.isfinite(finding.evidence[each]) for each in ("value", "null", "threshold"))
    assert finding.first_step is not None
    assert finding.last_step is not None
    assert 1 <= finding.first_step <= finding.last_step
    pairs = [(each.id, each.tensor, each.evidence.get("by"), each.evidence.get("group")) for each in found]
    assert len(pairs) == len(set(pairs)), "once for each tensor and rule"
    ranks = [diseases.SEVERITIES.index(each.severity) for each in found]
    assert ranks == sorted(ranks)


def test_every_rule_is_proven() -> None:
    assert set(diseases.RULES) == {id for id, _ in SICK.values()}
    assert set(checks.CHECKS) <= set(diseases.RULES)


@pytest.mark.parametrize("name", HEALTHY)
def test_in_a_healthy_run_nothing_is_found(name: str, tmp_path: Path) -> None:
    pytest.importorskip("sklearn.datasets")
    assert alarms(findings(tmp_path / "run.oadam", HEALTHY[name])) == []
    assert [track.alarms for track in record.load(tmp_path / "run.oadam").tracks.values()] == [[]], "nor while it went on"


@pytest.mark.parametrize("seed", [7, 8])
def test_other_seeds_are_healthy_too(seed: int, tmp_path: Path) -> None:
    pytest.importorskip("sklearn.datasets")
    for every in (1, 10):
        path = tmp_path / f"{every}.oadam"
        learn_digits(path, openadam.Adam, epochs=8, seed=seed, every=every, lr=3e-3, beta2=0.99)
        assert alarms(record.load(path).diagnose()) == []
        assert record.load(path).tracks["Adam"].alarms == []


def test_two_players_are_healthy(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    datasets = pytest.importorskip("sklearn.datasets")
    from openadam.torch import Adam

    torch.manual_seed(0)
    torch.set_num_threads(1)
    data = torch.from_numpy((datasets.load_digits().data / 8 - 1).astype(np.float32))
    act = torch.nn.LeakyReLU(0.2)
    generator = torch.nn.Sequential(torch.nn.Linear(32, 64), act, torch.nn.Linear(64, 64), torch.nn.Tanh())
    discriminator = torch.nn.Sequential(torch.nn.Linear(64, 64), act, torch.nn.Linear(64, 1))
    loss = torch.nn.functional.binary_cross_entropy_with_logits
    with record.Recorder(tmp_path / "gan.oadam", every=1) as recorder:
        players = [
            Adam(each.named_parameters(), lr=2e-4, betas=(0.5, 0.999), record=(recorder, name))
            for name, each in (("generator", generator), ("discriminator", discriminator))
        ]
        for _ in range(400):
            made = generator(torch.randn(64, 32))
            real = discriminator(data[torch.randint(len(data), (64,))])
            players[1].zero_grad()
            (loss(real, torch.ones(64, 1)) + loss(discriminator(made.detach()), torch.zeros(64, 1))).backward()
            players[1].step()
            players[0].zero_grad()
            loss(discriminator(made), torch.ones(64, 1)).backward()
            players[0].step()
    session = record.load(recorder.path)
    assert list(session.tracks) == ["generator", "discriminator"]
    assert alarms(session.diagnose()) == []
    assert [track.alarms for track in session.tracks.values()] == [[], []]


def test_torch_groups_are_read_as_well(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from openadam.torch import Adam, AdamW

    p = torch.nn.Parameter(torch.ones(20, 10))
    with record.Recorder(tmp_path / "run.oadam", every=1) as recorder:
        optimizer, other = AdamW([p], betas=(0.9, 0.5), record=recorder), Adam([p], weight_decay=0.1, record=recorder)
        for t in range(40):
            p.grad = torch.from_numpy(noise(t, (20, 10), 1e-10))
            optimizer.step()
            other.step()
    found = record.load(recorder.path).diagnose()
    assert {("D36", "AdamW"), ("D20", "AdamW"), ("D34", "Adam")} <= {(each.id, each.track) for each in found}
    assert {each.track for each in record.load(recorder.path).diagnose("Adam")} == {"Adam"}


# --- what a finding says -------------------------------------------------------------------------------------------------


def one(path: Path, name: str) -> record.Finding:
    id, run = SICK[name]
    return next(each for each in findings(path, run) if each.id == id)


def test_findings_say_where_and_what_was_seen() -> None:
    evidence = {"reading": "disagreement", "value": 0.71234, "null": 0.356, "threshold": 0.5244, "observed": 126, "unknown": None}
    finding = record.Finding("D24", "warning", "Adam", "w", 25, 150, evidence, "", "", "")
    assert finding.where == "w, steps 25 to 150"
    assert finding.seen == "disagreement 0.712, noise alone would give 0.356 (alarm at 0.524); observed 126"
    whole = record.Finding("D01", "error", "Adam", None, 7, 7, evidence, "", "", "")
    assert whole.where == "step 7"
    assert "healthy is 0.356" in whole.seen
    assert record.Finding("D36", "warning", "Adam", None, None, None, evidence, "", "", "").where == ""


def test_an_earlier_session_can_be_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.oadam"
    for steps in (3, 5):
        optimizer = openadam.Adam({"w": np.ones(50)}, record=(recorder := record.Recorder(path)))
        for t in range(steps):
            optimizer.step({"w": np.random.default_rng(t).normal(size=50)})
        recorder.close()
    for session, steps in (("-1", 5), ("0", 3)):
        cli.main(["doctor", str(path), "--session", session])
        assert f"run.oadam: {steps} steps" in capsys.readouterr().out


def test_findings_name_tensor_and_steps(tmp_path: Path) -> None:
    for name, expected in {
        "a gradient that is not finite, refused": ("error", "w", 30, 30),
        "a gradient that is not finite, skipped": ("warning", "w", 30, 30),
        "a poisoned state": ("error", "w", 31, 60),
        "one gradient, thirty times too large": ("warning", "w", 140, 140),
        "a step count that was lost": ("error", "w", 1, 1),
        "moments that were lost": ("error", "w", 600, 600),
        "a tensor without gradient": ("warning", "dead", 1, 60),
        "the article's stale momentum": ("warning", "w", 2, 23),
    }.items():
        finding = one(tmp_path / f"{len(list(tmp_path.iterdir()))}.oadam", name)
        assert (finding.severity, finding.tensor, finding.first_step, finding.last_step) == expected, name


def test_null_values_and_thresholds_follow_from_the_betas(tmp_path: Path) -> None:
    assert [round(float(theory.agreement_alone(beta)), 3) for beta in (0.5, 0.9, 0.95)] == [0.167, 0.356, 0.399]
    assert [round(float(theory.noise_rms(beta)), 3) for beta in (0.5, 0.9, 0.95)] == [0.577, 0.229, 0.160]
    assert round(float(theory.largest_step(0.9, 0.999)), 2) == 7.27
    assert round(float(theory.largest_ratio(0.999)), 1) == 31.6
    assert round(theory.uncorrected_peak(0.9, 0.999), 2) == 6.57
    evidence = one(tmp_path / "run.oadam", "a large gradient in every eighth step against all others").evidence
    assert round(evidence["null"], 3) == 0.356
    assert evidence["threshold"] > evidence["null"] + 0.1
    assert evidence["value"] > evidence["threshold"]


def test_a_short_relapse_is_no_finding_and_one_that_lasts_is_one(tmp_path: Path) -> None:
    def run(path: Path, steps: range) -> None:
        plain(path, 120, lambda p, t: pull(p, t, 1e-12 if t in steps else 1e-3), beta2=0.5, beta1=0.0)

    assert "D20" not in [each.id for each in findings(tmp_path / "short.oadam", lambda path: run(path, range(50, 67)))]
    found = [each for each in findings(tmp_path / "long.oadam", lambda path: run(path, range(40, 90))) if each.id == "D20"]
    assert len(found) == 1
    assert 60 < found[0].first_step < found[0].last_step < 92  # type: ignore[operator]


FROZEN = {"sampled": 512.0, "grad_sum_squares": 512.0, "grad_max_abs": 3.0}


def test_a_finding_is_over_only_half_way_back(tmp_path: Path) -> None:
    """Between the threshold of 0.2 and 0.1 it goes on, so that one more bad step belongs to it; below, it would be a new one, and too short."""
    for name, between, last in (("on", 77.0, 38), ("over", 5.0, 10)):
        path = tmp_path / f"{name}.oadam"
        synthetic(path, lambda t, between=between: {**FROZEN, "v_frozen": 490.0 if t <= 10 or t == 38 else between})
        (finding,) = (each for each in record.load(path).diagnose() if each.id == "D08")
        assert (finding.first_step, finding.last_step) == (1, last)


def test_few_elements_and_rare_rows_do_not_alarm(tmp_path: Path) -> None:
    synthetic(tmp_path / "few.oadam", {**FROZEN, "sampled": 16.0, "v_frozen": 16.0})
    assert alarms(record.load(tmp_path / "few.oadam").diagnose()) == []
    for zero, expected in ((0.0, ["D17"]), (380.0, [])):
        path = tmp_path / f"{zero}.oadam"
        synthetic(path, lambda t, zero=zero: {**FROZEN, "zero_grad": zero, "v_zero": 0.0, "spikes": 0.9 * (512 - zero) * (t == 140)}, 150)
        assert [id for id, *_ in alarms(record.load(path).diagnose())] == expected


def test_gradients_that_are_only_rounding_are_a_hint(tmp_path: Path) -> None:
    for scale, severity in ((1.0, "hint"), (1e-8, "warning")):
        path = tmp_path / f"{scale}.oadam"
        params = {"w": noise(0, (20, 10)), "keys": noise(1, (20, 10))}
        plain(path, 60, lambda p, t, scale=scale: {"w": noise(t, (20, 10), scale), "keys": noise(t + 500, (20, 10), 1e-10)}, params=params)
        assert [each.severity for each in record.load(path).diagnose() if (each.id, each.tensor) == ("D20", "keys")] == [severity]


def test_a_rate_that_ends_near_0_swallows_what_it_likes(tmp_path: Path) -> None:
    params = {"w": np.full((20, 10), 1000.0, np.float32)}
    path = tmp_path / "run.oadam"
    plain(path, 100, lambda p, t: {"w": noise(t, (20, 10))}, params=params, lr=lambda t: 1e-2 if t < 20 else 1e-6, weight_decay=0)
    assert alarms(record.load(path).diagnose()) == []


def test_joined_buckets_say_the_same(tmp_path: Path) -> None:
    for name, path in (("fine", tmp_path / "fine.oadam"), ("coarse", tmp_path / "coarse.oadam")):
        with record.Recorder(path, every=1, buckets=512 if name == "fine" else 32) as recorder:
            params = {"w": noise(0, (20, 10))}
            optimizer = openadam.Adam(params, record=recorder, weight_decay=0.1)
            for t in range(1, 300):
                optimizer.step({"w": noise(t, (20, 10), 30.0 if t == 200 else 1.0)})
    fine, coarse = (record.load(tmp_path / f"{name}.oadam").diagnose() for name in ("fine", "coarse"))
    assert {each.id for each in fine} == {each.id for each in coarse} == {"D16", "D17", "D34"}


def test_a_frozen_tensor_and_a_rule_without_moments_are_no_trouble(tmp_path: Path) -> None:
    with record.Recorder(tmp_path / "run.oadam", every=1) as recorder:
        params = {"w": noise(0, (20, 10)), "frozen": np.ones((20, 10), np.float32)}
        optimizers = [member(params, lr=1e-3, record=recorder) for member in (openadam.Adam, openadam.SGD, openadam.Momentum, openadam.Adagrad)]
        for t in range(60):
            for optimizer in optimizers:
                optimizer.step({"w": noise(t, (20, 10)), "frozen": None})
    found = record.load(recorder.path).diagnose()
    assert alarms(found) == []
    assert {(each.id, each.tensor) for each in found} == {("D23", "frozen")}


def test_an_empty_recording_has_no_findings(tmp_path: Path) -> None:
    synthetic(tmp_path / "none.oadam", {}, steps=0)
    assert record.load(tmp_path / "none.oadam").diagnose() == []
    synthetic(tmp_path / "bare.oadam", {"sampled": 512})
    assert alarms(record.load(tmp_path / "bare.oadam").diagnose()) == []


# --- the command -----------------------------------------------------------------------------------------------------------


def test_the_command_is_readable_at_eighty_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for k, (_, run) in enumerate(SICK.values()):
        path = tmp_path / f"{k}.oadam"
        run(path)
        code = cli.main(["doctor", str(path)])
        lines = capsys.readouterr().out.splitlines()
        assert all(len(line) <= 80 for line in lines[1:]), lines
        assert code == int(any(line.startswith(("ERROR", "WARNING")) for line in lines))
    SICK["a large gradient in every eighth step against all others"][1](tmp_path / "run.oadam")
    cli.main(["doctor", str(tmp_path / "run.oadam")])
    text = " ".join(capsys.readouterr().out.split())
    assert "noise alone would give 0.356" in text


def test_the_command_speaks_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.oadam"
    SICK["gradients below eps"][1](path)
    assert cli.main(["doctor", str(path), "--json", "--track", "AdamW"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert list(told) == ["file", "state", "steps", "findings"]
    assert (told["state"], told["steps"]) == ("ended", 100)
    first = told["findings"][0]
    assert list(first) == ["id", "severity", "track", "tensor", "first_step", "last_step", "evidence", "meaning", "remedy", "source"]
    assert (first["id"], first["severity"], first["track"], first["tensor"]) == ("D20", "warning", "AdamW", "w")


def test_the_first_line_counts_diseases_not_tensors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.oadam"
    plain(path, 40, lambda p, t: {name: noise(t, (20, 10), 1e-10) for name in p}, params={name: noise(1, (20, 10)) for name in "abc"})
    cli.main(["doctor", str(path)])
    first, *_ = capsys.readouterr().out.splitlines()
    assert first.endswith(": 40 steps, 40 of them observed: 0 errors, 1 warning, 0 hints")
    assert [each.id for each in record.load(path).diagnose()] == ["D20"] * 3


KILLED = """
import os, sys
import numpy as np, openadam
recorder = openadam.record.Recorder(sys.argv[1])
optimizer = openadam.Adam({"w": np.ones(50)}, record=recorder)
for t in range(30):
    optimizer.step({"w": np.random.default_rng(t).normal(size=50)})
recorder.flush()
print(openadam.record.load(sys.argv[1]).state, flush=True)
os._exit(9)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="whether a process lives is asked as POSIX does")
def test_a_run_that_was_killed_is_told_from_one_that_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.oadam"
    done = subprocess.run([sys.executable, "-c", KILLED, path], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (9, "running\n")
    session = record.load(path)
    assert (session.ended, session.state, session.is_over) == (None, "killed", True)
    assert len(list(session.follow(0.01))) == 1, "nothing more will come"
    cli.main(["doctor", str(path)])
    assert "30 steps, 30 of them observed; it never ended, and its process is gone: " in capsys.readouterr().out
    cli.main(["watch", str(path)])
    assert "step 30  killed" in capsys.readouterr().out
    cli.main(["report", str(path)])
    assert "never ended: its process is gone" in (tmp_path / "run.html").read_text()
    session.about["host"] = "elsewhere"
    assert session.state == "open"


# --- what helps ------------------------------------------------------------------------------------------------------------


def test_a_remedy_looks_at_the_settings(tmp_path: Path) -> None:
    def helps(id: str, run: Any) -> list[str]:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.oadam"
        return list({each.remedy for each in findings(path, run) if each.id == id})

    def with_eps(eps: float) -> Any:
        return lambda path: plain(path, 40, lambda p, t: {"w": noise(t, (20, 10), eps / 10)}, eps=eps, lr=1e-6)

    rules = diseases.RULES
    assert helps("D20", with_eps(1e-8)) == [rules["D20"].remedy]
    assert helps("D20", with_eps(1e-3)) == [rules["D20"].instead["large eps"]]
    assert helps("D07", SICK["updates below half a unit in the last place"][1]) == [rules["D07"].instead["full precision"]]
    assert helps("D11", SICK["a learning rate that is too large"][1]) == [rules["D11"].remedy]
    assert helps("D11", SICK["a learning rate that is too small"][1]) == [rules["D11"].instead["small"]]
    assert helps("D45", SICK["one loss far above all others"][1]) == [rules["D45"].remedy]
    for_good = [2 * 0.98**t if t < 80 else 5.0 for t in range(200)]
    assert helps("D45", lambda path: with_losses(path, for_good.__getitem__, steps=150)) == [rules["D45"].instead["for good"]]


def test_of_a_clip_that_leaves_next_to_nothing_only_that_is_told(tmp_path: Path) -> None:
    found = findings(tmp_path / "run.oadam", lambda path: plain(path, 200, pull, clip_norm=1e-9))
    assert [(each.id, each.severity) for each in found if each.severity != "hint"] == [("D40", "warning")]


def test_what_follows_from_a_gradient_that_was_let_in_is_not_told(tmp_path: Path) -> None:
    """All is NaN after it: only where it began says something, as near as that was measured."""
    rule = diseases.RULES["D01"]
    for every, expected in ((1, ("b", 53, 1.0)), (10, (None, 53, None))):
        path = tmp_path / f"{every}.oadam"
        with record.Recorder(path, every=every, dense=20) as recorder:
            optimizer = openadam.AdamW({name: noise(1, (20, 10)) for name in "abc"}, nonfinite="propagate", record=recorder)
            for t in range(1, 101):
                grads = {name: noise(t, (20, 10)) * np.float32(math.nan if t > 53 else 1) for name in "abc"}
                if t == 53:
                    grads["b"][3, 2] = math.nan
                optimizer.step(grads)
        (found,) = (each for each in record.load(path).diagnose() if each.id == "D01")
        value = found.evidence["value"]
        assert (found.tensor, found.first_step, None if math.isnan(value) else value) == expected
        assert found.remedy == rule.instead["let in"]


def test_a_run_whose_work_is_done_is_healthy(tmp_path: Path) -> None:
    """Gradients are a thousandth of what they were: that steps are small, and no larger than the decay, is as it should be."""
    found = findings(
        tmp_path / "run.oadam", lambda path: plain(path, 600, lambda p, t: pull(p, t, 1.0 if t < 150 else 1e-4), params=matrix(3.0), weight_decay=0.1)
    )
    assert alarms([each for each in found if each.id in ("D11", "D32")]) == []


@pytest.mark.parametrize("nonfinite", ["raise", "skip"])
def test_a_bad_batch_is_told_from_a_bad_layer(nonfinite: Any, tmp_path: Path) -> None:
    path = tmp_path / "run.oadam"
    with recorded(path, {name: noise(1, (20, 10)) for name in "abc"}, nonfinite=nonfinite) as optimizer:
        for t in range(60):
            grads = {name: noise(t, (20, 10)) for name in "abc"}
            for name in {30: "abc", 40: "b", 50: "bc"}.get(t, ""):
                grads[name][3, 2] = math.nan
            with contextlib.suppress(OpenAdamError):
                optimizer.step(grads, loss=math.nan if t == 30 else 1.0)
    found = record.load(path).diagnose()
    bad = {each.tensor: (each.evidence["value"], each.evidence.get("tensors"), each.remedy) for each in found if each.id == "D01"}
    rule = diseases.RULES["D01"]
    assert bad == {"a": (1.0, "3 of 3", rule.instead["all"]), "b": (2.0, "2 of 3", rule.remedy)}
    (loss,) = (each for each in found if each.id == "D44")
    assert (loss.first_step, loss.last_step) == (31, 31), "the step was not taken, and its loss is judged all the same"


def test_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.oadam"
    SICK["L2 in Adam"][1](path)
    assert cli.main(["doctor", str(path)]) == 0  # a hint
    (tmp_path / "other").write_text("no recording at all, though long enough to be looked at")
    for arguments in (
        [],
        [str(tmp_path / "nothing.oadam")],
        [str(tmp_path / "other")],
        [str(tmp_path)],
        [str(path), "--track", "x"],
        [str(path), "-z"],
    ):
        assert cli.main(["doctor", *arguments]) == 2
    assert "there is no track 'x'" in capsys.readouterr().err
    with pytest.raises(RecordError, match="no track"):
        record.load(path).diagnose("x")


def test_the_document_and_the_rules_agree() -> None:
    assert diseases.table() in (ROOT / "docs/doctor.md").read_text()
