"""Anything a user may do between two steps, in any order, to an optimizer of ours and to torch's for-loop beside it.

Rules move, share, replace, delete, edit, swap, regroup, save, load and copy the same tensors on both sides; after every step parameters,
states, counters and settings must agree. Torch's values are then copied into our tensors, in place, so that rounding does not add up.

For a longer run, with other examples at every start:
``STATEFUL_EXAMPLES=2000 python -m pytest tests/test_torch_stateful.py``
"""

from __future__ import annotations

import copy
import math
import os
import pickle
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from torch import Tensor
from torchfamily import CLASSES, SUBJECTS, Subject, params_of
from torchpairs import COUNTERS, LAYOUTS, MOVES, agree, laid, made, moved, random

EXAMPLES = int(os.environ.get("STATEFUL_EXAMPLES", "0"))
LIMITS = settings(
    max_examples=EXAMPLES or 40, stateful_step_count=24, derandomize=not EXAMPLES, deadline=None, database=None,
    suppress_health_check=list(HealthCheck), print_blob=False, report_multiple_bugs=False, phases=[Phase.generate, Phase.shrink],
)  # fmt: skip

SHAPES = ((), (0,), (3,), (4, 3), (17,), (9, 8), (1500,))
KINDS = ("parameter", "subclass", "tensor", "complex")
GRADIENTS = ("new", "new", "transposed", "column", "negated", "expanded", "kept", "in place", "shared", "none")
EDITS: dict[str, tuple[Any, ...]] = {
    "lr": (0.02, 0.005), "weight_decay": (0.0, 0.05), "betas": ((0.8, 0.9), [0.7, 0.99]), "eps": (1e-3, 0.01), "maximize": (True, False),
    "decoupled_weight_decay": (True, False), "amsgrad": (True, False), "momentum_decay": (0.004, 0.1), "alpha": (0.8, 0.93),
    "lr_decay": (0.0, 0.1), "dampening": (0.0, 0.2), "nesterov": (True, False), "momentum": (0.0, 0.5),
}  # fmt: skip
which = st.integers(0, 11)  # a parameter, counted around


# --- the two sides -----------------------------------------------------------------------------------------------------


@dataclass
class Side:
    """An optimizer, and how another like it is made."""

    make: Callable[..., Any]
    optimizer: Any

    @property
    def groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    def place(self, number: int) -> tuple[dict[str, Any], int]:
        """The group of a parameter, and where it stands there."""
        places = [(group, k) for group in self.groups for k in range(len(group["params"]))]
        return places[number % len(places)]

    def put(self, group: dict[str, Any], k: int, p: Tensor) -> None:
        """Set a parameter of a group, whatever sequence that holds them in."""
        params = list(group["params"])
        params[k] = p
        group["params"] = type(group["params"])(params)

    def param(self, number: int) -> Tensor:
        group, k = self.place(number)
        return group["params"][k]

    def states(self, number: int) -> dict[str, Tensor]:
        """The tensors that are held for a parameter."""
        own = self.optimizer.state.get(self.param(number), {})
        return {key: value for key, value in own.items() if value is not None}


class Beside(RuleBasedStateMachine):
    """Ours and torch's."""

    name = ""

    @initialize(
        subject=st.integers(0, 99), dtype=st.sampled_from([torch.float32, torch.float64]), engine=st.sampled_from([None, None, "graph"]),
        params=st.lists(st.tuples(st.sampled_from(SHAPES), st.sampled_from(LAYOUTS), st.sampled_from(KINDS)), min_size=1, max_size=5),
        split=which,
    )  # fmt: skip
    def begin(self, subject: int, dtype: torch.dtype, engine: str | None, params: list[Any], split: int) -> None:
        choice = [each for each in SUBJECTS if each.name == self.name]
        self.subject: Subject = choice[subject % len(choice)]
        self.dtype, self.made, self.steps = dtype, 0, 0
        number = self.made
        self.sides = []
        for make, own in ((self.subject.make, {"engine": engine}), (self.subject.theirs, {})):
            self.made = number
            tensors = [self.new(*each) for each in params]
            cut = split % len(tensors)
            groups = [{"params": tensors[:cut], "lr": 0.03}, {"params": tensors[cut:]}] if cut else [{"params": tensors}]
            self.sides.append(Side(lambda groups, make=make, own=own: make(groups, **own), make(groups, **own)))

    def new(self, shape: tuple[int, ...], layout: str, kind: str) -> Tensor:
        """A new parameter, the same on both sides if both make their n-th one."""
        self.made += 1
        dtype = self.dtype.to_complex() if kind == "complex" else self.dtype
        return made(random(shape, dtype, self.made), layout, kind)

    def both(self) -> Iterator[Side]:
        """Ours, then torch's, each making the same new parameters."""
        number = self.made
        for side in self.sides:
            self.made = number
            yield side

    # --- rules ---------------------------------------------------------------------------------------------------------

    @rule(number=which, how=st.sampled_from(MOVES), layout=st.sampled_from(LAYOUTS))
    def move_a_parameter(self, number: int, how: str, layout: str) -> None:
        for side in self.both():
            p = side.param(number)
            if how == "swapped":
                p.grad = None
            moved(p, how, layout)

    @rule(number=which, state=which, how=st.sampled_from(MOVES), layout=st.sampled_from(LAYOUTS))
    def move_a_state(self, number: int, state: int, how: str, layout: str) -> None:
        for side in self.both():
            for key in _one_of(side.states(number), state):
                moved(side.states(number)[key], how, layout)

    @rule(number=which, state=which, layout=st.sampled_from(LAYOUTS), drop=st.booleans())
    def replace_a_state(self, number: int, state: int, layout: str, drop: bool) -> None:
        for side in self.both():
            own = side.states(number)
            for key in own if drop else _one_of(own, state):
                side.optimizer.state[side.param(number)][key] = laid(own[key], layout)

    @rule(number=which, how=st.sampled_from(["fill", "data", "add", "double", "long", "float", "axis", "set_"]), count=st.integers(0, 60))
    def edit_a_counter(self, number: int, how: str, count: int) -> None:
        for side in self.both():
            own = side.optimizer.state.get(side.param(number), {})
            if isinstance(step := own.get("step"), Tensor):
                fresh = torch.full_like(step, count)
                if how == "fill" or step.is_neg():  # a lazily negated one would show the negative of what it is set to
                    step.fill_(count)
                elif how == "data":
                    step.data = fresh
                elif how == "set_":
                    step.set_(fresh)
                elif how == "add":
                    step += 3
                elif how == "axis":
                    own["step"] = step.reshape(1)
                else:
                    own["step"] = getattr(step, how)()

    @rule(number=which, how=st.sampled_from(["fill", "data", "double", "float", "axis", "set_"]), value=st.sampled_from([1.0, 0.5, 0.01]))
    def edit_the_product_of_momenta(self, number: int, how: str, value: float) -> None:
        for side in self.both():
            own = side.optimizer.state.get(side.param(number), {})
            if isinstance(product := own.get("mu_product"), Tensor):
                fresh = torch.full_like(product, value)
                if how == "fill" or product.is_neg():
                    product.fill_(value)
                elif how == "data":
                    product.data = fresh
                elif how == "set_":
                    product.set_(fresh)
                else:
                    own["mu_product"] = product.reshape(1) if how == "axis" else getattr(product, how)()

    @rule(number=which)
    def edit_the_averages(self, number: int) -> None:
        """Squares grow and the others shrink, so that a centered variance stays positive."""
        for side in self.both():
            for key, value in side.states(number).items():
                if key not in COUNTERS:
                    value.mul_(2.0 if key in ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "exp_inf", "sum") else 0.5)

    @rule(number=which, choice=st.integers(0, 1), key=which)
    def edit_a_setting(self, number: int, choice: int, key: int) -> None:
        for side in self.both():
            group = side.groups[number % len(side.groups)]
            for name in _one_of(group.keys() & EDITS.keys(), key):
                if self.name != "RMSprop" or name != "momentum":  # torch makes its buffer at the first step or never
                    group[name] = copy.copy(EDITS[name][choice])

    @rule(number=which, what=st.sampled_from(["one", "cleared", "empty", "all"]))
    def delete_states(self, number: int, what: str) -> None:
        for side in self.both():
            state, p = side.optimizer.state, side.param(number)
            if what == "all":
                state.clear()
            elif what == "one":
                state.pop(p, None)
            elif what == "cleared":
                state[p].clear()
            else:
                state[p] = {}

    @rule(number=which, keep=st.booleans(), layout=st.sampled_from(LAYOUTS))
    def replace_a_parameter(self, number: int, keep: bool, layout: str) -> None:
        for side in self.both():
            group, k = side.place(number)
            old = group["params"][k]
            new = made(old, layout, "parameter")
            side.put(group, k, new)
            own = side.optimizer.state.pop(old, None)
            if keep and own is not None:
                side.optimizer.state[new] = own

    @rule(number=which, as_new=st.booleans(), dtype=st.sampled_from([None, torch.float32, torch.float64]), grow=st.booleans())
    def reshape_a_parameter(self, number: int, as_new: bool, dtype: torch.dtype | None, grow: bool) -> None:
        """Rows are added or taken away, and so from the states; the dtype may change with them."""

        def other(tensor: Tensor) -> Tensor:
            wanted = tensor.dtype if dtype is None or tensor.is_complex() else dtype
            return (torch.cat([tensor, torch.full_like(tensor[:1], 0.5)]) if grow else tensor[: max(1, len(tensor) - 1)].clone()).to(wanted)

        for side in self.both():
            group, k = side.place(number)
            old = group["params"][k]
            if not old.ndim or not old.numel():
                return
            own = side.optimizer.state.pop(old, {})
            new = torch.nn.Parameter(other(old.detach())) if as_new else old
            if not as_new:
                old.data, old.grad = other(old.data), None
            side.put(group, k, new)
            side.optimizer.state[new] = {
                key: value if value is None or key in COUNTERS else other(value) for key, value in own.items()
            }  # fmt: skip

    @rule(one=which, other=which)
    def swap_two_parameters(self, one: int, other: int) -> None:
        """What the two objects are, where they have the same shape; where they stand, else."""
        for side in self.both():
            (a, i), (b, j) = side.place(one), side.place(other)
            p, q = a["params"][i], b["params"][j]
            if p is not q and p.shape == q.shape and p.dtype == q.dtype and type(p) is type(q):
                p.grad = q.grad = None
                torch.utils.swap_tensors(p, q)
            else:
                side.put(a, i, q)
                side.put(b, j, p)

    @rule(shape=st.sampled_from(SHAPES), layout=st.sampled_from(LAYOUTS), kind=st.sampled_from(KINDS))
    def add_a_group(self, shape: tuple[int, ...], layout: str, kind: str) -> None:
        if len(self.sides[0].groups) < 4:
            for side in self.both():
                side.optimizer.add_param_group({"params": [self.new(shape, layout, kind)], "lr": 0.007})

    @rule(one=which, group=which, by=st.sampled_from(["list", "new list", "tuple"]))
    def move_to_another_group(self, one: int, group: int, by: str) -> None:
        for side in self.both():
            source, k = side.place(one)
            target = side.groups[group % len(side.groups)]
            p = source["params"][k]
            source["params"] = [q for q in source["params"] if q is not p]
            if by == "list" and isinstance(target["params"], list):
                target["params"].append(p)
            else:
                target["params"] = (tuple if by == "tuple" else list)([*target["params"], p])

    @rule(number=which)
    def remove_a_parameter(self, number: int) -> None:
        for side in self.both():
            group, k = side.place(number)
            if len(params_of(side.optimizer)) > 1:
                side.optimizer.state.pop(group["params"][k], None)
                group["params"] = [p for i, p in enumerate(group["params"]) if i != k]

    @rule(number=which, wanted=st.booleans())
    def freeze(self, number: int, wanted: bool) -> None:
        for side in self.both():
            side.param(number).requires_grad_(wanted)

    @rule(where=st.sampled_from(["same", "new", "crosswise"]))
    def save_and_load(self, where: str) -> None:
        self.prepare()
        saved = [copy.deepcopy(side.optimizer.state_dict()) for side in self.sides]
        if where == "crosswise":
            saved.reverse()
        for side, state in zip(self.sides, saved, strict=True):
            if where == "new":
                side.optimizer = side.make([{"params": list(group["params"])} for group in side.groups])
            for group, other in zip(state["param_groups"], side.groups, strict=True):
                group["foreach"] = other["foreach"]
            side.optimizer.load_state_dict(state)

    @rule(how=st.sampled_from(["deepcopy", "pickle"]))
    def copy_all(self, how: str) -> None:
        for side in self.both():
            self.prepare()  # torch's Adagrad cannot be copied without its states
            params = params_of(side.optimizer)
            if how == "deepcopy":
                side.optimizer = copy.deepcopy((params, side.optimizer))[1]
            else:
                side.optimizer = pickle.loads(pickle.dumps((params, side.optimizer)))[1]

    @rule(number=st.integers(0, 10**6), kinds=st.lists(st.sampled_from(GRADIENTS), min_size=1, max_size=4), repeat=st.integers(1, 2))
    def step(self, number: int, kinds: list[str], repeat: int) -> None:
        self.prepare()
        for again in range(repeat):
            for side in self.sides:
                for k, p in enumerate(params_of(side.optimizer)):
                    give(p, kinds[k % len(kinds)], number + 1000 * again + k)
                side.optimizer.step()
            self.steps += 1
            self.compare()

    def teardown(self) -> None:
        if hasattr(self, "sides") and not math.isnan(self.steps):
            self.step(1, ["new"], 2)

    # --- what torch alone could not step, and what must agree ----------------------------------------------------------

    def prepare(self) -> None:
        """States without which torch's step ends in a KeyError: Adagrad's, and the maximum where amsgrad was switched on later."""
        for side in self.sides:
            for group in side.groups:
                for p in group["params"]:
                    own = side.optimizer.state.get(p, {})
                    if self.name == "Adagrad" and "sum" not in own:
                        side.optimizer.state[p] = {"step": torch.tensor(0.0), "sum": torch.full_like(p, 0.1, requires_grad=False)}
                    if group.get("amsgrad") and "exp_avg_sq" in own and "max_exp_avg_sq" not in own:
                        own["max_exp_avg_sq"] = own["exp_avg_sq"].clone()

    def compare(self) -> None:
        """Same formula, other rounding; then ours take over torch's values, where they lie."""
        steps, self.steps = self.steps, math.nan  # a failure here is not followed by another one
        (mine, theirs), names = self.sides, ("params", "foreach")
        for a, b in zip(mine.groups, theirs.groups, strict=True):
            settings_of = [{key: value for key, value in group.items() if key not in names} for group in (a, b)]
            assert settings_of[0] == settings_of[1]
        agree(mine.optimizer, theirs.optimizer)
        self.steps = steps


def _one_of(keys: Any, number: int) -> list[Any]:
    """One of the keys, or none if there are none."""
    keys = sorted(keys)
    return [keys[number % len(keys)]] if keys else []


def give(p: Tensor, kind: str, number: int) -> None:
    """A gradient of this kind."""
    values = random(tuple(p.shape), p.dtype, number)
    if kind == "none":
        p.grad = None
    elif kind == "in place" and p.grad is not None and 0 not in p.grad.stride():
        p.grad.copy_(values)
    elif kind != "kept" or p.grad is None:
        p.grad = laid(values, kind)
        if kind == "shared":
            p.grad.share_memory_()


@pytest.mark.parametrize("name", CLASSES)
def test_whatever_is_done_between_steps(name: str) -> None:
    machine = type(f"Beside{name}", (Beside,), {"name": name})

    def make() -> RuleBasedStateMachine:
        return machine()

    run_state_machine_as_test(make if EXAMPLES else seed(zlib.crc32(name.encode()))(make), settings=LIMITS)
