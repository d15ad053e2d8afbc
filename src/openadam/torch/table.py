"""The rows of a torch optimizer in one step: read, checked, measured, stepped, committed.

torch's own ``param_groups`` and ``state`` are the truth at every step. Rows that are plain are read, checked and stepped by the native
part; the others are looked at one by one (`Row.reach`) and then join them, or run on torch operations where the native loop cannot
reach them. Between steps nothing of a tensor is kept.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .. import engine as engines
from ..errors import AliasError, GradientError, NonFiniteGradientError, NonFiniteStateError, OpenAdamError, ParameterError
from ..language.intervals import Interval
from ..measures import Measure, places
from ..memory import Piece, first_meeting, first_shared
from ..no_decay import predicate
from ..ranges import Foresight
from ..rules import FAMILY
from ..step import Coordinate, Stepper
from . import graph
from .members import Member
from .memory import FRAMEWORK, arithmetic_of, as_array, dtype_name, has_numbers, is_memory, know_type, operations, piece, real
from .rows import Reached, Row
from .shards import Shards, is_distributed, local_part

__all__ = ["SkippedByScaler", "TensorStepper"]

Array = npt.NDArray[Any]
Groups = Sequence[MutableMapping[str, Any]]


class SkippedByScaler(Exception):  # noqa: N818 - not an error
    """A scaler has found infinities, here or in another process."""


class TensorStepper(Stepper):
    """Steps over the tensors of a torch optimizer."""

    def __init__(
        self, member: Member, native: engines.NativeEngine | None, *, how: str, no_decay: Any, sharded: bool,
        clip_norm: float | None, clip_value: float | None, nonfinite: str, max_skips: int | None, counted: tuple[int, int, int],
    ) -> None:  # fmt: skip
        super().__init__(member.rules[0], clip_norm=clip_norm, clip_value=clip_value, nonfinite=nonfinite, max_skips=max_skips)
        self.member = member
        self._native = native if FRAMEWORK is not None else None
        self._how, self._spared, self._sharded = how, predicate(no_decay), sharded
        self._bound = math.inf if clip_value is None else clip_value
        engine = self._native or engines.ReferenceEngine()
        self.table = engine.table(self._bound)
        self.table.taken, self.table.skipped, in_a_row = counted
        self.latest_skips = [self.table.taken, in_a_row]
        self.engine_name = "native" if self._native is not None else "graph"
        self.rows: list[Row] = []
        self.groups: Groups = ()
        self.state: MutableMapping[Any, Any] = {}
        self._parameters: list[Any] = []  # of all groups, in a step that has asked for one
        self.shards = Shards([])
        self.skips = False  # whether a scaler wants this step skipped
        self.is_new = False  # whether there are states to come, and none yet, with any who take this step
        self._reached: dict[int, Reached] = {}  # rows of this step that are not plain
        self._given: dict[int, Reached] = {}  # those among them that run on torch operations
        self._computed: dict[int, tuple[list[Tensor], list[float]]] = {}  # what will become of some of these
        self._tallies: Array | None = None  # of all rows, where some run on torch operations
        self._observed: Array | None = None  # and what was seen inside them
        self._seen_inside: dict[int, Array] = {}  # inside those that do
        self._seen: Any = None  # what was last found to share no memory, as numbers
        if self.rule not in FAMILY:  # whose steps are known to stay finite
            self.foresight = Foresight(self.rule)
        self._foreseen_of: Any = None  # the states whose contents are known, and their versions

    # --- groups ----------------------------------------------------------------------------------------------------

    def tell(self, groups: Groups, settings: Sequence[Mapping[str, Any]]) -> None:
        """The groups' settings, as numbers under the family's names, and the rules that their flags stand for."""
        for g, (group, values) in enumerate(zip(groups, settings, strict=True)):
            traced, coupling = self.member.traced(group), self.member.coupling(group)
            for index in (2 * g, 2 * g + 1):
                known = index < len(self.updates)
                if not known:
                    self.updates.append(self._update(traced, coupling))
                elif self.updates[index].traced is not traced or self.updates[index].coupling != coupling:
                    known = False
                    self.updates[index] = self._update(traced, coupling)
                    for row in self.rows:
                        row.update = self.updates[row.class_index] if row.class_index < len(self.updates) else row.update
                update = self.updates[index]
                update.values = {**values, "weight_decay": 0.0} if index % 2 else dict(values)
                if self._native is not None:
                    update.tell(self.table, index)
                    if not known:
                        self._tell_names(index, update)

    def _tell_names(self, index: int, update: engines.Update) -> None:
        """What torch calls the states of a class that has a kernel."""
        public, program = self.member.states, update.program
        states, memory = ([public.get(name, name) for name in names] if update.kernel else [] for names in (program.states, program.memory))
        self.table.set_names(index, "step" if self.member.counts else None, states, memory)

    def _update(self, traced: Any, coupling: str) -> engines.Update:
        program = engines.compiled(traced)[0]
        return engines.Update(traced, coupling, (self._native.mover(program) or 0) if self._native is not None else 0)

    def _regroup(self) -> None:
        """Rows for the parameters that the groups hold now."""
        rows: list[Row] = []
        seen: set[int] = set()
        parameters = []
        for g, group in enumerate(self.groups):
            params = list(group["params"])
            names = group.get("param_names")
            if names is not None and len(names) != len(params):
                raise ParameterError(f"group {g} has {len(params)} parameters and {len(names)} names in 'param_names'; change both")
            for place, p in enumerate(params):
                row = Row(p, self.member, g, place, len(rows))
                row.repeated = id(p) in seen  # torch warns of it; a step moves it once
                seen.add(id(p))
                self._classify(row, p)
                rows.append(row)
                parameters.append(p)
        self.shards = Shards(parameters, plain_too=self._sharded, names=[row.name(self.groups) for row in rows])
        self.rows = rows
        if self._native is not None:
            self.table.resize(len(rows))
            for i, row in enumerate(rows):
                self.table.set_row(i, row.class_index, row.identity, row.repeated)
        self._seen = None

    def _classify(self, row: Row, p: Any) -> None:
        """Whether weight decay leaves a row alone, and what moves it."""
        row.excluded = self._spared(row.name(self.groups), p)
        row.update = self.updates[row.class_index]

    def parameter(self, i: int) -> Any:
        """The parameter of row i, in a step."""
        if not self._parameters:
            self._parameters = [p for group in self.groups for p in group["params"]]
        return self._parameters[i]

    # --- reading ---------------------------------------------------------------------------------------------------

    def read(self, groups: Groups, state: MutableMapping[Any, Any], threads: int) -> None:
        """Ask every tensor where it lies; refuse by name what cannot be used. Nothing that a step changes is changed."""
        self.groups, self.state = groups, state
        self.is_new = False
        others = self._read(threads)
        if others is None:
            self._regroup()
            others = self._read(threads)
            assert others is not None
        if self.member.sparse == "required" and self._native is not None:  # a row that was plain has a dense gradient
            others = sorted({*others, *filter(self.table.is_active, range(self.count))})
        if others:
            self._look(others)
        doubtful, suspects = self.table.settle() if self._native is not None else (False, [])
        if doubtful or suspects or self._given:
            self._refuse_shared(doubtful, suspects)
        if self.foresight is not None:
            versions = self._versions()
            plain = self.table.versions if self._native is not None else 0
            if versions is None or not plain or (versions, plain) != self._foreseen_of:
                self.foresight.forget()
            self._foreseen_of = (versions, plain)

    def _read(self, threads: int) -> list[int] | None:
        if self._native is not None:
            return engines.native().read_tensors(FRAMEWORK, self.table, self.groups, self.state, threads)  # type: ignore[no-any-return]
        parameters = [p for group in self.groups for p in group["params"]]
        places = [(g, id(p)) for g, group in enumerate(self.groups) for p in group["params"]]
        if [(row.group, row.identity) for row in self.rows] != places:
            return None
        return [i for i, (row, p) in enumerate(zip(self.rows, parameters, strict=True)) if not row.repeated and p.grad is not None]

    @operations()
    def _look(self, others: Sequence[int]) -> None:
        """Look at rows that are not plain, one by one."""
        parts: dict[int, Tensor] = {}
        # The others take part in this, so it is done first, and once: afterwards any process may refuse what it finds.
        for i, p in ((i, self.parameter(i)) for i in others if self.shards):
            g = p.grad
            if is_distributed(p) and is_distributed(g) and g.placements != p.placements and g.device_mesh == p.device_mesh:
                parts[i] = local_part(g, p)
        for i in others:
            row, p = self.rows[i], self.parameter(i)
            if not row.has_states(p, self.state):  # perhaps a new parameter, where an old one was
                self._classify(row, p)
                if self._native is not None:
                    self.table.set_row(i, row.class_index, row.identity, row.repeated)
            with self._asking(i):
                reached = self._reached[i] = row.reach(p, self.groups, self.state, parts.get(i))
                natively = reached.natively() if self._native is not None else None
            if natively is None or not self._place(i, reached, *natively):
                self._given[i] = reached
            elif is_memory(p):
                know_type(type(p))

    @contextlib.contextmanager
    def _asking(self, i: int) -> Iterator[None]:
        """While a tensor is asked that may be of any kind: what it cannot answer is said by name."""
        try:
            yield
        except OpenAdamError:
            raise
        except Exception as error:
            p = self.parameter(i)
            kinds = f"({type(p).__name__}) or its gradient ({type(p.grad).__name__})"
            why = f"does not answer what a step must ask ({type(error).__name__}: {str(error)[:200]})"
            raise GradientError(f"parameter {self.name(i)!r} {kinds} {why}; nothing was changed: give plain tensors, or use torch.optim") from error

    def _place(self, i: int, reached: Reached, p: Tensor, g: Tensor, states: list[Tensor]) -> bool:
        count = reached.count
        for tensor in (count, *reached.numbers):
            if tensor is not None and not is_memory(tensor):
                return False
        numbers = [tensor.as_subclass(Tensor) for tensor in reached.numbers]
        counter = None if count is None else count.as_subclass(Tensor)
        layout = reached.rows.layout() if reached.rows is not None else []
        return engines.native().place_tensors(FRAMEWORK, self.table, i, p, g, states, counter, reached.steps, numbers, layout)  # type: ignore[no-any-return]

    def _refuse_shared(self, doubtful: bool, suspects: Iterable[int]) -> None:
        """Look exactly at who shares memory; what was found in order is not looked at again while all numbers stay the same."""
        pieces: list[tuple[str, int, str, Piece]] = []  # device, row, what, where
        for i, reached in self._given.items():
            for what, tensor in zip((*self.rows[i].keys, "p", "g"), (*reached.targets, reached.gradient), strict=True):
                if is_memory(tensor) and has_numbers(tensor) and tensor.numel():
                    device, where = piece(tensor)
                    pieces.append((device, i, what, where))
        numbers = (pieces, self.table.version if self._native is not None else 0)
        if not doubtful and not suspects and numbers == self._seen:
            return
        every = list(pieces)
        for i, which, address, size, shape, strides in self.table.pieces() if self._native is not None else ():
            what = ("p", "g")[which] if which < 2 else self.rows[i].keys[which - 2]
            every.append(("cpu", i, what, Piece(address, size, tuple(shape), tuple(strides))))
        for device in dict.fromkeys(device for device, *_ in every):
            here = [(i, what, where) for there, i, what, where in every if there == device]
            written = [each for each in here if each[1] != "g"]
            shared = first_shared([where for _, _, where in written])
            if shared is not None:
                raise self._shared(*(written[k] for k in shared))
            gradients = [each for each in here if each[1] == "g"]
            found = first_meeting([where for _, _, where in gradients], [where for _, _, where in written])
            if found is not None:
                i, (j, what, _) = gradients[found[0]][0], written[found[1]]
                kind = "parameter" if what == "p" else "state of parameter"
                both = f"the gradient of parameter {self.name(i)!r} shares memory with the {kind} {self.name(j)!r}"
                raise AliasError(f"{both}, which the step writes; give it memory of its own")
        if self._native is not None:
            self.table.trust()
        self._seen = numbers

    def _shared(self, a: tuple[int, str, Piece], b: tuple[int, str, Piece]) -> AliasError:
        (i, what, where), (j, other, _) = a, b
        if a == b:
            p = self.parameter(i)
            shape = f"shape {tuple(p.shape)} and strides {p.stride() if what == 'p' else where.strides}"
            named = f"parameter {self.name(i)!r}" if what == "p" else f"the state {what!r} of parameter {self.name(i)!r}"
            return AliasError(f"{named} of {shape} overlaps itself: elements share memory; copy it first")
        if what == other == "p":
            return AliasError(f"parameters {self.name(i)!r} and {self.name(j)!r} share memory; each step would move it twice")
        names = [f"parameter {self.name(k)!r}" if w == "p" else f"the state {w!r} of parameter {self.name(k)!r}" for k, w in ((i, what), (j, other))]
        return AliasError(f"{names[0]} and {names[1]} share memory, which the step would write twice; give each memory of its own")

    def forget(self) -> None:
        """Tensors are the caller's; keep none alive."""
        if self._reached and self._foreseen_of is not None:  # these were written to by operations of torch
            self._foreseen_of = (self._versions(), self._foreseen_of[1])
        self._reached, self._given, self._computed, self._tallies, self._observed = {}, {}, {}, None, None
        self.groups, self.state, self._parameters = (), {}, []
        if self._native is not None:
            self.table.forget()

    # --- what a stepper asks ---------------------------------------------------------------------------------------

    @property
    def count(self) -> int:
        return len(self.rows)

    @property
    def active_count(self) -> int:
        """Rows that take part in this step."""
        return int(self.table.active_count) + len(self._given)

    def is_active(self, i: int) -> bool:
        return i in self._given or (self._native is not None and bool(self.table.is_active(i)))

    def name(self, i: int) -> str:
        return self.rows[i].name(self.groups)

    def shape(self, i: int) -> tuple[int, ...]:
        return tuple(self.parameter(i).shape)

    def place(self, i: int) -> int:
        return self.rows[i].class_index

    def dtype(self, i: int) -> np.dtype[Any]:
        return np.dtype(dtype_name(arithmetic_of(self.parameter(i).dtype)))

    def gradient(self, i: int) -> Array:
        reached = self._reached.get(i)
        return as_array(self.parameter(i).grad if reached is None else reached.gradient)

    def element(self, i: int, index: int) -> int:
        reached = self._reached.get(i)
        return index if reached is None or reached.rows is None else reached.rows.element(index)

    @operations()
    def preview(self, i: int, factor: float) -> tuple[Array, Iterable[tuple[str, Array, Array]]]:
        row = self.rows[i]
        reached = self._reached.get(i) or row.reach(self.parameter(i), self.groups, self.state, None)
        values, memory = graph.stepped(reached, factor, self._bound, self._how)
        found = zip((*row.update.program.states, "p"), reached.targets, values, strict=True)
        outcomes = [
            (name, as_array(reached.touched(before)).reshape(-1), as_array(after.to(before.dtype)).reshape(-1)) for name, before, after in found
        ]
        for name, was, will_be in zip(row.update.program.memory, reached.memory, memory, strict=True):
            outcomes.append((name, np.array([was]), np.array([will_be])))
        return as_array(reached.gradient).reshape(-1), outcomes

    def public(self, name: str) -> str:
        return self.member.states.get(name, name)

    def numbers(self, i: int) -> Sequence[float]:
        row = self.rows[i]
        if i not in self._reached and not row.update.program.memory:
            return [self.table.t(i) - 1]
        with operations():
            reached = self._reached.get(i) or row.reach(self.parameter(i), self.groups, self.state, None)
        return [reached.steps, *reached.memory]

    @operations()
    def contents(self, i: int) -> Mapping[str, Interval] | None:
        row, p = self.rows[i], self.parameter(i)
        if p.dtype is torch.float16 or not has_numbers(p):  # whose range is less than that of the arithmetic
            return None
        own, found = self.state.get(p) or {}, {}
        for name, key in (("p", None), *zip(row.update.program.states, row.keys, strict=True)):
            tensor = p if key is None else own.get(key)
            if tensor is None:
                first = row.first_value(name)
                found[name] = first, first
                continue
            try:
                local = real(local_part(tensor.detach()))
                if local.numel():
                    low, high = torch.aminmax(local)
                    found[name] = float(low), float(high)
            except (RuntimeError, NotImplementedError, TypeError):  # a kind of tensor that does not tell: the step is tried out
                return None
        return found

    def _versions(self) -> Any:
        """The states of rows that are not plain, and how often torch's operations have written to them; None if that is not counted."""
        try:
            held = [self.state.get(self.parameter(i)) or {} for i in self._reached]
            return [(id(each), each._version) for own in held for each in own.values() if isinstance(each, Tensor) and each.dim()]
        except (RuntimeError, AttributeError):
            return None

    @operations()
    def look(self, key: int, index: tuple[int, ...]) -> Coordinate | str:
        i = next((i for i, row in enumerate(self.rows) if row.identity == key and not row.repeated), None)
        if i is None:
            return f"it was not among the parameters in step {self.steps + 1}"
        if not self.is_active(i):
            return f"parameter {self.name(i)!r} had no gradient in step {self.steps + 1}"
        row, p = self.rows[i], self.parameter(i)
        reached = self._reached.get(i) or row.reach(p, self.groups, self.state, None)
        within = reached.within(index)
        if within is None:
            return f"the gradient of parameter {self.name(i)!r} was for other rows in step {self.steps + 1}"
        # Without a counter torch's SGD knows its first step by its velocity alone; people count on.
        t = reached.steps + 1 if self.member.counts or reached.first else max(self.steps, len(row.keys)) + 1
        names = (*row.update.program.states, "p")

        def read() -> dict[str, float]:
            numbers = {name: real(target)[index].item() for name, target in zip(names, reached.targets, strict=True)}
            return numbers | {name: float(tensor) for name, tensor in zip(row.update.program.memory, reached.numbers, strict=True)}

        return Coordinate(self.name(i), t, row.update, dtype_name(p.dtype), self.dtype(i), reached.gradient[within].item(), read)

    def measure(self, threads: int) -> tuple[float, float]:
        total = super().measure(threads)
        return self._merged([0]) if self._given else total

    def prepare(self, factor: float, measures: list[int], inside: tuple[Measure, ...]) -> NonFiniteStateError | None:
        """Compute what subclasses make of their rows: their operations are their own, and may fail, when nothing has been written yet."""
        if not self._given:
            return None
        self._seen_inside = {}
        for i, reached in self._given.items():
            if inside:
                with operations(), self._asking(i):
                    self._seen_inside[i] = graph.seen_inside(reached, factor, self._bound, inside)
            if not all(map(is_memory, (*reached.targets, reached.gradient))):
                with operations(), self._asking(i):
                    self._computed[i] = graph.stepped(reached, factor, self._bound, self._how)
        return None

    @property
    def grows(self) -> bool:
        return any(update.values.get("momentum", 0.0) >= 1 for update in self.updates)

    def update(self, factor: float, measures: list[int], threads: int, inside: tuple[Measure, ...]) -> tuple[float, float]:
        if not self._given:
            return self._update_table(factor, measures, threads, inside) if inside else self.table.update(factor, measures, threads)
        before = self.table.taken
        parameter = any(measure > 0 for measure in measures)
        tallies = {}
        with operations():
            for i, reached in self._given.items():
                p = reached.touched(reached.parameter).clone() if parameter else None
                graph.commit(reached, *(self._computed.pop(i, None) or graph.stepped(reached, factor, self._bound, self._how)))
                tallies[i] = graph.measured(reached, measures, p)
        self._update_table(factor, measures, threads, inside)
        self._observed = np.full((self.count, places(inside)[-1]), np.nan)
        if self._native is not None and inside:
            self._observed[:] = self.table.observed()
        for i, row in self._seen_inside.items():
            self._observed[i] = row
        latest = max(reached.steps + 1 for reached in self._given.values()) if self.member.counts else 0
        self.table.taken = max(before + 1, self.table.taken, latest)
        return self._merged(measures, tallies)

    def _merged(self, measures: Sequence[int], seen: Mapping[int, Sequence[float]] | None = None) -> tuple[float, float]:
        """The tallies of all rows, in their order, those of the torch operations among them."""
        self._tallies = np.zeros((self.count, len(measures)))
        if self._native is not None:
            self._tallies[:] = self.table.tallies()
        with operations():
            for i, reached in self._given.items():
                with self._asking(i):
                    self._tallies[i] = graph.measured(reached, measures) if seen is None else seen[i]
        squares = self._tallies[:, 0] if measures else np.zeros(0)
        with np.errstate(all="ignore"):
            return (float(np.add.accumulate(squares)[-1]), float(squares.max())) if squares.size else (0.0, 0.0)

    def _update_table(self, factor: float, measures: list[int], threads: int, inside: tuple[Measure, ...]) -> tuple[float, float]:
        if self._native is None:
            return self.table.update(factor, measures, threads)  # type: ignore[no-any-return]
        return self.table.update(factor, measures, threads, places(inside)[-1])  # type: ignore[no-any-return]

    def observed(self) -> Array:
        return super().observed() if self._observed is None else self._observed

    def tallies(self) -> Array:
        return super().tallies() if self._tallies is None else self._tallies

    # --- the commit ------------------------------------------------------------------------------------------------

    def register(self) -> None:
        """Tell torch's autograd that the parameters change, and show new states to torch."""
        if self._native is not None and self.table.active_count:
            try:
                engines.native().tell_active(self.table, torch._C._increment_version)
            except RuntimeError:
                for i, row in enumerate(self.rows):
                    row.refuse_inference(self.parameter(i), self.groups)
                raise
        for i, reached in self._reached.items():
            if not reached.new:
                continue
            row, p = self.rows[i], self.parameter(i)
            if p not in self.state:
                self.state[p] = {}
            self.state[p].update((key, reached.new[key]) for key in ("step", *row.number_keys, *row.keys) if key in reached.new)

    # --- several processes -----------------------------------------------------------------------------------------

    def begins(self) -> bool:
        """Whether this step makes the first states of all."""
        makes = any(reached.first for reached in self._reached.values())
        return makes and not any(row.has_states(self.parameter(i), self.state) for i, row in enumerate(self.rows))

    def everywhere(self, total: float, largest: float) -> tuple[float, float]:
        if not self.shards:
            return self.norm(total), largest
        squares = self.tallies()[:, 0]
        with np.errstate(all="ignore"):
            norms = {key: self.norm(float(np.add.accumulate(squares[which])[-1]) if which else 0.0, which) for key, which in self.shards.sets.items()}
        makes = any(reached.first for reached in self._reached.values())
        flags = (False, self.skips, makes, any(row.has_states(self.parameter(i), self.state) for i, row in enumerate(self.rows)))
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
