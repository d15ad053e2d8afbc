"""Recording an optimizer that was made without it: ours from inside; torch's own from outside, whose tensors are copied before an observed step
and looked at after it, in NumPy.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import engine as engines
from ..errors import HyperparameterError
from ..measures import INSIDE, MEASURES, Measure
from ..reports import Measured, StepReport, Subjects
from ..step import as_loss
from .host import Host
from .members import MEMBERS, Member
from .memory import as_array, has_numbers
from .options import as_recorded, chosen_parameters

__all__ = ["Observation", "observe"]


def observe(optimizer: torch.optim.Optimizer, record: Any, *, name: str | None = None) -> Observation:
    """Record what the steps of an optimizer see, as ``record=`` does where one of ours is made.

    Of an optimizer of ``torch.optim`` that is slower by far: before each observed step the tensors are copied, and what the step did is
    computed once more in NumPy. The optimizer itself is left alone: the run is the same run.

    Args:
        optimizer: Of a class of `openadam.torch`, of the class of ``torch.optim`` that such a one replaces, or of a subclass.
        record: A path, or an `openadam.record.Recorder`.
        name: What it is called in the recording; default its class.

    Returns:
        A handle: set its ``loss`` before a step to have it recorded, ``mark("…")`` notes an event, ``close()`` ends it.

    Raises:
        HyperparameterError: The optimizer is of no class that is known here.
        RecordError, RecordFormatError: There can be no recording at this path.

    >>> import os, tempfile, torch
    >>> from openadam import record
    >>> from openadam.torch import observe
    >>> p = torch.nn.Parameter(torch.ones(3))
    >>> optimizer = torch.optim.Adam([p], lr=0.1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "run.oadam")
    ...     with record.Recorder(path) as recorder:
    ...         handle = observe(optimizer, recorder)
    ...         p.grad = torch.tensor([1.0, -2.0, 0.0])
    ...         optimizer.step()
    ...     seen = record.load(path).tracks["Adam"]
    >>> seen.measure("0", "direction_max_abs")["max"].round(4).tolist(), seen.measure("0", "zero_grad")["max"].tolist()
    ([1.0], [1.0])
    """
    told = record if name is None else (record, name)
    if isinstance(optimizer, Host):
        return Observation(optimizer, told)
    members = {member.name: member for member in MEMBERS}
    kind = next((each.__name__ for each in type(optimizer).__mro__ if each.__module__.startswith("torch.optim") and each.__name__ != "Optimizer"), "")
    member = members.get("Adam" if kind == "AdamW" else kind)
    if member is None:
        raise HyperparameterError(f"observe: {type(optimizer).__name__} is none of torch.optim's {', '.join(members)}, AdamW")
    return FromOutside(optimizer, member, kind == "AdamW", told)


class Observation:
    """The handle of `observe`: its ``loss``, set before a step, is that step's where nobody else tells."""

    def __init__(self, optimizer: Any, record: Any) -> None:
        self._optimizer = weakref.ref(optimizer)
        optimizer.record(record)
        self._observer = optimizer._observer

    @property
    def loss(self) -> Any:
        """The loss of the step to come, if it was set."""
        return getattr(self._optimizer(), "_told_loss", None)

    @loss.setter
    def loss(self, value: Any) -> None:
        optimizer = self._optimizer()
        if optimizer is not None:
            optimizer._told_loss = value

    @property
    def steps(self) -> int:
        """Steps that were taken."""
        return getattr(self._optimizer(), "steps_taken", 0)

    def mark(self, text: str) -> None:
        """Note an event."""
        self._observer.mark(self.steps, text)

    def failed(self, error: BaseException) -> None:
        """The training failed: the last steps are kept in full."""
        self._observer.failed(self.steps + 1, error)

    def close(self) -> None:
        """Record no more; what was recorded is on disk then."""
        optimizer: Any = self._optimizer()
        if optimizer is not None:
            optimizer.record(None)
        self._end()

    def _end(self) -> None:
        self._observer.track.recorder.flush()
        self._observer.track.close()


class FromOutside(Observation):
    """The handle of an optimizer that knows nothing of it."""

    loss: Any = None

    def __init__(self, optimizer: torch.optim.Optimizer, member: Member, decoupled: bool, record: Any) -> None:
        from ..record.observer import observer

        self._member, self._decoupled = member, decoupled
        self._steps = 0
        self._before: list[tuple[str, Any, dict[str, Any], list[float]]] = []
        self._inside: tuple[Measure, ...] = INSIDE
        about: dict[str, Any] = {"optimizer": type(optimizer).__name__, "host": "torch, observed from outside", "torch": torch.__version__}
        about["coupling"] = "decoupled" if decoupled else "coupled"
        about["rule"] = member.traced(optimizer.param_groups[0]).name
        about["groups"], tensors = as_recorded(optimizer.param_groups)
        self._observer = observer(optimizer, record, about, tensors)
        self._hooks: list[Any] = [optimizer.register_step_pre_hook(self._look), optimizer.register_step_post_hook(self._tell)]

    @property
    def steps(self) -> int:
        return self._steps

    def close(self) -> None:
        """Leave the optimizer alone."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._end()

    def _look(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self._before = []
        try:
            wanted = self._observer.wants(self._steps + 1)
            if wanted:
                self._inside = INSIDE if wanted is True else INSIDE + wanted
                for group, name, p in chosen_parameters(None, optimizer.param_groups):
                    if has_numbers(p):  # its gradient may yet be computed, by a closure
                        self._before.append((name, p, *self._taken(group, optimizer.state.get(p) or {}, p)))
        except Exception as error:
            self._give_up(error)

    def _taken(self, group: Mapping[str, Any], state: Mapping[str, Any], p: Any) -> tuple[dict[str, Any], list[float]]:
        """Copies of a parameter's tensors by the rule's names, with its group and step; and its scalar states."""
        traced, wide = self._member.traced(group), np.float64 if p.dtype in (torch.float64, torch.complex128) else np.float32
        first = dict(self._member.first_values(group, moments=True, steps=True))

        def number(key: str) -> float:
            value = state.get(key, first.get(key, 0.0))
            return float(value.item() if isinstance(value, Tensor) else value)

        arrays: dict[str, Any] = {"p": as_array(p).reshape(-1).astype(wide)}
        for name in (each for each in traced.states if each in traced.element_states):
            key = self._member.states.get(name, name)
            value = state.get(key)
            arrays[name] = (
                as_array(value).reshape(-1).astype(wide) if isinstance(value, Tensor) else np.full(arrays["p"].size, first.get(key, 0.0), wide)
            )
        memory = [number(self._member.states.get(name, name)) for name in traced.scalar_states]
        return {"arrays": arrays, "group": group, "t": number("step") + 1 if self._member.counts else self._steps + 1.0}, memory

    def _tell(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self._steps += 1
        try:
            loss, self.loss = as_loss(self.loss) if self.loss is not None else None, None
            stepped = [each for each in self._before if each[1].grad is not None and not each[1].grad.is_sparse]
            with np.errstate(all="ignore"):
                rows = [self._row(p, taken, memory) for _, p, taken, memory in stepped]
            seen, norm = None, math.nan
            if rows:
                exact, observed = (np.array(list(each)) for each in zip(*rows, strict=True))
                names = [name for name, *_ in stepped]
                seen = Measured.of(names, exact, observed, self._inside, self._steps, self._about(stepped))
                norm = math.sqrt(seen.total("grad_sum_squares"))
            report = StepReport(self._steps, norm, 1.0, False, seen, None, loss)
            self._observer.saw(report, [float(group["lr"]) for group in optimizer.param_groups])
        except Exception as error:
            self._give_up(error)
        self._before = []

    def _about(self, stepped: Sequence[Any]) -> Subjects:
        """What the tensors of a step are."""
        updates = [self._update(taken["group"]) for _, _, taken, _ in stepped]
        classes = [(each.traced.name, each.coupling, each.values) for each in updates]
        return Subjects([tuple(p.shape) for _, p, *_ in stepped], range(len(stepped)), classes)

    def _update(self, group: Mapping[str, Any]) -> engines.Update:
        """What moves the tensors of a group."""
        coupling = "decoupled" if self._decoupled or group.get("decoupled_weight_decay") else "coupled"
        return engines.Update(self._member.traced(group), coupling, values=self._member.settings(0, group))

    def _row(self, p: Any, taken: Mapping[str, Any], memory: list[float]) -> tuple[list[float], Any]:
        arrays, group = taken["arrays"], taken["group"]
        arrays = {"g": as_array(p.grad).reshape(-1).astype(arrays["p"].dtype), **arrays}
        after = {"g": arrays["g"], "p": arrays["p"], "p_after": as_array(p).reshape(-1).astype(arrays["p"].dtype)}
        exact = engines.tally(range(len(MEASURES)), after)
        nonfinite = float(np.count_nonzero(~np.isfinite(arrays["g"])))
        return [*exact, nonfinite], self._update(group).inside(self._inside, taken["t"], 1.0, math.inf, memory, arrays)

    def _give_up(self, error: Exception) -> None:
        self._observer.give_up(error)
        self.close()
