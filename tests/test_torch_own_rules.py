"""Rules of one's own in PyTorch: the bits of the reference, and all that the classes of torch.optim can do."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import numpy as np
import pytest
import torch

import openadam
from openadam import Step, engine, rules, sqrt, where
from openadam.engine import native_isas
from openadam.errors import (
    CheckpointMismatchError,
    HyperparameterError,
    NonFiniteGradientError,
    NonFiniteStateError,
    RuleError,
    UnknownHyperparameterError,
)
from openadam.torch import AdamW, NAdam, Optimizer


@openadam.rule(nonnegative=("v",), beta1=0.9, beta2=0.999, eps=1e-8)
def belief(g: Any, s: Any, h: Any) -> Step:
    m = h.beta1 * s.m + (1 - h.beta1) * g
    v = h.beta2 * s.v + (1 - h.beta2) * (g - m) ** 2 + h.eps
    return Step(m / (1 - h.beta1**h.t) / (sqrt(v / (1 - h.beta2**h.t)) + h.eps), m=m, v=v)


@openadam.rule(beta1=0.9, beta2=0.99)
def lion(g: Any, s: Any, h: Any) -> Step:
    return Step(openadam.sign(h.beta1 * s.m + (1 - h.beta1) * g), m=h.beta2 * s.m + (1 - h.beta2) * g)


@openadam.rule(initial={"drift": -1.0, "m": "start"}, start=0.5, rate=0.1)
def drifting(g: Any, s: Any, h: Any) -> Step:
    """A scalar state that is negative, and a state that starts at a hyperparameter."""
    drift = s.drift * (1 - h.rate)
    return Step(g + drift * s.m, m=s.m + h.rate * (g - s.m), drift=drift)


@openadam.rule(options={"form": ("swapped", "kept")})
def two(g: Any, s: Any, h: Any, *, form: str) -> Step:
    """States that change places."""
    a, b = (s.b, s.a + g) if form == "swapped" else (s.a, s.b + g)
    return Step(a + b, a=a, b=b)


@openadam.rule(beta1=0.9)
def many(g: Any, s: Any, h: Any) -> Step:
    """More states than the native part takes."""
    return Step(s.e, a=h.beta1 * s.a + g, b=s.a, c=s.b, d=s.c, e=s.d)


RULES = {"belief": belief, "lion": lion, "drifting": drifting, "two": two, "many": many}


def network(dtype: torch.dtype = torch.float32) -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(20, 33), torch.nn.Tanh(), torch.nn.Linear(33, 1)).to(dtype)


def train(made: Any, net: torch.nn.Module, steps: int = 12, dtype: torch.dtype = torch.float32) -> None:
    for t in range(steps):
        x = torch.randn(16, 20, generator=torch.Generator().manual_seed(t)).to(dtype)
        made.zero_grad()
        (net(x) - x[:, :1] ** 2).square().mean().backward()
        made.step()


def bits(net: torch.nn.Module, made: Any) -> list[bytes]:
    states = [made.state[p][name] for p in net.parameters() for name in sorted(made.state[p])]
    return [each.detach().contiguous().view(torch.uint8).numpy().tobytes() for each in (*net.parameters(), *states) if each.dim()] + [
        str(float(each)).encode() for each in states if not each.dim()
    ]


# --- the same everywhere -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", RULES)
def test_every_engine_has_the_same_bits(name: str, dtype: torch.dtype) -> None:
    found = []
    for chosen in ("interpreter", "graph", None) if native_isas() else ("graph", None):
        net = network(dtype)
        made = Optimizer(net.named_parameters(), rule=RULES[name], lr=1e-2, weight_decay=0.1, clip_norm=1.0, coupling="decoupled", engine=chosen)
        train(made, net, dtype=dtype)
        found.append(bits(net, made))
    assert all(each == found[0] for each in found)


@pytest.mark.parametrize("coupling", ["coupled", "decoupled"])
@pytest.mark.parametrize("name", RULES)
def test_arrays_have_the_same_bits(name: str, coupling: str) -> None:
    values = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    w, p = values.copy(), torch.nn.Parameter(torch.from_numpy(values.copy()))
    settings: dict[str, Any] = {"rule": RULES[name], "lr": 0.03, "weight_decay": 0.1, "coupling": coupling, "clip_value": 0.5}
    ours, theirs = openadam.Optimizer({"w": w}, engine="reference", **settings), Optimizer([p], **settings)
    for t in range(10):
        g = np.random.default_rng(t).normal(size=(40, 3)).astype(np.float32)
        p.grad = torch.from_numpy(g)
        theirs.step()
        ours.step({"w": g})
    assert w.tobytes() == p.detach().numpy().tobytes()
    for key, value in ours.state["w"].items():
        assert np.array_equal(value, np.asarray(theirs.state[p][key]))


def test_the_familys_rules_move_as_its_classes_do() -> None:
    found = []
    for make in (
        lambda params: AdamW(params, lr=1e-2, weight_decay=0.1),
        lambda params: Optimizer(params, rule=rules.adam, lr=1e-2, weight_decay=0.1, coupling="decoupled", beta1=0.9, beta2=0.999, eps=1e-8),
    ):
        net = network()
        train(make(net.parameters()), net)
        found.append([p.detach().numpy().tobytes() for p in net.parameters()])
    assert found[0] == found[1]
    net = network()
    inside = Optimizer(net.parameters(), rule=rules.adam, lr=1e-2, beta1=0.9, beta2=0.999, eps=1e-3, epsilon="inside")
    train(inside, net)
    assert [p.detach().numpy().tobytes() for p in net.parameters()] != found[0]
    with pytest.raises(HyperparameterError, match="epsilon='above' is none of 'outside', 'inside', 'hat'"):
        Optimizer(net.parameters(), rule=rules.adam, lr=1e-2, beta1=0.9, beta2=0.999, eps=1e-3, epsilon="above")


# --- what torch's classes can do -----------------------------------------------------------------------------------------


def test_groups_schedulers_and_any_hyperparameter_between_steps() -> None:
    net = network()
    first, second = net[0], net[2]
    made = Optimizer([{"params": first.parameters(), "beta1": 0.5}, {"params": second.parameters(), "lr": 1e-3}], rule=belief, lr=1e-2)
    assert [(group["lr"], group["beta1"], group["eps"]) for group in made.param_groups] == [(1e-2, 0.5, 1e-8), (1e-3, 0.9, 1e-8)]
    scheduler = torch.optim.lr_scheduler.StepLR(made, 2, 0.5)
    before = second.weight.detach().clone()
    for _ in range(4):
        train(made, net, 1)
        scheduler.step()
    assert [group["lr"] for group in made.param_groups] == [2.5e-3, 2.5e-4]
    made.param_groups[1]["lr"] = 0.0
    made.param_groups[0]["beta1"] = 0.0
    held = second.weight.detach().clone()
    train(made, net, 1)
    assert torch.equal(held, second.weight)
    assert not torch.equal(before, held)
    made.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], "eps": 1e-3})
    made.param_groups[0]["beta1"] = 1.5
    with pytest.raises(HyperparameterError, match=r"beta1=1\.5 in group 0 is out of range"):
        made.step()
    with pytest.raises(HyperparameterError, match="out of range"):
        made.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], "lr": -1.0})
    assert len(made.param_groups) == 3


def test_checkpoints(tmp_path: Any) -> None:
    net = network()
    made = Optimizer(net.named_parameters(), rule=drifting, lr=1e-2)
    train(made, net, 5)
    torch.save(made.state_dict(), tmp_path / "state.pt")
    weights = copy.deepcopy(net.state_dict())
    train(made, net, 5)
    expected = bits(net, made)
    again = network()
    again.load_state_dict(weights)
    resumed = Optimizer(again.named_parameters(), rule=drifting, lr=1.0)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    train(resumed, again, 5)
    assert bits(again, resumed) == expected

    @openadam.rule(initial={"drift": -1.0, "m": "start"}, start=0.5, rate=0.1)
    def other(g: Any, s: Any, h: Any) -> Step:
        return Step(g + s.drift * s.m, m=s.m + h.rate * (g - s.m), drift=s.drift * 0.5)

    with pytest.raises(CheckpointMismatchError, match="another rule"):
        Optimizer(network().named_parameters(), rule=other, lr=1.0).load_state_dict(made.state_dict())
    with pytest.raises(CheckpointMismatchError):
        Optimizer(network().named_parameters(), rule=lion, lr=1.0).load_state_dict(AdamW(network().named_parameters()).state_dict())


def test_copies_and_pickles_go_on_as_one_would() -> None:
    for copied in (copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))):
        net = network()
        made = Optimizer(net.parameters(), rule=lion, lr=1e-2, weight_decay=0.1, coupling="decoupled")
        train(made, net, 3)
        other_net, other = copied((net, made))
        train(made, net, 3)
        train(other, other_net, 3)
        assert bits(net, made) == bits(other_net, other)
        assert "rule: lion" in repr(other)


def test_a_scaler_and_a_closure_and_hooks() -> None:
    seen: list[str] = []
    net, plain_net = network(), network()
    made, plain = (Optimizer(each.parameters(), rule=belief, lr=1e-2, clip_norm=0.5) for each in (net, plain_net))
    made.register_step_pre_hook(lambda *_: seen.append("before"))
    made.register_step_post_hook(lambda *_: seen.append("after"))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14)
    x = torch.ones(4, 20)
    for _ in range(3):
        made.zero_grad()
        plain.zero_grad()
        scaler.scale(net(x).square().mean()).backward()
        scaler.step(made)
        scaler.update()

        def closure() -> torch.Tensor:
            loss = plain_net(x).square().mean()
            loss.backward()
            return loss

        plain.step(closure)
    assert seen == ["before", "after"] * 3
    for a, b in zip(net.parameters(), plain_net.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)
    assert made.last_step is not None
    assert plain.last_step is not None
    assert made.last_step.grad_norm == pytest.approx(plain.last_step.grad_norm, rel=1e-4)


def test_it_can_be_recorded_measured_explained_and_reset(tmp_path: Any) -> None:
    net = network()
    recorder = openadam.record.Recorder(tmp_path / "run.oadam")
    made = Optimizer(net.named_parameters(), rule=belief, lr=1e-2, record=recorder)
    made.follow("0.weight", (1, 2))
    train(made, net, 3)
    assert "belief" in str(made.explain("0.weight", (1, 2)))
    x = torch.ones(4, 20)
    net(x).sum().backward()
    made.step(measure=True, loss=1.0)
    assert made.last_step is not None
    assert made.last_step.measures is not None
    assert made.last_step.measures["0.weight"]["v_sum"] > 0
    made.reset(["0.weight"])
    assert len(made.state[net[0].weight]) == 0
    recorder.close()
    (track,) = openadam.record.load(tmp_path / "run.oadam").tracks.values()
    assert track.steps == 4


# --- safe ----------------------------------------------------------------------------------------------------------------


@openadam.rule
def late(g: Any, s: Any, h: Any) -> Step:
    return Step(g / where(h.t == 2, 0.0, 1.0), m=s.m + g)


@pytest.mark.parametrize("chosen", ["interpreter", "graph", None])
@pytest.mark.parametrize("nonfinite", ["raise", "skip", "propagate"])
def test_what_finite_gradients_make_infinite_is_treated_as_gradients_are(nonfinite: Any, chosen: Any) -> None:
    if chosen == "interpreter" and not native_isas():
        pytest.skip("no native code here")
    p = torch.nn.Parameter(torch.ones(3))
    made = Optimizer([p], rule=late, lr=0.5, nonfinite=nonfinite, engine=chosen)
    p.grad = torch.ones(3)
    made.step()
    before = p.detach().clone(), made.state[p]["m"].clone()
    if nonfinite == "raise":
        with pytest.raises(NonFiniteStateError, match="parameter '0' would not be finite"):
            made.step()
    else:
        made.step()
    if nonfinite == "propagate":
        assert p.isinf().all()
    else:
        assert torch.equal(p, before[0])
        assert torch.equal(made.state[p]["m"], before[1])
        assert float(made.state[p]["step"]) == 1
    p.grad = torch.tensor([1.0, float("nan"), 0.0])
    if nonfinite == "raise":
        with pytest.raises(NonFiniteGradientError):
            made.step()


@pytest.mark.parametrize("chosen", ["interpreter", "graph"])
def test_a_state_that_breaks_the_rules_word_is_refused(chosen: Any) -> None:
    if chosen == "interpreter" and not native_isas():
        pytest.skip("no native code here")
    breaks = openadam.rule(nonnegative=("v",))(lambda g, s, h: Step(g, v=s.v + g))
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.tensor([1.0, -1.0, 1.0])
    for nonfinite in ("raise", "propagate"):
        made = Optimizer([p], rule=breaks, lr=0.5, nonfinite=nonfinite, engine=chosen)
        with pytest.raises(RuleError, match="`nonnegative` has 'v', and the state of parameter '0' would be -1 at flat index 1"):
            made.step()
        assert p.tolist() == [1.0] * 3


@pytest.mark.skipif(not native_isas(), reason="no native code here")
def test_states_that_are_edited_loaded_or_replaced_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    outcome = engine.outcome
    monkeypatch.setattr(engine, "outcome", lambda *given: tried.append(1) or outcome(*given))
    explosive = openadam.rule(lambda g, s, h: Step(s.m * 1e10, m=0.9 * s.m + g))
    p = torch.nn.Parameter(torch.ones(3))
    made = Optimizer([p], rule=explosive, lr=0.1)
    p.grad = torch.ones(3)
    for _ in range(5):
        made.step()
    assert tried == []
    kept = made.state_dict()
    large = torch.full((3,), 1e32)

    def edit() -> None:
        made.state[p]["m"].copy_(large)

    def replace() -> None:
        made.state[p]["m"] = large.clone()

    def load() -> None:
        state = copy.deepcopy(kept)
        state["state"][0]["m"] = large.clone()
        made.load_state_dict(state)

    for change in (edit, replace, load):
        change()
        with pytest.raises(NonFiniteStateError):
            made.step()
        made.state[p]["m"].zero_()
        made.step()
    tried.clear()
    made.reset()
    made.step()
    made.step()
    assert tried == []


# --- bad input -----------------------------------------------------------------------------------------------------------


def test_what_it_is_given_is_checked() -> None:
    p = [torch.nn.Parameter(torch.ones(3))]
    with pytest.raises(TypeError, match="needs rule="):
        Optimizer(p, rule=lambda g, s, h: Step(g), lr=0.1)  # type: ignore[arg-type]
    with pytest.raises(HyperparameterError, match="Optimizer needs lr=…: the rule has no default for it"):
        Optimizer(p, rule=belief)
    with pytest.raises(UnknownHyperparameterError, match="no hyperparameter or option 'beta3'; did you mean 'beta2'"):
        Optimizer(p, rule=belief, lr=0.1, beta3=0.5)
    with pytest.raises(HyperparameterError, match="out of range"):
        Optimizer(p, rule=belief, lr=0.1, beta1=1.5)
    with pytest.raises(HyperparameterError, match="is not a number"):
        Optimizer(p, rule=belief, lr="0.1")
    with pytest.raises(HyperparameterError, match="neither 'coupled' nor"):
        Optimizer(p, rule=belief, lr=0.1, coupling="loose")
    with pytest.raises(ValueError, match="empty parameter list"):
        Optimizer([], rule=belief, lr=0.1)
    assert NAdam(p).member.name == "NAdam"


def test_many_optimizers_of_different_rules_live_together() -> None:
    buffer = io.BytesIO()
    for name, each in RULES.items():
        net = network()
        made = Optimizer(net.parameters(), rule=each, lr=1e-3)
        train(made, net, 2)
        torch.save(made.state_dict(), buffer)
        assert made.member.name == each.name, name


def test_a_number_over_a_tensor_is_rounded_once_in_torch_operations_too() -> None:
    over = openadam.rule(lambda g, s, h: Step(1e-3 / (abs(g) + h.shift), m=3.0 / (g - 7.0) + 0 * s.m + where(g < 0, 0.1, -1.5)))
    found = []
    for chosen in ("graph", None):
        p = torch.nn.Parameter(torch.zeros(5000))
        made = Optimizer([p], rule=over, lr=1.0, shift=0.37, engine=chosen)
        p.grad = torch.randn(5000, generator=torch.Generator().manual_seed(0))
        made.step()
        found.append((p.detach().numpy().tobytes(), made.state[p]["m"].numpy().tobytes()))
    assert found[0] == found[1]
