"""The tensors of a torch optimizer as rows of the step's table: where they lie, whether they still do, and their states.

torch's own ``state`` and ``param_groups`` are the truth. The table is a picture of them that is looked at again at every step: in one
native call for all tensors that lie plainly, one by one for the others (strided, complex, DTensor, on other devices).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .. import engine as engines
from ..errors import (
    AliasError,
    CheckpointCorruptError,
    GradientDtypeError,
    GradientError,
    GradientShapeError,
    NonFiniteGradientError,
    ParameterDtypeError,
    ParameterError,
    SparseGradientError,
)
from ..parameters import Entry, as_gradient, overlaps, protected_intervals, read_entries, touches
from ..step import MAX_STEP, Stepper, Update, allocate_states, compiled
from .graph import GraphEngine, arithmetic_of
from .members import Member
from .memory import Written, as_array, dtype_name, real
from .shards import Shards, is_distributed, local_part, with_layout_of

__all__ = ["SkippedByScaler", "TensorStepper", "whole_step"]

Array = npt.NDArray[Any]
NATIVE = {torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64)}
EXACT_FLOAT32 = 2**24  # counted exactly up to here
ELSEWHERE = -1  # the place of a row that the native reader leaves alone
_exchange: Any = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)


def whole_step(value: Any, what: str) -> int:
    """A step number as torch and others store it: a tensor, a float or an int."""
    number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if isinstance(number, (bool, complex)) or not isinstance(number, (int, float)) or not 0 <= number <= MAX_STEP or number != int(number):
        raise CheckpointCorruptError(f"{what} is {value!r:.80}, not a whole number from 0 to {MAX_STEP}")
    return int(number)


class SkippedByScaler(Exception):  # noqa: N818 - not an error
    """A scaler has found infinities, here or in another process."""


class TensorStepper(Stepper):
    """Steps over the tensors of a torch optimizer."""

    engine: GraphEngine

    def __init__(
        self, groups: list[dict[str, Any]], state: Mapping[Any, Any], member: Member, engine: GraphEngine, *, native: bool, no_decay: Any,
        sharded: bool, clip_norm: float | None, clip_value: float | None, nonfinite: str, previous: TensorStepper | None,
        counted: tuple[int, int] = (0, 0),
    ) -> None:  # fmt: skip
        super().__init__(engine, clip_norm=clip_norm, clip_value=clip_value, nonfinite=nonfinite)
        self.groups, self.state, self.member = groups, state, member
        self._lists = [list(group["params"]) for group in groups]
        self._reader = engines.tensor_reader() if native and _exchange is not None else None
        if self._reader is not None and not self._reader.speaks(_exchange):
            self._reader = None
        self._native = native and engine.base.name == "native"
        self.params: list[Any] = []
        self.names: list[str] = []
        classes: list[int] = []
        position = 0
        seen: set[int] = set()
        for g, group in enumerate(groups):
            own_names = group.get("param_names") or [str(position + k) for k in range(len(group["params"]))]
            if len(own_names) != len(group["params"]):
                raise ParameterError(f"group {g} has {len(group['params'])} parameters and {len(own_names)} names in 'param_names'; change both")
            for name, p in zip(own_names, group["params"], strict=True):
                position += 1
                if id(p) in seen:  # torch warns of it; a step moves it once
                    continue
                seen.add(id(p))
                self.params.append(p)
                self.names.append(name)
                classes.append(2 * g + excluded(no_decay, name, p))
        count = len(self.params)
        self._updates: dict[tuple[Any, ...], Update] = {}
        self.shards = Shards(self.params, plain_too=sharded)
        self.skips = False  # whether a scaler wants this step skipped
        self.is_new = False  # whether there are states to come, and none yet, with any who take this step
        self.parts: dict[int, Tensor] = {}  # of gradients that are spread otherwise than their parameters
        # Of each row: an array over the parameter (None on other engines), the dict of its states, the tensors that the table points to.
        self.entries: list[Entry | None] = [None] * count
        self.dicts: list[dict[str, Any]] = [{} for _ in range(count)]
        self.held: list[tuple[Tensor, ...]] = [()] * count
        self.shown: list[tuple[Tensor, ...]] = [()] * count
        self.keys: list[tuple[str, ...]] = [()] * count
        self.locals: list[Any] = [None] * count
        self.known: list[tuple[Any, Any] | None] = [None] * count
        self._lacking: set[int] = set()  # rows whose rule has states that they have not got yet
        self._waiting: dict[int, tuple[Tensor, ...]] = {}  # new states, which torch gets to see once a step is certain
        self._order: list[Any] = []
        self._places = np.full(count, ELSEWHERE, np.int64)
        self._geometry = np.zeros(0, np.int64)
        self._traces: Array = np.zeros((count, 0), np.int64)
        self._protected: tuple[Array, Array] = (np.zeros(0, np.int64), np.zeros(0, np.int64))
        self._doubtful = True

        table = self.table
        self.class_of = np.array(classes, np.int64)
        self._read_classes()
        table.programs = [self.updates[c].program for c in classes]
        table.states = [()] * count
        table.parameters = [np.zeros(0)] * count
        table.gradients = [None] * count
        names = member.traced(groups[0]).scalar_states if groups else ()
        self._memory_names = names
        self.scalar_names = (*(("step",) if member.counts else ()), *(member.states.get(name, name) for name in names))
        table.memory = np.array([float(self._first(i, name)) for i in range(count) for name in names])
        table.counters = np.zeros(2 * count + 2, np.int64)
        if previous is not None:
            before = {id(p): k for k, p in enumerate(previous.params)}
            for i, k in ((i, before[id(p)]) for i, p in enumerate(self.params) if id(p) in before):
                table.counters[i], self.known[i] = previous.steps_of[k], previous.known[k]
        self.shows = np.dtype(np.float32) if member.counts else None
        table.rows = np.zeros((count, engines.COLUMNS), np.int64)
        dtypes: list[np.dtype[Any]] = [np.dtype(np.float32)] * count
        self.dtypes = dtypes
        for i in range(count):
            self._place(i)
        self.rebuild(table.rows, self.class_of, dtypes)
        self._settle()
        taken, skipped = counted if previous is None else (previous.steps, previous.skipped)
        table.counters[count : count + 2] = (max(taken, table.counters[:count].max(initial=0)), skipped)
        self._show(np.dtype(np.float64 if table.counters[:count].max(initial=0) >= EXACT_FLOAT32 else np.float32))

    # --- classes ---------------------------------------------------------------------------------------------------

    def _read_classes(self) -> None:
        """The rule of each class, from the groups' flags as they are."""
        updates: dict[int, Update] = {}
        for g, group in enumerate(self.groups):
            traced, coupling = self.member.traced(group), self.member.coupling(group)
            key = (traced.name, coupling)
            if key not in self._updates:
                program, scalars = compiled(traced)
                self._updates[key] = Update(traced, program, scalars, coupling, self.engine.kernel(program) or 0)
            updates[2 * g] = updates[2 * g + 1] = self._updates[key]
        self.updates = updates

    def stands(self, groups: list[dict[str, Any]], state: Mapping[Any, Any]) -> bool:
        """Whether this is still a picture of the optimizer's groups and states, single tensors aside."""
        if groups is not self.groups or state is not self.state or len(groups) != len(self._lists):
            return False
        same = self._reader.same_items if self._reader is not None else _same_items
        if not all(same(group["params"], own) for group, own in zip(groups, self._lists, strict=True)):
            return False
        if any(self.member.traced(group) is not self.updates[2 * g].traced or self.member.coupling(group) != self.updates[2 * g].coupling
               for g, group in enumerate(groups)):  # fmt: skip
            return False
        same_values = self._reader.same_values if self._reader is not None else _same_values
        return bool(same_values(state, self._order))

    def _first(self, i: int, name: str) -> float:
        """The first value of a state of row i."""
        start = self.updates[int(self.class_of[i])].traced.initial[name]
        group = self.groups[int(self.class_of[i]) // 2]
        return float(group[self.member.numbers[start][0]]) if isinstance(start, str) else float(start)

    # --- where the tensors lie -------------------------------------------------------------------------------------

    def _place(self, i: int) -> None:
        """Look at parameter i and its states anew and write its row."""
        p = self.params[i]
        local = local_part(p)
        if p.is_inference() and not torch.is_inference_mode_enabled():
            raise ParameterError(f"parameter {self.names[i]!r} is an inference tensor, which must not be changed outside of inference mode; clone it")
        update = self.updates[int(self.class_of[i])]
        own = self.state.get(p) if p in self.state else None
        names = tuple(self.member.states.get(name, name) for name in update.program.states)
        states = tuple(own.get(name) for name in names) if own else (None,) * len(names)
        shape, dtype = tuple(p.shape), p.dtype
        known = self.known[i]
        if known is not None and known != (shape, dtype) and any(state is not None for state in states):
            raise ParameterError(
                f"parameter {self.names[i]!r} was {dtype_name(known[1])} {known[0]} when its state was made and is {dtype_name(dtype)} {shape} now; "
                "nothing was changed (convert a model before its first step, or make a new optimizer)"
            )
        self.known[i] = (shape, dtype)
        held: list[Tensor] = []
        for name, state in zip(names, states, strict=True):
            if state is None:
                continue
            if not isinstance(state, Tensor) or tuple(state.shape) != shape:
                found = f"{dtype_name(state.dtype)} {tuple(state.shape)}" if isinstance(state, Tensor) else type(state).__name__
                raise ParameterError(f"the state {name!r} of parameter {self.names[i]!r} is {found}, the parameter {dtype_name(dtype)} {shape}")
            held.append(state)
        partial = 0 < len(held) < len(names)
        if partial:  # such as amsgrad switched on later: what is missing starts where it starts
            own_names = update.program.states
            held = [state if state is not None else self._new_state(i, own_names[k]) for k, state in enumerate(states)]
        entry = None
        natively = self._native and update.kernel > 0 and local.device.type == "cpu" and real(local).dtype in NATIVE and local.layout is torch.strided
        if natively and all(state.dtype == dtype and local_part(state).device.type == "cpu" for state in held):
            (entry,) = read_entries([(self.names[i], as_array(local))], int(self.class_of[i]) // 2)
            arrays = []
            for k, state in enumerate(held):
                array = entry.canonical(as_array(local_part(state)))
                if array.shape != entry.view.shape or not (array.flags.c_contiguous and array.flags.aligned and array.flags.writeable):
                    held[k] = self._like(i, entry, state)  # its elements are in another order than the parameter's: bring them into that
                    if not partial:
                        assert own is not None
                        own[names[k]] = held[k]
                    array = entry.canonical(as_array(local_part(held[k])))
                arrays.append(array)
            self.table.states[i] = tuple(arrays)
            self.table.parameters[i] = entry.view
        self.entries[i] = entry
        self.locals[i] = real(local)
        self._waiting.pop(i, None)
        if partial:
            self._waiting[i], held = tuple(held), []
        self.held[i] = tuple(held)
        self.keys[i] = names
        self.dicts[i] = own if own is not None else {}
        self._lacking.discard(i)
        if names and not held:
            self._lacking.add(i)
        self._read_scalars(i, own, bool(held) or partial)
        dtypes = self.dtypes
        assert isinstance(dtypes, list)
        dtypes[i] = NATIVE[arithmetic_of(dtype)]
        row = self.table.rows[i]
        row[:] = 0
        row[engines.LAYOUT] = -1
        row[engines.KERNEL] = update.kernel
        self._places[i] = ELSEWHERE
        if entry is not None:
            row[engines.PARAMETER] = entry.address
            row[engines.LENGTH] = entry.view.size
            row[engines.DTYPE] = engines.DTYPES[entry.view.dtype]
            self._point(i, self.table.states[i])
            if self._reader is not None and type(p) in (Tensor, torch.nn.Parameter) and not p.is_complex() and not p.is_neg() and entry.is_dense:
                self._places[i] = 0  # given a place by _settle

    def _point(self, i: int, arrays: Sequence[Array]) -> None:
        for s, array in enumerate(arrays):
            self.table.rows[i, engines.STATES + s] = array.__array_interface__["data"][0]

    def _new_state(self, i: int, name: str) -> Tensor:
        """A state that a row lacks, at its first value."""
        p = self.params[i]
        local = local_part(p)
        # 16-bit averages stall (at beta2 = 0.999 a bfloat16 second moment stays at a quarter of what it should be), so these are wider.
        dtype = torch.float32 if local.dtype in (torch.bfloat16, torch.float16) else local.dtype
        made = torch.zeros_like(local, dtype=dtype, memory_format=torch.preserve_format)
        first = self._first(i, name)
        if first:
            real(made).fill_(first)
        return with_layout_of(p, made)

    def _like(self, i: int, entry: Entry, state: Tensor) -> Tensor:
        """A state in the order in which the parameter's elements lie."""
        ((array,),) = allocate_states([entry], [[0.0]])
        array[...] = entry.canonical(as_array(local_part(state)))
        return self._as_state(i, entry, array)

    def _as_state(self, i: int, entry: Entry, array: Array) -> Tensor:
        made = torch.from_numpy(entry.as_given(array))
        return with_layout_of(self.params[i], torch.view_as_complex(made) if self.params[i].is_complex() else made)

    def _read_scalars(self, i: int, own: Mapping[str, Any] | None, has_states: bool) -> None:
        """Take the counter and the scalar states from what torch shows; without a state, a parameter starts anew."""
        shown = own if own is not None and has_states else {}
        if self.member.counts:
            self.table.counters[i] = whole_step(shown.get("step", 0), f"step of parameter {self.names[i]!r}")
        elif not self.keys[i] or not has_states:
            self.table.counters[i] = 0
        elif not self.table.counters[i]:
            self.table.counters[i] = 1  # a velocity that exists has seen a gradient
        for k, name in enumerate(self._memory_names):
            value = shown.get(self.member.states.get(name, name), self._first(i, name))
            self.table.memory[i * len(self._memory_names) + k] = float(value)

    def _settle(self) -> None:
        """Once rows have been placed: the geometry for the reader, and the memory that gradients must stay out of."""
        numbers: list[int] = []
        for i in np.flatnonzero(self._places != ELSEWHERE).tolist():
            p = self.params[i]
            self._places[i] = len(numbers)
            numbers += [p.dim(), *p.shape, *p.stride()]
        self._geometry = np.array(numbers, np.int64)
        self._trace()
        self._written = Written()
        for i, entry in enumerate(self.entries):
            for tensor in () if entry is not None else (self.locals[i], *(real(local_part(state)) for state in self.held[i])):
                self._written.add(i, self.names, tensor)
        overlaps(_distinctly_named([entry for entry in self.entries if entry is not None]))
        self._protect()
        self._note_order()

    def _note_order(self) -> None:
        """The dicts of our rows' states as they stand in torch's, so that one that is replaced is noticed."""
        ids = set(map(id, self.dicts))
        self._order = [own for own in self.state.values() if id(own) in ids]

    def _trace(self) -> None:
        """Where the objects are that the reader will visit: of each row its gradient (noted by the reader), parameter, states and their dict."""
        if self._reader is None:
            return
        kinds = max(map(len, self.keys), default=0)
        first = self._reader.GRADIENT_TRACES
        traces = np.zeros((self.count, first + 4 + 3 * kinds), np.int64)
        for i in np.flatnonzero(self._places != ELSEWHERE).tolist():
            traces[i, first] = id(self.dicts[i])
            found = [
                address for tensor in (self.params[i], *self.held[i]) for address in (id(tensor), tensor._cdata, tensor.untyped_storage()._cdata)
            ]
            traces[i, first + 1 : first + 1 + len(found)] = found
        self._traces = traces

    def _protect(self) -> None:
        native = [i for i, entry in enumerate(self.entries) if entry is not None]
        self._protected = protected_intervals([self.entries[i] for i in native], [self.table.states[i] for i in native])  # type: ignore[misc]
        self._doubtful = True

    def _show(self, dtype: np.dtype[Any]) -> None:
        """Let torch see the counters and scalar states: its tensors are views of what the engine commits."""
        if self.shows is not None:
            self.shows = dtype
            self._shown_steps[:] = self.steps_of
        for i in range(self.count):
            if self.dicts[i] and (self.held[i] or not self.keys[i]):
                self._show_row(i)

    def _show_row(self, i: int) -> None:
        shown: list[Tensor] = []
        if self.shows is not None:
            shown.append(torch.from_numpy(self._shown_steps[i : i + 1].reshape(())))
        width = len(self._memory_names)
        shown += [torch.from_numpy(self.table.memory[i * width + k : i * width + k + 1].reshape(())) for k in range(width)]
        for name, tensor in zip(self.scalar_names, shown, strict=True):
            self.dicts[i][name] = tensor
        self.shown[i] = tuple(shown)

    @property
    def _shown_steps(self) -> Array:
        assert self.shows is not None
        return self.table.counters[self.count + 2 :].view(self.shows)[: self.count]

    def _adopt_edits(self) -> None:
        """Step numbers that somebody has written into the tensors that show them."""
        if self.shows is None:
            return
        shown = self._shown_steps
        edited = np.flatnonzero(shown != self.steps_of.astype(shown.dtype))
        if edited.size:
            values = [whole_step(float(shown[i]), f"step of parameter {self.names[i]!r}") for i in edited.tolist()]
            self.no_longer_together()
            self.table.counters[edited] = values
            self.note_together()
        if shown.dtype == np.float32 and self.count and self.steps_of.max() >= EXACT_FLOAT32 - 1:
            self._show(np.dtype(np.float64))

    # --- gradients -------------------------------------------------------------------------------------------------

    def read(self) -> None:
        """Put the gradients into the table; refuse by name what cannot be used. Nothing that a step changes is changed."""
        table, engine = self.table, self.engine
        table.gradients = [None] * self.count
        engine.given, engine.gradients = [], {}
        # The others take part in this, so it is done first, and once: afterwards any process may refuse what it finds.
        self.parts = {
            i: local_part(p.grad, p)
            for i, p in enumerate(self.params if self.shards else ())
            if is_distributed(p) and is_distributed(p.grad) and p.grad.placements != p.placements and p.grad.device_mesh == p.device_mesh
        }
        self._adopt_edits()
        others: Iterable[int] = range(self.count)
        suspects: list[int] = []
        moved: list[int] = []
        self.missing = []
        if self._reader is not None:
            others, suspects, moved, self.missing = self._reader.read_tensors(
                _exchange, Tensor, self.params, self.dicts, self.keys, self.held, self.scalar_names, self.shown, table.rows,
                self._places, self._geometry, *self._protected, self._traces, self._doubtful,
            )  # fmt: skip
        self._doubtful = True  # until everything below has been checked
        others = [*others]
        moved += [i for i in others if self._places[i] == ELSEWHERE and not self._still(i)]
        if moved:
            self._replace(moved)
            others = sorted({*others, *moved})
        layouts: list[int] = []
        for i in others:
            self._look(i, layouts, suspects)
        table.layouts = np.array(layouts, np.int64)
        self.missing.sort()
        for i in suspects:
            self._refuse_alias(i)
        self._allocate()
        self.is_new = bool(self._waiting) and not any(self.held) and not self.steps_of.any()
        self._doubtful = False

    def forget(self) -> None:
        """Gradients are the caller's; keep none alive."""
        self.table.gradients = [None] * self.count
        self.engine.gradients, self.parts = {}, {}

    def _still(self, i: int) -> bool:
        """Whether a row that the native reader left alone is as it was placed."""
        local, before = real(local_part(self.params[i])), self.locals[i]
        own = self.dicts[i]
        return (
            local.dtype == before.dtype and local.device == before.device and local.shape == before.shape and local.stride() == before.stride()
            and local.data_ptr() == before.data_ptr() and all(own.get(key) is state for key, state in zip(self.keys[i], self.held[i], strict=False))
            and all(own.get(key) is tensor for key, tensor in zip(self.scalar_names, self.shown[i], strict=False))
            and all(_address(state) == address for state, address in zip(self.held[i], self._addresses(i), strict=False))
        )  # fmt: skip

    def _addresses(self, i: int) -> list[int]:
        if self.entries[i] is None or not self.entries[i].view.size:  # type: ignore[union-attr]
            return []
        return self.table.rows[i, engines.STATES : engines.STATES + len(self.held[i])].tolist()  # type: ignore[no-any-return]

    def _replace(self, moved: Sequence[int]) -> None:
        """Parameters or states that lie elsewhere now."""
        self.no_longer_together()
        self._placed = None  # where their scalars are has gone with their rows
        for i in moved:
            self._place(i)
            if self.held[i]:
                self._show_row(i)
        if self.shows is not None:
            self._shown_steps[:] = self.steps_of
        self._settle()
        self._doubles = np.dtype(np.float64) in self.dtypes
        self.note_together()

    def _look(self, i: int, layouts: list[int], suspects: list[int]) -> None:
        """Take over a gradient that is not plain."""
        p, row, name = self.params[i], self.table.rows[i], self.names[i]
        gradient = p.grad
        row[engines.ACTIVE] = 0
        if gradient is None:
            self.missing.append(i)
            return
        if gradient.layout is not torch.strided:
            advice = ", please consider SparseAdam instead" if self.member.name == "Adam" else ""
            raise SparseGradientError(f"{self.member.name} does not support sparse gradients{advice} (the gradient of parameter {name!r})")
        if is_distributed(gradient) != is_distributed(p):
            raise GradientError(f"of parameter {name!r} and its gradient, one is a DTensor and the other is not")
        if is_distributed(p) and gradient.device_mesh != p.device_mesh:
            raise GradientError(f"the gradient of parameter {name!r} is spread over {gradient.device_mesh}, the parameter over {p.device_mesh}")
        local = self._part(i)
        entry = self.entries[i]
        if local.device.type == "meta":
            raise GradientError(f"parameter {name!r} is on the meta device and has no data; give it some (to_empty) before the first step")
        if local.device != self.locals[i].device:
            raise GradientError(f"the gradient of parameter {name!r} is on {local.device}, the parameter on {self.locals[i].device}")
        if entry is None:
            self._give(i, real(local))
            return
        array = as_gradient(entry, as_array(local))
        self.table.gradients[i] = array
        row[engines.GRADIENT] = array.__array_interface__["data"][0]
        row[engines.ACTIVE] = 1
        layout = entry.layout(array)
        row[engines.LAYOUT] = -1 if layout is None else len(layouts)
        layouts += layout or []
        if touches(array, self._protected):
            suspects.append(i)

    def _part(self, i: int) -> Tensor:
        """The part of a gradient that belongs to the part of the parameter that lies here."""
        part = self.parts.get(i)
        return local_part(self.params[i].grad) if part is None else part

    def _give(self, i: int, gradient: Tensor) -> None:
        """A row for the torch operations."""
        local, name = self.locals[i], self.names[i]
        if not local.is_floating_point():
            raise ParameterDtypeError(f"parameter {name!r} is {dtype_name(local.dtype)}; only floating-point and complex parameters can be stepped")
        if gradient.shape != local.shape:
            shapes = f"has shape {tuple(gradient.shape)}, the parameter {tuple(local.shape)}"
            raise GradientShapeError(f"the gradient of parameter {name!r} {shapes}; gradients are never broadcast")
        wide = arithmetic_of(local.dtype)
        if not gradient.is_floating_point() or torch.promote_types(gradient.dtype, wide) != wide:
            raise GradientDtypeError(f"the gradient of parameter {name!r} is {dtype_name(gradient.dtype)}, the parameter {dtype_name(local.dtype)}")
        for other in self._written.rows_at(gradient):
            both = f"the gradient of parameter {name!r} shares memory with the parameter {self.names[other]!r} or a state of it"
            raise AliasError(f"{both}, which the step writes; give it memory of its own")
        self.engine.given.append(i)
        self.engine.gradients[i] = gradient

    def _refuse_alias(self, i: int) -> None:
        gradient = self._canonical(i)
        for k, entry in enumerate(self.entries):
            if entry is None:
                continue
            for other, what in [(entry.view, "parameter"), *((state, "state of parameter") for state in self.table.states[k])]:
                if np.may_share_memory(gradient, other) and np.shares_memory(gradient, other):
                    both = f"the gradient of parameter {self.names[i]!r} shares memory with the {what} {entry.name!r}"
                    raise AliasError(f"{both}, which the step writes; give it memory of its own")

    def _canonical(self, i: int) -> Array:
        """The gradient of a native row in its entry's axis order."""
        entry = self.entries[i]
        assert entry is not None
        if self.table.gradients[i] is None:
            self.table.gradients[i] = as_gradient(entry, as_array(self._part(i)))
        found = self.table.gradients[i]
        assert found is not None
        return found

    # --- new states ------------------------------------------------------------------------------------------------

    def _allocate(self) -> None:
        """Memory for the states of rows that have a gradient for the first time."""
        fresh = sorted(self._lacking.difference(self._waiting, self.missing)) if self._lacking else []
        if fresh:
            native = [i for i in fresh if self.entries[i] is not None]
            first = [[self._first(i, name) for name in self.table.programs[i].states] for i in native]
            entries = [self.entries[i] for i in native]
            for i, entry, arrays in zip(native, entries, allocate_states(entries, first), strict=True):  # type: ignore[arg-type]
                assert entry is not None
                self._waiting[i] = tuple(self._as_state(i, entry, array) for array in arrays)
                self.table.states[i] = arrays
                self._point(i, arrays)
            for i in fresh:
                if self.entries[i] is None:
                    self._waiting[i] = tuple(self._new_state(i, name) for name in self.table.programs[i].states)
        for i in self.engine.given:
            states = self.held[i] or self._waiting.get(i, ())
            self.engine.tensors[i] = (*(real(local_part(state)) for state in states), self.locals[i])

    def register(self) -> None:
        """Show new states to torch, and tell its autograd that the parameters change."""
        changing = self.params
        if self.missing:
            left_out = set(self.missing)
            changing = [p for i, p in enumerate(self.params) if i not in left_out]
        torch._C._increment_version(changing)
        if not self._waiting:
            return
        absent = set(self.missing)
        state: Any = self.state
        fresh = {i: self._waiting[i] for i in self._waiting if i not in absent}
        for i in fresh:
            own = self.dicts[i] = state[self.params[i]]
            self._show_row(i)
            self.held[i] = self._waiting.pop(i)
            self._lacking.discard(i)
            own.update(zip(self.keys[i], self.held[i], strict=True))
        self._note_order()
        self._protect()
        self._trace()
        for i in self.engine.given:
            for state in fresh.get(i, ()):
                self._written.add(i, self.names, real(local_part(state)))

    # --- what a stepper asks ---------------------------------------------------------------------------------------

    def name(self, i: int) -> str:
        return self.names[i]

    def gradient(self, i: int) -> Array | None:
        p = self.params[i]
        if p.grad is None or (not self.table.rows[i, engines.ACTIVE] and i not in self.engine.gradients):
            return None
        return as_array(self._part(i))

    def preview(self, i: int) -> tuple[Array, Iterable[tuple[str, Array, Array]]]:
        table = self.table
        names = [*self.keys[i], "p"]
        if self.entries[i] is not None:
            gradient = self._canonical(i).reshape(-1)
            with np.errstate(all="ignore"):
                outputs = engines.ReferenceEngine.outputs(table, i)
            before = [array.reshape(-1) for array in (*table.states[i], table.parameters[i])]
            return gradient, list(zip(names, before, [outputs[name] for name in (*table.programs[i].states, "p")], strict=True))
        tensors = self.engine.tensors[i]
        found = self.engine.outputs(table, i)
        after = [as_array(found[name].to(tensor.dtype)) for name, tensor in zip((*table.programs[i].states, "p"), tensors, strict=True)]
        return as_array(self.engine.gradients[i]).reshape(-1), list(zip(names, [as_array(t).reshape(-1) for t in tensors], after, strict=True))

    def norm(self, squares: Array) -> tuple[float, float]:
        largest = float(squares.max(initial=0.0))
        if not self.shards:
            return self.local_norm(squares), largest
        norms = {key: self.local_norm(squares, which) for key, which in self.shards.sets.items()}
        flags = (False, self.skips, bool(self._waiting), any(self.held))
        norm, largest, (refused, skips, waiting, held) = self.shards.exchange(norms, largest, flags)
        self.is_new = waiting and not held
        if refused:
            raise GradientError("another process refused this step, and says why; nothing was changed")
        if skips:
            raise SkippedByScaler
        return norm, largest

    @property
    def exchanges(self) -> bool:
        """Whether the processes that hold parts of the parameters speak with each other at every step."""
        return bool(self.shards) and (self.nonfinite != "propagate" or self.clip_norm is not None)

    def agreed(self, error: Exception | None) -> Exception | None:
        if not self.shards:
            return error
        if isinstance(error, NonFiniteGradientError):
            error.process = torch.distributed.get_rank()
        return self.shards.first_error(error)


def _distinctly_named(entries: Sequence[Entry]) -> list[Entry]:
    """The entries, with names that differ: torch allows the same name in two groups."""
    seen: dict[str, int] = {}
    result = []
    for entry in entries:
        seen[entry.name] = seen.get(entry.name, 0) + 1
        name = entry.name if seen[entry.name] == 1 else f"{entry.name} ({seen[entry.name]})"
        result.append(Entry(name, entry.array, entry.group, entry.shape, entry.view, entry.axes))
    return result


def excluded(no_decay: Any, name: str, p: Tensor) -> bool:
    """Whether weight decay leaves a parameter alone."""
    if callable(no_decay):
        return bool(no_decay(name, p))
    return any(item is p or (isinstance(item, str) and item == name) for item in no_decay)


def _address(tensor: Tensor) -> int:
    return real(local_part(tensor)).data_ptr()


def _same_items(a: Sequence[Any], b: Sequence[Any]) -> bool:
    return len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))


def _same_values(mapping: Mapping[Any, Any], values: Sequence[Any]) -> bool:
    wanted = iter(values)
    expected = next(wanted, None)
    for value in mapping.values():
        if expected is not None and value is expected:
            expected = next(wanted, None)
    return expected is None
