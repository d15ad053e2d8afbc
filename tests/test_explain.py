"""Explanations: what is told of the last step of a coordinate is what that step did, to the bit, and following it changes nothing."""

from __future__ import annotations

import ast
import copy
import gc
import json
import math
import re
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchfamily
from family import DTYPES, ENGINES, VARIANTS, Variant, same, spread, variant
from hypothesis import given, settings
from hypothesis import strategies as st
from torchfamily import Subject, copies, equal, every, give, leaves

import openadam
import openadam.torch
from openadam import ExplanationError, ParameterError
from openadam.step import Stepper

AROUND: tuple[dict[str, Any], ...] = (
    {},
    {"weight_decay": 0.1, "coupling": "coupled"},
    {"weight_decay": 0.1, "coupling": "decoupled", "maximize": True},
    {"weight_decay": 0.1, "coupling": "coupled", "clip_norm": 0.5, "clip_value": 0.02},
    {"clip_norm": 1e9, "maximize": True, "lr": openadam.Linear(0.1, 0.0, steps=20)},
    {"clip_norm": 0.5, "maximize": True, "weight_decay": 0.1, "coupling": "decoupled"},
)


def bits(value: Any, dtype: Any) -> bytes:
    return np.dtype(dtype).type(value).tobytes()


def agrees(subject: Variant, optimizer: openadam.Optimizer, name: str, index: Any, before: float) -> None:
    """The explanation is that of the parameter and the states as they are."""
    told = optimizer.explain(name, index)
    p, state = optimizer.params[name], optimizer.state[name]
    assert bits(told.before, p.dtype) == bits(before, p.dtype)
    assert bits(told.after, p.dtype) == bits(told.values["p"], p.dtype) == p[index].tobytes()
    assert list(told.states) == list(subject.traced.states)
    for own in subject.traced.states:
        held = state[subject.public(own)]
        stored = held[index] if isinstance(held, np.ndarray) else np.float64(held)
        assert bits(told.states[own], stored.dtype) == bits(told.values[own], stored.dtype) == stored.tobytes(), own
    assert not [note for line in told.lines for note in line.notes if "stored as" in note.text and "below" not in note.text]


# --- over arrays ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("place", "subject"), [pytest.param(place, subject, id=str(subject)) for place, subject in enumerate(VARIANTS)])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_told_is_what_is_stored(place: int, subject: Variant, dtype: Any, engine: str) -> None:
    """In two of the surroundings each, all of them with every rule's neighbours."""
    random = np.random.default_rng(1)
    for around in (AROUND[place % len(AROUND)], AROUND[(place + 3) % len(AROUND)]):
        start = {"w": spread(random, (3, 5), dtype), "b": np.asarray(spread(random, (), dtype))}
        arrays = [{name: array.copy() for name, array in start.items()} for _ in range(2)]
        followed, plain = (subject.make(each, **{**around, "engine": engine}) for each in arrays)
        followed.follow("w", (1, -2))
        followed.follow(arrays[0]["b"])
        for _ in range(3):
            grads = {name: spread(random, array.shape, dtype, -3, 1) for name, array in start.items()}
            grads["b"] = np.asarray(grads["b"])
            before = arrays[0]["w"][1, 3], arrays[0]["b"][()]
            assert followed.step(grads) == plain.step(grads)
            agrees(subject, followed, "w", (1, 3), before[0])
            agrees(subject, followed, "b", (), before[1])
        assert same(followed.params, plain.params)
        assert same(followed.state_dict()["state"]["w"], plain.state_dict()["state"]["w"])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_numbers_any_layout(data: st.DataObject) -> None:
    subject = data.draw(st.sampled_from(VARIANTS))
    dtype, around = data.draw(st.sampled_from(DTYPES)), data.draw(st.sampled_from(AROUND))
    floats = st.floats(-1e3, 1e3, width=32, allow_subnormal=True)
    whole = np.zeros((4, 6), dtype)
    w = data.draw(st.sampled_from([whole, whole.T, whole[::2, 1::2], np.asfortranarray(whole)[:, ::-1]]))
    w[...] = np.array([data.draw(floats) for _ in range(w.size)], dtype).reshape(w.shape)
    index = tuple(data.draw(st.integers(-size, size - 1)) for size in w.shape)
    optimizer = subject.make({"w": w}, **{**around, "engine": data.draw(st.sampled_from(ENGINES))})
    optimizer.follow("w", index)
    for _ in range(3):
        before = w[index]
        optimizer.step({"w": np.array([data.draw(floats) for _ in range(w.size)], dtype).reshape(w.shape)})
        agrees(subject, optimizer, "w", index, before)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("transposed", [False, True])
def test_rows_are_explained_where_they_were_named(engine: str, transposed: bool) -> None:
    subject = variant(openadam.AdamW)
    w = np.ones((3, 5), np.float32).T if transposed else np.ones((5, 3), np.float32)
    optimizer = subject.make({"w": w}, weight_decay=0.1, engine=engine)
    optimizer.follow("w", (1, 2))
    optimizer.follow("w", (3, 0))
    optimizer.step({"w": openadam.Rows([3, 1, 3], np.arange(9, dtype=np.float32).reshape(3, 3))})
    agrees(subject, optimizer, "w", (1, 2), 1.0)
    assert optimizer.explain("w", (1, 2)).values["g"] == 5.0
    assert optimizer.explain("w", (3, 0)).values["g"] == 6.0  # of 0 and 6
    optimizer.step({"w": openadam.Rows([3], np.ones((1, 3), np.float32))})
    assert optimizer.explain("w", (3, 0)).step == 2
    with pytest.raises(ExplanationError, match=r"did not move element \(1, 2\) .* was for other rows than 1 in step 2"):
        optimizer.explain("w", (1, 2))


def test_excluded_parameters_do_not_decay() -> None:
    optimizer = openadam.AdamW({"w": np.ones(2), "b": np.ones(2)}, weight_decay=0.1, no_decay=["b"])
    optimizer.follow("w", 0)
    optimizer.follow("b", 0)
    optimizer.step({"w": np.ones(2), "b": np.ones(2)})
    assert "weight_decay" in optimizer.explain("w", 0).lines[-1].formula.text
    assert "weight_decay" not in optimizer.explain("b", 0).lines[-1].formula.text
    assert "weight_decay" not in optimizer.explain("b", 0).settings


@openadam.rule(lr=0.5, b=0.9, initial={"weight": 0.25})
def own(g: Any, s: Any, h: Any) -> openadam.Step:
    """A rule with a state that is one number, which its author has written as the language rewrites elsewhere."""
    weight = s.weight * 0.5 + (1 - h.b**h.t)
    m = h.b * s.m + weight * g
    return openadam.Step(m / (abs(m) + weight), m=m, weight=weight, size=abs(m))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_rule_of_ones_own(dtype: Any) -> None:
    w = np.array([1.0, -2.0], dtype)
    optimizer = openadam.Optimizer({"w": w}, rule=own)
    optimizer.follow("w", 1)
    for t in range(1, 4):
        optimizer.step({"w": np.array([0.3, 0.7], dtype)})
        told = optimizer.explain("w", 1)
        state = optimizer.state["w"]
        assert (told.rule, told.t, list(told.values)) == ("own", t, ["g", "weight", "m", "size", "direction", "p"])
        assert bits(told.values["weight"], float) == bits(told.states["weight"], float) == bits(state["weight"], float)
        assert bits(told.values["m"], dtype) == bits(state["m"][1], dtype)
        assert bits(told.values["p"], dtype) == w[1].tobytes()


def test_the_numbers_that_are_shown_give_the_results_that_are_shown() -> None:
    """In float32, read as Python; what is shown are the digits that tell one float32 from another."""
    optimizer = openadam.AdamW({"w": np.array([0.3, -0.7], np.float32)}, clip_norm=0.1, clip_value=0.06, lr=0.01)
    optimizer.follow("w", 0)
    for gradient in ([0.4, 0.2], [-0.3, 0.9]):
        optimizer.step({"w": np.array(gradient, np.float32)})
        told = optimizer.explain("w", 0)
        assert [line.name for line in told.lines] == ["clip_factor", "g", "m", "v", "m_hat", "v_hat", "direction", "p"]
        assert told.lines[1].formula.text == "minimum(maximum(clip_factor*gradient, -clip_value), clip_value)"
        for line in told.lines:
            worked = eval(line.numbers.text, {"sqrt": math.sqrt, "minimum": min, "maximum": max})
            assert worked == pytest.approx(line.value, rel=1e-6), line.numbers.text
            shown = np.float32 if line.name != "clip_factor" else float
            assert shown(line.result.text) == pytest.approx(line.value, rel=1e-9)


def test_a_state_too_small_says_so() -> None:
    optimizer = openadam.Momentum({"w": np.ones(1, np.float32)}, lr=1.0)
    optimizer.follow("w", 0)
    optimizer.step({"w": np.array([1e-40], np.float32)})
    line = next(line for line in optimizer.explain("w", 0).lines if line.name == "m")
    assert (line.value, [note.text for note in line.notes][-1]) == (0.0, "a number below the smallest normal one is stored as 0")
    optimizer.step({"w": np.array([1e-30], np.float32)})
    assert not any("smallest normal" in note.text for line in optimizer.explain("w", 0).lines for note in line.notes)


# --- steps that are none -------------------------------------------------------------------------------------------------


def test_steps_that_move_nothing_say_why() -> None:
    w = {"w": np.ones(2), "b": np.ones(2)}
    optimizer = openadam.Adam(w, nonfinite="skip", max_skips=1)
    optimizer.follow("w", 0)

    def why() -> str:
        with pytest.raises(ExplanationError) as caught:
            optimizer.explain("w", 0)
        return str(caught.value)

    assert why() == "no step was taken since element (0,) of parameter 'w' is followed: take one, then explain it"
    good, bad = np.ones(2), np.array([1.0, np.nan])
    optimizer.step({"w": good, "b": good})
    assert optimizer.explain("w", 0).step == 1
    optimizer.step({"w": good, "b": bad})
    assert why().startswith(
        "the last step did not move element (0,) of parameter 'w': step 2 was skipped: the gradient of parameter 'b' is not finite"
    )
    with pytest.raises(openadam.TooManySkipsError):
        optimizer.step({"w": good, "b": bad})
    assert "it was refused, step 2 has been skipped 1 times in a row" in why()
    optimizer.step({"w": None, "b": good})
    assert why().endswith("parameter 'w' had no gradient in step 2")
    optimizer.step({"w": None, "b": None})
    assert why().endswith("no parameter had a gradient")
    for wrong, error in (({"w": good}, openadam.GradientError), ({"w": np.ones(3), "b": good}, openadam.GradientShapeError)):
        optimizer.step({"w": good, "b": good})
        assert optimizer.explain("w", 0).after == w["w"][0]
        with pytest.raises(error):
            optimizer.step(wrong)
        assert "it was refused, " in why()


def test_what_is_not_followed_says_what_to_do() -> None:
    optimizer = openadam.Adam({"w": np.ones((2, 3)), "b": np.ones(())})
    with pytest.raises(ExplanationError, match=r"call opt\.follow\('w', \(0, 2\)\) before the step that is to be explained"):
        optimizer.explain("w", (0, -1))
    for index in (0, (0, 1, 2), (0, 1.0), (0, True), (0, slice(1)), "0", None):
        with pytest.raises(ExplanationError, match=r"'w' of shape \(2, 3\) is named by 2 whole numbers, one for each axis; not by "):
            optimizer.follow("w", index)
    for index in ((2, 0), (0, -4)):
        with pytest.raises(ExplanationError, match=r"has no element .*: axis [01] has [23]"):
            optimizer.follow("w", index)
    with pytest.raises(ExplanationError, match="is named by nothing"):
        optimizer.follow("b", 0)
    with pytest.raises(ParameterError, match="follow: no parameter is called 'v'"):
        optimizer.follow("v", 0)
    with pytest.raises(ParameterError, match="explain: an object of type ndarray is no parameter"):
        optimizer.explain(np.ones((2, 3)), (0, 0))
    assert optimizer._stepper.followed is None


def test_following_can_end() -> None:
    optimizer = openadam.Adam({"w": np.ones(3), "b": np.ones(3)})
    for name, index in (("w", 0), ("w", 1), ("b", 0), ("b", 1)):
        optimizer.follow(name, index)
    optimizer.unfollow("w", np.int64(0))
    optimizer.unfollow("b")
    optimizer.step({"w": np.ones(3), "b": np.ones(3)})
    assert optimizer.explain("w", 1).step == 1
    for name, index in (("w", 0), ("b", 0), ("b", 1)):
        with pytest.raises(ExplanationError, match="is not followed"):
            optimizer.explain(name, index)
    optimizer.unfollow()
    assert optimizer._stepper.followed is None


def test_who_follows_nothing_takes_the_shorter_way(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer, w = openadam.Adam({"w": np.ones(3)}), torch.nn.Parameter(torch.ones(3))
    other = openadam.torch.Adam([w])
    w.grad = torch.ones(3)

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("somebody looked")

    monkeypatch.setattr(Stepper, "take_and_tell", refuse)
    optimizer.step({"w": np.ones(3)})
    other.step()
    optimizer.follow("w", 0)
    other.follow(w, 0)
    for step in (lambda: optimizer.step({"w": np.ones(3)}), other.step):
        with pytest.raises(AssertionError, match="somebody looked"):
            step()


def test_copies_follow_nothing() -> None:
    optimizer = openadam.Adam({"w": np.ones(3)})
    optimizer.follow("w", 0)
    optimizer.step({"w": np.ones(3)})
    other = copy.deepcopy(optimizer)
    with pytest.raises(ExplanationError, match="is not followed"):
        other.explain("w", 0)
    assert optimizer.explain("w", 0).step == 1


def test_followed_and_recorded(tmp_path: Path) -> None:
    optimizer = openadam.Adam({"w": np.ones(3)}, record=str(tmp_path / "run.oadam"))
    optimizer.follow("w", 0)
    report = optimizer.step({"w": np.ones(3)}, loss=2.0)
    assert (report.loss, report.measures, optimizer.explain("w", 0).step) == (2.0, None, 1)
    optimizer.record(None)
    assert optimizer.step({"w": np.ones(3)}, measure=True).measures is not None
    assert optimizer.explain("w", 0).step == 2


# --- what is drawn ---------------------------------------------------------------------------------------------------------


def test_drawn_in_three_ways() -> None:
    optimizer = openadam.SGD({"w": np.array([[1.0, 0.1]], np.float32)}, lr=0.5)
    optimizer.follow("w", (0, 1))
    optimizer.step({"w": np.array([[1.0, 0.2]], np.float32)})
    told = optimizer.explain("w", (0, 1))
    assert str(told) == told.render() == (
        "w[0, 1] in step 1: sgd, float32; lr=0.5\n\nstep 1\n  g  = gradient\n  g1 = 0.2\n  p  = p[t-1] - lr*g\n  p1 = 0.1 - 0.5*0.2 = 0"
        "\n\nw[0, 1]: 0.1 -> 0, a change of -0.1000000015"
    )  # fmt: skip
    assert told.render("latex").splitlines()[:3] == [
        "% w[0, 1] in step 1: sgd, float32; lr=0.5",
        r"\begin{aligned}",
        r"g_t &= \nabla f(\theta_{t-1}) \\",
    ]
    data = json.loads(told.render("json"))
    assert data == json.loads(json.dumps(told.as_dict()))
    assert (data["parameter"], data["index"], data["after"], data["steps"][0]["lines"][0]["name"]) == ("w", [0, 1], 0.0, "g")
    assert data["steps"][0]["lines"][0]["value"] == float(np.float32(0.2))
    with pytest.raises(ValueError, match="cannot be shown as 'html'"):
        told.render("html")


def test_the_page_shows_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parent.parent / "docs" / "recording.md").read_text("utf-8")
    code, shown = re.findall(r"```(?:python)?\n(.*?)```", page[page.index("## One coordinate") :], re.DOTALL)[:2]
    exec(code, {})
    assert capsys.readouterr().out == shown


def test_an_update_lost_in_rounding() -> None:
    optimizer = openadam.SGD({"w": np.ones(1, np.float32)}, lr=1e-9)
    optimizer.follow("w", 0)
    optimizer.step({"w": np.ones(1, np.float32)})
    assert str(optimizer.explain("w", 0)).endswith("w[0]: 1 -> 1, unchanged")


# --- over torch ------------------------------------------------------------------------------------------------------------


def agrees_over_torch(optimizer: Any, p: Any, index: Any, before: float) -> Any:
    told = optimizer.explain(p, index)
    dtype = p.dtype
    assert torchfamily.same(torch.tensor(told.after, dtype=dtype), p.detach()[index].clone())
    assert torchfamily.same(torch.tensor(told.values["p"], dtype=dtype), p.detach()[index].clone())
    assert told.before == before
    public = optimizer.member.states
    for own, value in told.states.items():
        held = optimizer.state[p][public.get(own, own)]
        stored = held[index] if held.shape == p.shape and own != "mu_product" else held
        assert torchfamily.same(torch.tensor(value, dtype=stored.dtype), stored.clone()), own
        assert torchfamily.same(torch.tensor(told.values[own], dtype=stored.dtype), stored.clone()), own
    return told


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("engine", ["graph", None])
def test_over_torch_what_is_told_is_what_is_stored(subject: Subject, dtype: torch.dtype, engine: str | None) -> None:
    for around in ({}, {"clip_norm": 0.5, "clip_value": 0.02}):
        params = leaves([(3, 5), (), (2, 2)], dtype)
        params[2] = params[2].detach().T.requires_grad_()
        twins = copies(params)
        followed, plain = (subject.make(each, engine=engine, **around) for each in (params, twins))
        places: list[tuple[int, Any]] = [(0, (1, 3)), (1, ()), (2, (1, 0))]
        for which, index in places:
            followed.follow(params[which], index)
        for k in range(3):
            give(params, k, twins)
            before = [params[which].detach()[index].item() for which, index in places]
            followed.step()
            plain.step()
            assert followed.last_step == plain.last_step
            for (which, index), first in zip(places, before, strict=True):
                told = agrees_over_torch(followed, params[which], index, first)
                assert (told.step, told.t) == (k + 1, k + 1)
        assert equal(followed, plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_storing_rounds_is_told(dtype: torch.dtype) -> None:
    p = torch.nn.Parameter(torch.full((2,), 0.3, dtype=dtype))
    optimizer = openadam.torch.Adam([("w", p)], lr=1e-2)
    optimizer.follow("w", 0)
    for _ in range(2):
        p.grad = torch.tensor([0.7, 0.1], dtype=dtype)
        before = p.detach()[0].item()
        optimizer.step()
        told = agrees_over_torch(optimizer, p, 0, before)
    assert (told.dtype, told.arithmetic) == (str(dtype).removeprefix("torch."), "float32")
    assert [note.text for note in told.lines[-1].notes] == [f"stored as {np.float32(told.after)!s}"]
    assert f"{told.dtype} computed in float32" in str(told)


def test_complex_numbers_are_pairs() -> None:
    p = torch.nn.Parameter(torch.tensor([1 + 2j, 3 - 1j]))
    optimizer = openadam.torch.Adam([("w", p)], lr=0.1)
    optimizer.follow("w", (1, 1))
    p.grad = torch.tensor([1j, 2 - 3j])
    optimizer.step()
    told = optimizer.explain("w", (1, 1))
    assert (told.before, told.values["g"], told.after) == (-1.0, -3.0, p[1].imag.item())
    assert told.values["p"] == told.after
    with pytest.raises(ExplanationError, match=r"of shape \(2, 2\)"):
        optimizer.follow("w", 1)


@pytest.mark.parametrize("name", ["SparseAdam", "SGD", "Adagrad"])
def test_sparse_gradients(name: str) -> None:
    p = torch.nn.Parameter(torch.ones(5, 3))
    optimizer = getattr(openadam.torch, name)([("w", p)], lr=0.1)
    optimizer.follow("w", (1, 2))
    optimizer.follow("w", (3, 0))
    p.grad = torch.sparse_coo_tensor(torch.tensor([[3, 1, 3]]), torch.arange(9.0).reshape(3, 3), (5, 3), check_invariants=True)
    optimizer.step()
    assert agrees_over_torch(optimizer, p, (1, 2), 1.0).values["g"] == 5.0
    assert agrees_over_torch(optimizer, p, (3, 0), 1.0).values["g"] == 6.0
    p.grad = torch.sparse_coo_tensor(torch.tensor([[3]]), torch.ones(1, 3), (5, 3), check_invariants=True)
    optimizer.step()
    with pytest.raises(ExplanationError, match="the gradient of parameter 'w' was for other rows in step 2"):
        optimizer.explain("w", (1, 2))


def test_a_loss_scale_is_part_of_it() -> None:
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = openadam.torch.SGD([("w", p)], lr=0.5, clip_norm=1.0)
    optimizer.follow("w", 0)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)

    def step(factor: float) -> None:
        optimizer.zero_grad()
        scaler.scale((p * torch.tensor([3.0, 4.0]) * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()

    step(1.0)
    told = agrees_over_torch(optimizer, p, 0, 1.0)
    assert told.lines[1].formula.text == "clip_factor*(1/loss_scale)*gradient"
    assert told.lines[1].numbers.text == "0.19999996*(1/8)*24"
    assert told.settings["loss_scale"] == 8.0
    step(math.inf)
    with pytest.raises(ExplanationError, match="step 2 was skipped: a scaler found gradients that are not finite"):
        optimizer.explain("w", 0)


def test_over_torch_steps_that_move_nothing_say_why() -> None:
    p, q = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    optimizer = openadam.torch.Adam([("w", p), ("b", q)], lr=0.0)
    optimizer.follow("w", 0)

    def why() -> str:
        with pytest.raises(ExplanationError) as caught:
            optimizer.explain("w", 0)
        return str(caught.value)

    assert why().startswith("no step was taken since")
    optimizer.step()
    assert why().endswith("no parameter had a gradient")
    p.grad = torch.zeros(2)
    optimizer.step()
    assert why().endswith("it only made the states, since learning rates and gradients were all 0")
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.step()
    assert optimizer.explain("w", 0).step == 1
    p.grad = torch.tensor([math.nan, 1.0])
    with pytest.raises(openadam.NonFiniteGradientError):
        optimizer.step()
    assert "it was refused, the gradient of parameter 'w' is not finite at step 2" in why()
    p.grad, q.grad = None, torch.ones(2)
    optimizer.step()
    assert why().endswith("parameter 'w' had no gradient in step 2")
    p.grad = torch.ones(2)
    optimizer.param_groups[0]["betas"] = (2.0, 0.9)
    with pytest.raises(openadam.HyperparameterError):
        optimizer.step()
    assert "it was refused, beta1=2.0 (betas of group 0) is out of range" in why()


def test_what_cannot_be_followed_over_torch_is_refused_by_name() -> None:
    class Wrapped(torch.Tensor):
        @classmethod
        def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            raise NotImplementedError

    p = torch.nn.Parameter(torch.ones(2))
    optimizer = openadam.torch.Adam([("w", p), ("away", torch.nn.Parameter(torch.ones(2, device="meta")))])
    with pytest.raises(ParameterError, match=r"follow: parameter 'away' \(Parameter\) is no plain memory"):
        optimizer.follow("away", 0)
    with pytest.raises(ParameterError, match="follow: no parameter is called 'W'; they are called 'away', 'w'"):
        optimizer.follow("W", 0)
    with pytest.raises(ParameterError, match="explain: Tensor is no parameter"):
        optimizer.explain(torch.ones(2), 0)
    p._fsdp_flattened = True  # type: ignore[attr-defined]
    with pytest.raises(ParameterError, match="parameter 'w' is spread over processes"):
        optimizer.follow("w", 0)
    wrapped = openadam.torch.SGD([("x", torch.Tensor._make_wrapper_subclass(Wrapped, (2,), requires_grad=True))], lr=0.1)  # type: ignore[attr-defined]
    with pytest.raises(ParameterError, match=r"parameter 'x' \(Wrapped\) is no plain memory"):
        wrapped.follow("x", 0)


def test_no_tensor_is_kept_between_steps() -> None:
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = openadam.torch.Adam([("w", p)])
    optimizer.follow("w", 0)
    p.grad = torch.ones(2)
    optimizer.step()
    kept = weakref.ref(p.grad), weakref.ref(optimizer.state[p]["exp_avg"])
    p.grad = None
    optimizer.state.clear()
    gc.collect()
    assert [each() for each in kept] == [None, None]
    assert optimizer.explain("w", 0).values["m"] == pytest.approx(0.1)


def test_a_parameter_that_shrinks_stops_no_training() -> None:
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = openadam.torch.SGD([("w", p)], lr=0.1)
    optimizer.follow("w", 2)
    p.data = torch.ones(2)
    p.grad = torch.ones(2)
    optimizer.step()
    assert p.tolist() == pytest.approx([0.9, 0.9])
    p.data = torch.ones(3)
    with pytest.raises(ExplanationError, match=r"it could not be looked at in step 1 \(IndexError"):
        optimizer.explain("w", 2)


# --- the house -------------------------------------------------------------------------------------------------------------


def test_hosts_stand_below_the_views() -> None:
    root = Path(openadam.__file__).parent
    for file in (file for room in ("worked", "arrays", "torch") for file in (root / room).glob("*.py")):
        imported = [node.module or "" for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.ImportFrom)]
        assert not [name for name in imported if name.split(".")[0] in ("views", "cli", "studies", "practice")], file
