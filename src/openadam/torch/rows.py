"""A row: one parameter of a torch optimizer, what its rule keeps for it, how a step reaches it, and why it is refused.

Nothing of a tensor is remembered, and no tensor is kept: a row knows the place of its parameter among the groups and the id of the object that
it was made for, and asks everything else of torch's own ``param_groups`` and ``state`` in the step that uses it. (A weak reference would
tell more, but `torch.utils.swap_tensors` refuses tensors that have one.) Most rows are plain, and the native reader asks
them all in one call. For the others `Row.reach` finds, once per step, the real tensors that stand for the parameter, its gradient and
its states: local parts of DTensors, pairs of reals for complex numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..engine import Update
from ..errors import (
    CheckpointCorruptError,
    GradientDtypeError,
    GradientError,
    GradientShapeError,
    HyperparameterError,
    ParameterDtypeError,
    ParameterError,
    SparseGradientError,
)
from ..row_sparse import Indices, by_row, layout, refuse_places
from ..step import MAX_STEP
from .members import Member
from .memory import arithmetic_of, array_over, dtype_name, has_numbers, is_memory, lies_within, make_state, real, scalar_dtype
from .shards import is_distributed, local_part, with_layout_of

__all__ = ["Reached", "Row", "whole_step"]

EXACT_FLOAT32 = 2**24  # counted exactly up to here
NATIVE = (torch.float32, torch.float64)
COUNTERS = (torch.float32, torch.float64, torch.int64)  # what the native part counts in


def whole_step(value: Any, what: str) -> int:
    """A step number as torch and others store it: a tensor, a float or an int."""
    number = value
    if isinstance(value, Tensor) and value.numel() == 1 and value.device.type != "meta":
        number = value.detach().item()
    elif isinstance(value, np.generic):
        number = value.item()
    if isinstance(number, (bool, complex)) or not isinstance(number, (int, float)) or not 0 <= number <= MAX_STEP or number != int(number):
        raise CheckpointCorruptError(f"{what} is {value!r:.80}, not a whole number from 0 to {MAX_STEP}")
    return int(number)


@dataclass
class NamedRows:
    """The rows that a sparse gradient is for, each once; a row is what the axes that are not sparse span."""

    places: tuple[Tensor, ...]  # the index along each sparse axis
    flat: Indices | None  # in ascending order, over all sparse axes together; None where they do not lie in this machine's memory
    width: int  # elements of a row
    count: int  # rows of the parameter

    def layout(self) -> list[int]:
        """For the native table."""
        assert self.flat is not None
        return layout(self.flat, self.width, self.count)

    def element(self, index: int) -> int:
        """The flat index in the parameter of an element of the named rows."""
        row = int(self.flat[index // self.width]) if self.flat is not None else index // self.width
        return row * self.width + index % self.width


@dataclass
class Reached:
    """A row in one step: the tensors behind it, and what is to be shown to torch once the step is certain."""

    update: Update
    gradient: Tensor  # real, in the parameter's shape, or that of the rows that it names
    targets: tuple[Tensor, ...]  # the user's own memory: the states, then the parameter
    steps: int  # taken so far
    memory: list[float]  # scalar states
    count: Tensor | None = None
    numbers: tuple[Tensor, ...] = ()  # the tensors that show the scalar states
    new: dict[str, Tensor] = field(default_factory=dict)  # states by torch's names
    first: bool = False  # the states are all new
    rows: NamedRows | None = None  # those that the gradient is for; None: all

    @property
    def parameter(self) -> Tensor:
        return self.targets[-1]

    def touched(self, tensor: Tensor) -> Tensor:
        """What the step reads and writes of the parameter or a state: all, or a copy of the rows that the gradient names."""
        return real(tensor) if self.rows is None else real(tensor)[self.rows.places]

    def within(self, index: tuple[int, ...]) -> tuple[int, ...] | None:
        """Where in the gradient an element of the parameter is; None where the gradient is for other rows."""
        if self.rows is None:
            return index
        axes = len(self.rows.places)
        here = torch.stack([places == place for places, place in zip(self.rows.places, index, strict=False)]).all(0).nonzero()
        return (int(here[0]), *index[axes:]) if here.numel() else None

    def natively(self) -> tuple[Tensor, Tensor, list[Tensor]] | None:
        """Parameter, gradient and states as the native loop may reach them; None where it cannot."""
        if not all(is_memory(target) and target.device.type == "cpu" and not target.is_conj() and not target.is_neg() for target in self.targets):
            return None
        for tensor in (*self.targets, self.count, *self.numbers):
            if tensor is not None and is_memory(tensor):
                tensor.data_ptr()  # one that is to be copied once somebody writes is copied now
        *states, p = (real(target.as_subclass(Tensor)) for target in self.targets)
        if self.rows is not None and (
            self.rows.flat is None or self.parameter.is_complex() or not all(each.is_contiguous() for each in (p, *states))
        ):
            return None
        if p.dtype not in NATIVE or any(state.dtype != p.dtype for state in states) or not is_memory(self.gradient):
            return None
        return p, self.gradient.as_subclass(Tensor).to(p.dtype), states

    def commit_numbers(self, memory: Sequence[float]) -> None:
        """Write the counter and the scalar states after the step."""
        if self.count is not None:
            self.count.fill_(self.steps + 1)
        for tensor, value in zip(self.numbers, memory, strict=True):
            tensor.fill_(value)


class Row:
    """One parameter of an optimizer, in one of its groups."""

    __slots__ = ("excluded", "group", "identity", "member", "place", "position", "repeated", "update")

    def __init__(self, parameter: Any, member: Member, group: int, place: int, position: int) -> None:
        self.identity = id(parameter)
        self.member = member
        self.group = group  # its number
        self.place = place  # among the group's parameters
        self.position = position  # among all parameters
        self.excluded = False  # from weight decay
        self.repeated = False  # the same parameter stands in an earlier row
        self.update: Update = None  # type: ignore[assignment]  # of its class: the group, decayed or not

    # --- what is known of it ---------------------------------------------------------------------------------------

    def name(self, groups: Sequence[Mapping[str, Any]]) -> str:
        """Its name if it has one, else its number."""
        names = groups[self.group].get("param_names") if self.group < len(groups) else None
        return str(names[self.place]) if names and self.place < len(names) else str(self.position)

    @property
    def class_index(self) -> int:
        """Rows of one class share their hyperparameters."""
        return 2 * self.group + self.excluded

    @property
    def keys(self) -> list[str]:
        """What torch calls the states, in the order of the rule's program."""
        return [self.member.states.get(name, name) for name in self.update.program.states]

    @property
    def number_keys(self) -> list[str]:
        """What torch calls the scalar states."""
        return [self.member.states.get(name, name) for name in self.update.program.memory]

    def has_states(self, p: Any, state: Mapping[Any, Any]) -> bool:
        """Whether torch holds any state of the rule for the parameter."""
        own = state.get(p)
        return isinstance(own, Mapping) and any(own.get(key) is not None for key in self.keys)

    # --- how a step reaches it -------------------------------------------------------------------------------------

    def reach(self, p: Any, groups: Sequence[Mapping[str, Any]], state: MutableMapping[Any, Any], part: Tensor | None) -> Reached:
        """The tensors behind this row as they are now; refuses by name what a step cannot use. Nothing is changed.

        Args:
            p: The parameter.
            groups: The optimizer's groups.
            state: Its states.
            part: The part of the gradient that belongs to the parameter's, where that had to be fetched from other processes.
        """
        name, gradient = self.name(groups), p.grad
        if hasattr(type(gradient), "get_mask"):
            raise GradientError(
                f"the gradient of parameter {name!r} is a masked tensor, whose mask a step would ignore; fill it first (.to_tensor(0))"
            )
        if gradient.layout is torch.jagged and p.layout is torch.jagged:
            raise GradientError(f"parameter {name!r} is a jagged tensor, over which a step is not defined; optimize its values()")
        sparse = gradient.layout is not torch.strided
        if sparse:
            self._refuse_sparse(name, p, gradient)
        elif self.member.sparse == "required":
            raise GradientError(
                f"{self.member.name} does not support dense gradients, please consider Adam instead (the gradient of parameter {name!r})"
            )
        self.refuse_inference(p, groups)
        if is_distributed(gradient) != is_distributed(p):
            raise GradientError(f"of parameter {name!r} and its gradient, one is a DTensor and the other is not")
        if is_distributed(p) and gradient.device_mesh != p.device_mesh:
            raise GradientError(f"the gradient of parameter {name!r} is spread over {gradient.device_mesh}, the parameter over {p.device_mesh}")
        local, given = local_part(p), local_part(gradient) if part is None else part
        self._refuse(name, local, given)
        wide = arithmetic_of(local.dtype)
        rows = None
        if sparse:
            given, rows = self._by_row(name, local, given)
            if self.update.program.states and not self.member.counts:  # a velocity goes on moving what it has moved: as if it were dense
                given, rows = torch.zeros(real(local).shape, dtype=given.dtype, device=given.device).index_put_(rows.places, given), None
        given = real(given)
        reached = Reached(self.update, given.to(wide) if given.dtype != wide and local.dtype in NATIVE else given, (), 0, [], rows=rows)
        own = state.get(p, {})
        if not isinstance(own, Mapping):
            raise ParameterError(f"the state of parameter {name!r} is {type(own).__name__}, not a dict of states; delete it to start anew")
        states = self._states(name, own, p, reached)
        reached.targets = (*(local_part(each) for each in states), local)
        self._numbers(name, {} if reached.first else own, reached)
        return reached

    def _refuse_sparse(self, name: str, p: Any, gradient: Any) -> None:
        """Refuse a sparse gradient that this rule, or these settings, have no meaning for."""
        if self.member.sparse == "refused":
            advice = ", please consider SparseAdam instead" if self.member.name == "Adam" else ""
            raise SparseGradientError(f"{self.member.name} does not support sparse gradients{advice} (the gradient of parameter {name!r})")
        if gradient.layout is not torch.sparse_coo:
            advice = f"{self.member.name} takes those of the layout torch.sparse_coo, convert it with .to_sparse_coo()"
            raise SparseGradientError(f"the gradient of parameter {name!r} is {gradient.layout}; {advice}")
        if self.update.values["weight_decay"] != 0:
            advice = "give its group weight_decay=0, or name it in no_decay"
            raise SparseGradientError(f"weight_decay option is not compatible with sparse gradients (the gradient of parameter {name!r}); {advice}")
        if p.is_complex() and self.member.name != "SGD":
            raise SparseGradientError(f"{self.member.name} does not support sparse gradients of complex parameters (parameter {name!r})")

    def _by_row(self, name: str, p: Tensor, gradient: Tensor) -> tuple[Tensor, NamedRows]:
        """The values of a sparse gradient, those of a row that is named twice added in the order given; and the rows."""
        indices, values = gradient._indices(), gradient._values()
        axes = gradient.sparse_dim()
        if not axes:
            raise GradientShapeError(f"the gradient of parameter {name!r} is sparse along no axis; make it dense (.to_dense())")
        if not (lies_within(indices) and lies_within(values)):
            raise GradientError(f"the gradient of parameter {name!r} has lost its memory: its storages are too small; give it memory again")
        sizes, width = tuple(p.shape[:axes]), math.prod(p.shape[axes:])
        what = "row" if axes == 1 else "along axis {} row"
        for axis, size in enumerate(sizes if indices.shape[1] else ()):
            low, high = indices[axis].aminmax()
            refuse_places(name, what.format(axis), int(low), int(high), size, "its indices are damaged, make it anew")
        flat = indices[0]
        for axis in range(1, axes):
            flat = flat * sizes[axis] + indices[axis]
        values = real(values).to(arithmetic_of(values.dtype))
        known: Indices | None = None
        if values.device.type == "cpu" and is_memory(values) and has_numbers(values) and is_memory(indices):
            flat, values = flat.contiguous(), values.contiguous()
            given = array_over(values)
            known, sums = by_row(array_over(flat), given)
            flat, values = torch.from_numpy(known), values if sums is given else torch.from_numpy(sums)
        else:
            joined = torch.sparse_coo_tensor(flat[None], values, (math.prod(sizes), *values.shape[1:])).coalesce()
            flat, values = joined._indices()[0], joined._values()
        places = (flat,) if axes == 1 else tuple(torch.unravel_index(flat, sizes))
        return values, NamedRows(places, known, width, math.prod(sizes))

    def refuse_inference(self, p: Any, groups: Sequence[Mapping[str, Any]]) -> None:
        """Refuse a parameter that must not be changed outside of inference mode."""
        if p.is_inference() and not torch.is_inference_mode_enabled():
            advice = "which must not be changed outside of inference mode; clone it"
            raise ParameterError(f"parameter {self.name(groups)!r} is an inference tensor, {advice}")

    def _refuse(self, name: str, p: Tensor, gradient: Tensor) -> None:
        """Refuse a parameter or a gradient that does not fit."""
        if p.device.type == "meta":
            raise GradientError(f"parameter {name!r} is on the meta device and has no data; give it some (to_empty) before the first step")
        for what, tensor in ("parameter", p), ("the gradient of parameter", gradient):
            if not lies_within(tensor):
                holds = f"its storage holds {tensor.untyped_storage().nbytes()} bytes"
                raise ParameterError(f"{what} {name!r} of shape {tuple(tensor.shape)} has lost its memory: {holds}; give it memory again")
        if gradient.device != p.device:
            raise GradientError(f"the gradient of parameter {name!r} is on {gradient.device}, the parameter on {p.device}")
        if not (p.is_floating_point() or p.is_complex()):
            raise ParameterDtypeError(f"parameter {name!r} is {dtype_name(p.dtype)}; only floating-point and complex parameters can be stepped")
        if gradient.shape != p.shape:
            shapes = f"has shape {tuple(gradient.shape)}, the parameter {tuple(p.shape)}"
            raise GradientShapeError(f"the gradient of parameter {name!r} {shapes}; gradients are never broadcast")
        g, wide = gradient.dtype, arithmetic_of(p.dtype)
        of_real = torch.view_as_real(torch.empty(0, dtype=g, device="cpu")).dtype if g.is_complex else g
        if g.is_complex != p.dtype.is_complex or not of_real.is_floating_point or torch.promote_types(of_real, wide) != wide:
            kinds = f"is {dtype_name(g)}, the parameter {dtype_name(p.dtype)}"
            raise GradientDtypeError(f"the gradient of parameter {name!r} {kinds}, which would not hold it; convert it with .to({p.dtype})")

    def _states(self, name: str, own: Mapping[str, Any], p: Any, reached: Reached) -> list[Any]:
        """The states as torch holds them, and new ones for those that are missing."""
        found = []
        held = {key: own.get(key) for key in self.keys}
        reached.first = bool(held) and all(each is None for each in held.values())
        for key, rule_name in zip(held, self.update.program.states, strict=True):
            each = held[key]
            if each is None:  # at the first step; or such as amsgrad switched on later: what is missing starts where it starts
                each = reached.new[key] = self._new_state(p, rule_name)
            lies = f"{dtype_name(p.dtype)} {tuple(p.shape)}"
            if not isinstance(each, Tensor) or tuple(each.shape) != tuple(p.shape) or each.is_complex() != p.is_complex():
                is_now = f"{dtype_name(each.dtype)} {tuple(each.shape)}" if isinstance(each, Tensor) else type(each).__name__
                advice = "give both their new shape, or delete the state"
                raise ParameterError(f"the state {key!r} of parameter {name!r} is {is_now}, the parameter {lies}; {advice}")
            if each.layout is not torch.strided or each._is_zerotensor() or not (each.is_floating_point() or each.is_complex()):
                raise ParameterError(f"the state {key!r} of parameter {name!r} is {each.dtype} ({each.layout}), in which a step cannot write it")
            if arithmetic_of(p.dtype) is torch.float64 and arithmetic_of(each.dtype) is not torch.float64:
                advice = "convert a model before its first step, or its states as well"
                raise ParameterError(f"the state {key!r} of parameter {name!r} is {dtype_name(each.dtype)}, the parameter {lies}; {advice}")
            if is_distributed(each) != is_distributed(p) or each.device != p.device:
                where = (f"{type(x).__name__} on {x.device}" for x in (each, p))
                raise ParameterError("the state {!r} of parameter {!r} is a {}, the parameter a {}; move it along".format(key, name, *where))
            self._refuse_lost(key, name, local_part(each))
            found.append(each)
        return found

    @staticmethod
    def _refuse_lost(key: str, name: str, state: Tensor) -> None:
        """Refuse a state whose storage was made too small for it."""
        if not lies_within(state):
            raise ParameterError(f"the state {key!r} of parameter {name!r} has lost its memory: its storage is too small; delete or refill it")

    def _new_state(self, p: Any, rule_name: str) -> Tensor:
        """A state that the row lacks, at its first value."""
        local = local_part(p)
        # 16-bit averages stall (at beta2 = 0.999 a bfloat16 second moment stays at a quarter of what it should be), so these are wider.
        dtype = torch.float32 if local.dtype in (torch.bfloat16, torch.float16) else local.dtype
        return with_layout_of(p, make_state(local, dtype, self.first_value(rule_name)))

    def first_value(self, rule_name: str) -> float:
        """The first value of a state."""
        start = self.update.traced.initial[rule_name]
        return float(self.update.values[start]) if isinstance(start, str) else float(start)

    def _numbers(self, name: str, own: Mapping[str, Any], reached: Reached) -> None:
        """The counter and the scalar states as torch holds them; without its states, a parameter starts anew."""
        if self.member.counts:
            reached.count, reached.steps = self._counter(name, own, reached)
        else:
            reached.steps = 1 if self.keys and not reached.first else 0  # a velocity that exists has seen a gradient
        for key, rule_name in zip(self.number_keys, self.update.program.memory, strict=True):
            given = own.get(key)
            if given is None:
                dtype = scalar_dtype() if self.member.program is None else torch.float64
                given = reached.new[key] = torch.full((), self.first_value(rule_name), dtype=dtype, device="cpu")
            elif not isinstance(given, Tensor):
                given = reached.new[key] = torch.tensor(float(given), dtype=torch.float64, device="cpu")
            self._refuse_lost(key, name, given)
            value = float(given.detach()) if has_numbers(given) else self.first_value(rule_name)
            low, high = self.member.word(rule_name)
            if not (low <= value <= high and math.isfinite(value)):
                kind = "a finite number that is not negative" if low == 0 else "a finite number"
                raise CheckpointCorruptError(f"{key!r} of parameter {name!r} is {value!r}, not {kind}")
            reached.memory.append(value)
            reached.numbers = (*reached.numbers, given)

    def _counter(self, name: str, own: Mapping[str, Any], reached: Reached) -> tuple[Tensor, int]:
        given = own.get("step")
        if given is None:
            given = reached.new["step"] = torch.zeros((), dtype=scalar_dtype(), device="cpu")
        if isinstance(given, Tensor) and given.device.type != "meta" and not has_numbers(given):
            return given, 0
        if isinstance(given, Tensor):
            self._refuse_lost("step", name, given)
        steps = whole_step(given, f"step of parameter {name!r}")
        if steps >= MAX_STEP:
            raise HyperparameterError(f"parameter {name!r} has taken {MAX_STEP} steps, more than can be counted exactly; start a new optimizer")
        if not isinstance(given, Tensor):
            given = reached.new["step"] = torch.tensor(float(steps), dtype=torch.float64 if steps >= EXACT_FLOAT32 else scalar_dtype(), device="cpu")
        elif given.dtype not in COUNTERS[1:] and steps >= EXACT_FLOAT32 - (given.dtype is not torch.float32):
            given = reached.new["step"] = torch.tensor(float(steps), dtype=torch.float64, device=given.device)
        return given, steps
