"""The rows of an optimizer over arrays in one step: their gradients read, checked, measured, stepped, committed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import engine as engines
from ..errors import AliasError, HyperparameterError, NonFiniteStateError
from ..language.intervals import Interval
from ..language.rule import Rule, Traced
from ..measures import Measure, places
from ..memory import Piece, first_meeting
from ..ranges import Foresight
from ..row_sparse import Rows
from ..rules import FAMILY
from ..step import MAX_STEP, Coordinate, Stepper
from .parameters import as_gradient, as_named
from .rows import Row, refuse_shared

__all__ = ["ArrayStepper"]

Array = npt.NDArray[Any]


class ArrayStepper(Stepper):
    """Steps over the arrays of an optimizer."""

    def __init__(
        self,
        engine: engines.Engine,
        rule: Rule,
        rows: list[Row],
        state_names: Mapping[str, str],
        *,
        clip_norm: float | None,
        clip_value: float | None,
        nonfinite: str,
        max_skips: int | None,
    ) -> None:
        super().__init__(rule, clip_norm=clip_norm, clip_value=clip_value, nonfinite=nonfinite, max_skips=max_skips)
        # Not the optimizer itself, which would then live until the garbage collector comes.
        self._engine, self._rows, self._state_names = engine, rows, state_names
        self.table = engine.table(math.inf if clip_value is None else clip_value)
        if engine.name == "interpreter" and rule not in FAMILY:  # whose steps are known to stay finite
            self.foresight = Foresight(rule)
        self._gradients: list[Any] = []  # of the step under way, as they were given
        self._looked_at: list[int] = []  # rows that were not plain in it

    def rebuild(self, traced: Traced, coupling: str, groups: int) -> None:
        """Take in the rows as they are now. Rows of one class (a group, decayed or not) share their hyperparameters."""
        while len(self.updates) < 2 * groups:
            self.updates.append(engines.Update(traced, coupling, self._engine.kernel(engines.compiled(traced)[0]) or 0))
        for i, row in enumerate(self._rows):
            row.update = self.updates[self.place(i)]
        if self.foresight is not None:
            self.foresight.forget()
        if not self._engine.is_native:
            self.table.rows = self._rows
            return
        for index, update in enumerate(self.updates):
            update.introduce(self.table, index)
        self.table.resize(len(self._rows))
        for i, row in enumerate(self._rows):
            self.table.set_row(i, self.place(i), row.array)
            addresses = [state.__array_interface__["data"][0] for state in row.states]
            numbers = row.numbers.__array_interface__["data"][0]
            engines.native().set_memory(self.table, i, row.view.size, engines.DTYPES[row.view.dtype], addresses, numbers, row.numbers.size - 1)

    def tell(self, group: int, values: dict[str, Any]) -> None:
        """The hyperparameters of a group."""
        for index, decayed in ((2 * group, True), (2 * group + 1, False)):
            self.updates[index].values = values if decayed else {**values, "weight_decay": 0.0}
            if self._engine.is_native:
                self.updates[index].tell(self.table, index)

    def read(self, gradients: list[Any]) -> None:
        """Take in the gradients; refuse by name what cannot be used. Nothing that a step changes is changed."""
        self._gradients = gradients
        if self.table.taken >= MAX_STEP:
            raise HyperparameterError(f"{MAX_STEP} steps have been taken, more than can be counted exactly; start a new optimizer")
        native = self._engine.is_native
        others: Iterable[int] = engines.native().read_arrays(self.table, gradients) if native else range(len(self._rows))
        active = self._looked_at = [i for i in others if gradients[i] is not None]
        for i in active:
            row = self._rows[i]
            row.refuse_unusable()
            if row.steps >= MAX_STEP:
                raise HyperparameterError(f"parameter {row.name!r} has taken {MAX_STEP} steps, more than can be counted exactly")
            given = gradients[i]
            if isinstance(given, Rows):
                row.named, row.gradient = as_named(row, given)
            else:
                row.gradient = as_gradient(row, given)
            if native:
                address = row.gradient.__array_interface__["data"][0]
                engines.native().place_array(self.table, i, row.address, address, row.layout(row.gradient), row.gradient)
        if not native:
            self.table.active = active
        doubtful, suspects = self.table.settle() if native else (True, active)
        if doubtful or suspects:
            self._refuse_alias(suspects)
            if native:
                self.table.trust()

    def _refuse_alias(self, suspects: Iterable[int]) -> None:
        refuse_shared(self._rows)
        suspects = list(suspects)
        written = [
            (row.name, what, array)
            for row in self._rows
            for what, array in (("parameter", row.view), *(("state of parameter", x) for x in row.states))
        ]
        pieces = [Piece.of_array(array) for _, _, array in written]
        found = first_meeting([Piece.of_array(self._canonical(i)) for i in suspects], pieces)
        if found is not None:
            name, (other, what, _) = self._rows[suspects[found[0]]].name, written[found[1]]
            raise AliasError(f"the gradient of parameter {name!r} shares memory with the {what} {other!r}, which the step writes; pass a copy")

    def forget(self) -> None:
        """Gradients are the caller's; keep none alive."""
        self._gradients = []
        for i in self._looked_at:
            self._rows[i].gradient = self._rows[i].named = None
        self.table.forget()

    def _canonical(self, i: int) -> Array:
        row = self._rows[i]
        return as_gradient(row, self._gradients[i]) if row.gradient is None else row.gradient

    # --- what a stepper asks ---------------------------------------------------------------------------------------

    @property
    def count(self) -> int:
        return len(self._rows)

    def name(self, i: int) -> str:
        return self._rows[i].name

    def shape(self, i: int) -> tuple[int, ...]:
        return self._rows[i].shape

    def place(self, i: int) -> int:
        return 2 * self._rows[i].group + (not self._rows[i].decayed)

    def gradient(self, i: int) -> Array:
        row = self._rows[i]
        return self._canonical(i) if row.named is not None else row.as_given(self._canonical(i))

    def element(self, i: int, index: int) -> int:
        row = self._rows[i]
        return index if row.named is None else int(row.named[index // row.width]) * row.width + index % row.width

    def dtype(self, i: int) -> np.dtype[Any]:
        return self._rows[i].view.dtype

    def look(self, key: str, index: tuple[int, ...]) -> Coordinate | str:
        i, row = next((i, row) for i, row in enumerate(self._rows) if row.name == key)
        update, numbers = row.update, row.numbers
        assert update is not None
        if not self.is_active(i):
            return f"parameter {row.name!r} had no gradient in step {self.steps + 1}"
        within: tuple[int, ...] = index
        if row.named is not None:
            place = int(np.searchsorted(row.named, index[0]))
            if place == len(row.named) or row.named[place] != index[0]:
                return f"the gradient of parameter {row.name!r} was for other rows than {index[0]} in step {self.steps + 1}"
            within = (place, *index[1:])
        arrays = dict(zip((*update.program.states, "p"), map(row.as_given, (*row.states, row.view)), strict=True))

        def read() -> dict[str, float]:
            return {name: float(array[index]) for name, array in arrays.items()} | dict(zip(update.program.memory, numbers[1:].tolist(), strict=True))

        return Coordinate(row.name, row.steps + 1, update, str(row.view.dtype), row.view.dtype, float(self.gradient(i)[within]), read)

    @property
    def grows(self) -> bool:
        return self._engine.is_native and any(update.values["momentum"] >= 1 for update in self.updates if "momentum" in update.values)

    def update(self, factor: float, measures: list[int], threads: int, inside: tuple[Measure, ...]) -> tuple[float, float]:
        if not self._engine.is_native:
            return self.table.update(factor, measures, threads, inside)  # type: ignore[no-any-return]
        return self.table.update(factor, measures, threads, places(inside)[-1])  # type: ignore[no-any-return]

    def prepare(self, factor: float, measures: list[int], inside: tuple[Measure, ...]) -> NonFiniteStateError | None:
        """On the reference what is computed is looked at before it is written."""
        bad = None
        if not self._engine.is_native:
            for i, name, before, after in self.table.compute(factor, measures, inside):
                broken = self.broken_word(i, name, after)
                if broken is not None:
                    raise broken
                if bad is None and self.nonfinite != "propagate":
                    bad = self.unbounded(i, self._canonical(i).reshape(-1), name, before, after)
        return bad

    def public(self, name: str) -> str:
        return self._state_names.get(name, name)

    def numbers(self, i: int) -> Sequence[float]:
        return self._rows[i].numbers.tolist()  # type: ignore[no-any-return]

    def contents(self, i: int) -> Mapping[str, Interval] | None:
        row = self._rows[i]
        arrays = {"p": row.view, **dict(zip(self.updates[0].program.states, row.states, strict=True))}
        return {name: (float(array.min()), float(array.max())) for name, array in arrays.items() if array.size}

    def preview(self, i: int, factor: float) -> tuple[Array, Iterable[tuple[str, Array, Array]]]:
        row, g = self._rows[i], self._canonical(i).reshape(-1)
        assert row.update is not None
        t, *memory = row.numbers.tolist()
        once = row.update.once(t + 1, factor, math.inf if self.clip_value is None else self.clip_value, memory)
        before = [row.touched(array) for array in (*row.states, row.view)]
        with np.errstate(all="ignore"):
            outputs = engines.outcome(row.update.program, g, before[-1], before[:-1], once)
        found = [(name, array, outputs[name]) for name, array in zip((*row.update.program.states, "p"), before, strict=True)]
        for k, (name, number) in enumerate(zip(row.update.program.memory, once.memory, strict=True)):
            found.append((name, row.numbers[k + 1 : k + 2], np.array([number])))
        return g, found
