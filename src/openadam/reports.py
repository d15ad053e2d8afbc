"""What a step tells: its report, the measures of each tensor in it, and what these tensors are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .measures import MEASURES, Measure, columns, places
from .readings import Numbers, Worst, worst_of
from .theory import Settings, number

__all__ = ["Measured", "StepReport", "Subjects"]

Array = npt.NDArray[Any]

ALWAYS_SEEN = columns(())  # of every rule


class Subjects(NamedTuple):
    """Whose measures a step took: of each tensor its shape and the place of its class, of each class the rule, the coupling and the settings."""

    shapes: Sequence[tuple[int, ...]]
    places: Sequence[int]
    classes: Sequence[tuple[str, str, Mapping[str, Any]]]

    @property
    def key(self) -> Any:
        """What `known` follows from."""
        return self.shapes, self.places, [Settings.of(*each)._values for each in self.classes]

    def known(self) -> dict[str, Any]:
        """What `Numbers` are told of them."""
        h = Settings.together([Settings.of(*each) for each in self.classes], self.places)
        elements = np.array([math.prod(shape) for shape in self.shapes], float)
        return {"h": h, "elements": elements, "is_matrix": np.array([len(shape) >= 2 for shape in self.shapes], bool)}

    @property
    def rates(self) -> Any:
        """Their learning rates."""
        return np.array([number(values.get("lr")) for _, _, values in self.classes])[list(self.places)]


class Measured(Mapping[str, dict[str, float]]):
    """What a step saw: a dict of numbers for each tensor, made when it is asked for, from one table.

    ``names`` are the tensors, ``columns`` the measures and ``table`` what was seen, tensors x measures; NaN where a rule lacks what a measure
    looks at, which the dicts leave out. ``histograms`` holds those of measures by octaves: by name, tensors x octaves, NaN likewise. ``step`` is the
    step, ``about`` what the tensors are and how their groups are set.
    """

    def __init__(
        self, names: Sequence[str] = (), columns: Sequence[str] = (), table: Array | None = None, histograms: Mapping[str, Array] | None = None,
        step: int = 0, about: Subjects | None = None,
    ) -> None:  # fmt: skip
        self.names, self.columns = tuple(names), tuple(columns)
        self.step, self.about = step, about or Subjects([()] * len(self.names), [0] * len(self.names), [("", "", {})])
        self.table = np.zeros((len(self.names), len(self.columns))) if table is None else table
        self.histograms = dict(histograms or {})
        self._places = {name: place for place, name in enumerate(self.names)}

    @classmethod
    def of(cls, names: Sequence[str], exact: Array, observed: Array, inside: tuple[Measure, ...], step: int, about: Subjects) -> Measured:
        """From what was seen of each tensor, and inside its step, as rows."""
        one, parts = _parts(inside)
        histograms = {name: observed[:, part] for name, part in parts.items()}
        return cls(names, columns(inside), np.hstack([exact, observed[:, one] if parts else observed]), histograms, step, about)

    def __getitem__(self, name: str) -> dict[str, float]:
        row = self.table[self._places[name]].tolist()
        return {column: value for k, (column, value) in enumerate(zip(self.columns, row, strict=True)) if value == value or k <= len(MEASURES)}

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return repr(dict(self))

    def numbers(self, known: Mapping[str, Any] | None = None, **past: Any) -> Numbers:
        """The measures as readings take them.

        Args:
            known: What ``about.known()`` gave, if it was asked before.
            past: What else of `Numbers` is known, from steps before.
        """
        columns = dict(zip(self.columns, np.ascontiguousarray(self.table.T), strict=True))

        def nonfinite(name: str) -> Any:  # NaN of a measure inside is one that the rule has nothing for
            return ~np.isfinite(columns[name]) if name in ALWAYS_SEEN else np.isinf(columns[name])

        known = self.about.known() if known is None else known
        return Numbers(columns.__getitem__, first=self.step, last=self.step, nonfinite=nonfinite, **{**known, **past})

    @cached_property
    def worst(self) -> dict[str, Worst]:
        """Of each disease of which this step alone has a sign the worst tensor; see `StepReport.alarms`."""
        return worst_of(self.names, self.numbers(lr=self.about.rates)) if self.names else {}

    def total(self, measure: str) -> float:
        """The sum of a measure over the tensors."""
        return math.fsum(self.table[:, self.columns.index(measure)].tolist())


class StepReport(NamedTuple):
    """What a trainer wants to log of one step.

    >>> import numpy as np, openadam
    >>> report = openadam.Adam(np.zeros(2)).step(np.array([3.0, 4.0]))
    >>> report.step, report.grad_norm, report.skipped
    (1, 5.0, False)
    """

    step: int
    """Number of steps taken so far, this one included unless it was skipped."""
    grad_norm: float
    """Global Euclidean norm of the gradients before clipping, of a loss scale freed; NaN where a scaler skipped the step, 0 where there were none."""
    clip_factor: float
    """What the gradients were multiplied by to keep to ``clip_norm``; 1.0 if nothing was clipped."""
    skipped: bool
    """Whether the step was skipped because of a gradient that is not finite: by ``nonfinite="skip"``, or by a scaler's word."""
    measures: Measured | None = None
    """Per tensor, what `step(..., measure=True)` saw on the way; see `openadam.measures`."""
    why: str | None = None
    """Why the step was skipped."""
    loss: float | None = None
    """The loss, if it was told or a closure returned it."""

    @property
    def alarms(self) -> dict[str, Worst]:
        """Of each disease of which this step alone has a sign, by the doctor's number, the worst tensor: its name, the reading, its value, what it
        would be without the disease, and the threshold. Empty where nothing was measured. Computed when it is asked for.

        One step is little: noise, too, disagrees with its past now and then. What lasts is for the alarms of a recording, and the doctor.

        >>> import numpy as np, openadam
        >>> opt = openadam.Adam({"w": np.ones(100), "b": np.ones(100)})
        >>> report = opt.step({"w": np.full(100, 1e-10), "b": np.full(100, 1e-9)}, measure=True)
        >>> report.alarms["D20"]
        Worst(tensor='w', reading='share of sqrt(v) below eps', value=1.0, null=0.0, threshold=0.5)
        """
        return self.measures.worst if self.measures is not None else {}

    @property
    def param_norm(self) -> float | None:
        """Global Euclidean norm of the parameters before the step, where it was measured."""
        return self._norm("param_sum_squares")

    @property
    def update_norm(self) -> float | None:
        """Global Euclidean norm of their change, where it was measured."""
        return self._norm("update_sum_squares")

    def _norm(self, name: str) -> float | None:
        return math.sqrt(self.measures.total(name)) if self.measures else None


@lru_cache(maxsize=64)
def _parts(inside: tuple[Measure, ...]) -> tuple[list[int], dict[str, slice]]:
    """Where the measures of one number stand among what was seen, and where each histogram does."""
    begin = dict(zip(inside, places(inside), strict=False))
    one = [place for measure, place in begin.items() if measure.width == 1]
    return one, {measure.name: slice(place, place + measure.width) for measure, place in begin.items() if measure.width > 1}
