"""Following coordinates through the steps of an optimizer, so that the last step of each can be explained."""

from __future__ import annotations

import operator
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..engine import Update
from ..errors import ExplanationError
from ..reports import StepReport
from ..step import Coordinate, Stepper, alone
from .data import Explanation
from .working import Surroundings, work_out

__all__ = ["Followable", "Following"]

Place = tuple[Hashable, tuple[int, ...]]  # what the host knows the parameter by, and which element of it


@dataclass
class Seen:
    """One coordinate in a step that was taken: numbers, and no tensor."""

    name: str
    step: int
    t: int
    update: Update
    dtype: str
    arithmetic: np.dtype[Any]
    gradient: float
    before: dict[str, float]
    after: dict[str, float]
    around: Surroundings


class Following:
    """What is known of the coordinates that are followed. Between steps that is some numbers of each: those of the last step."""

    def __init__(self) -> None:
        self.last: dict[Place, Seen | str] = {}  # or why the last step did not move it
        self._under_way: list[tuple[Place, Coordinate, dict[str, float]]] = []
        self._steps = 0

    def missed(self, why: str) -> None:
        """The last step moved nothing."""
        self._under_way = []
        self.last = dict.fromkeys(self.last, why)

    def before(self, stepper: Stepper) -> None:
        """Look at what a step is about to change."""
        self.missed(f"step {stepper.steps + 1} did not come to its end")
        self._steps = stepper.steps
        for place in self.last:
            self._look(stepper, place)

    def _look(self, stepper: Stepper, place: Place) -> None:
        """Look at one coordinate. Never raises: a step is worth more than its explanation."""
        try:
            found = stepper.look(*place)
            if isinstance(found, str):
                self.last[place] = found
            else:
                self._under_way.append((place, found, found.read()))
        except Exception as error:
            self.last[place] = f"it could not be looked at in step {stepper.steps + 1} ({type(error).__name__}: {error})"

    def after(self, stepper: Stepper, report: StepReport, scale: float) -> None:
        """Look at what a step has made of them."""
        under_way, self._under_way = self._under_way, []
        if report.skipped:
            return
        if stepper.steps == self._steps:
            self.missed("it only made the states, since learning rates and gradients were all 0")
            return
        around = Surroundings(stepper.clip_norm, report.grad_norm, report.clip_factor, stepper.clip_value, scale)
        for place, found, before in under_way:
            self._keep(place, found, report.step, before, around)

    def _keep(self, place: Place, found: Coordinate, step: int, before: dict[str, float], around: Surroundings) -> None:
        """Keep what is needed of one coordinate. Never raises: the step has been taken."""
        update = Update(found.update.traced, found.update.coupling, values=dict(found.update.values))
        try:
            after = found.read()
        except Exception as error:
            self.last[place] = f"it could not be looked at after step {step} ({type(error).__name__}: {error})"
            return
        self.last[place] = Seen(found.name, step, found.t, update, found.dtype, found.arithmetic, found.gradient, before, after, around)


class Followable:
    """What every host of tensors offers to those who follow coordinates."""

    _following: Following | None  # None: nothing is followed
    _stepper: Any

    def _followed_as(self, what: str, name: Any) -> tuple[Hashable, str, tuple[int, ...]]:
        """What the host knows a parameter by, its name, and its shape; refuses by name what there is not."""
        raise NotImplementedError

    @alone
    def follow(self, name: Any, index: Any = ()) -> None:
        """From the next step on, keep what goes into the step of one coordinate, so that `explain` can tell how it moved.

        That is a few numbers, those of the last step; the run is the same run, to the bit. Where nothing is followed nothing is paid.

        Args:
            name: The parameter: its name, or the tensor itself.
            index: Which element of it: a number for each axis, counted from the end where it is negative; of one axis, the number alone; of
                a complex tensor one more, 0 for the real part and 1 for the imaginary one.

        Raises:
            ParameterError: There is no such parameter, or it is none whose elements can be read one by one (of torch's tensors, those
                that are spread over processes).
            ExplanationError: It has no element of this index.
        """
        place, _ = self._place("follow", name, index)
        following = self._following if self._following is not None else Following()
        following.last.setdefault(place, "")
        self._follow(following)

    @alone
    def unfollow(self, name: Any = None, index: Any = None) -> None:
        """Follow no more: one coordinate, all of one parameter (without ``index``), or all (without ``name``).

        Raises:
            ParameterError, ExplanationError: As for `follow`.
        """
        following = self._following
        key = None if name is None else self._followed_as("unfollow", name)[0]
        place = None if name is None or index is None else self._place("unfollow", name, index)[0]
        for each in [*following.last] if following is not None else ():
            if key is None or each == place or (place is None and each[0] == key):
                del following.last[each]  # type: ignore[union-attr]
        self._follow(following if following is not None and following.last else None)

    @alone
    def explain(self, name: Any, index: Any = ()) -> Explanation:
        """How the last step moved one coordinate: every intermediate value with its formula, read off the rule, and its numbers.

        The lines go from the gradient as given through loss scale, clipping and weight decay to the states, the direction and the
        parameter. Their numbers are those of the step, in its arithmetic: what comes out is what is stored, to the bit.

        Args:
            name, index: As for `follow`, which must have been called before the step.

        Returns:
            Plain data: ``print`` shows the text, ``render("latex")`` and ``render("json")`` the rest, ``values`` has the numbers by name.

        Raises:
            ExplanationError: The coordinate was not followed, or the last step did not move it, and why: it was skipped or refused, or
                there was no gradient.
            ParameterError: There is no such parameter.

        >>> import numpy as np, openadam
        >>> opt = openadam.AdamW({"w": np.array([1.0, -2.0], np.float32)}, lr=0.5, beta1=0.5, beta2=0.75, eps=0)
        >>> opt.follow("w", 1)
        >>> _ = opt.step({"w": np.array([2.0, -4.0], np.float32)})
        >>> print(opt.explain("w", 1))
        w[1] in step 1: adam, float32; lr=0.5, beta1=0.5, beta2=0.75, eps=0, weight_decay=0.01
        <BLANKLINE>
        step 1
          g  = gradient
          g1 = -4
          m  = beta1*m[t-1] + (1 - beta1)*g
          m1 = 0.5*0 + (1 - 0.5)*(-4) = -2
          v  = beta2*v[t-1] + (1 - beta2)*g**2
          v1 = 0.75*0 + (1 - 0.75)*(-4)**2 = 4
          m_hat  = m/(1 - beta1**t)
          m_hat1 = -2/(1 - 0.5**1) = -4
          v_hat  = v/(1 - beta2**t)
          v_hat1 = 4/(1 - 0.75**1) = 16
          direction  = m_hat/(sqrt(v_hat) + eps)
          direction1 = -4/(sqrt(16) + 0) = -1
          p  = p[t-1] - lr*weight_decay*p[t-1] - lr*direction
          p1 = -2 - 0.5*0.01*(-2) - 0.5*(-1) = -1.49
        <BLANKLINE>
        w[1]: -2 -> -1.49, a change of 0.5099999905
        >>> opt.explain("w", 1).values["direction"]
        -1.0
        """
        place, called = self._place("explain", name, index)
        seen = self._following.last.get(place) if self._following is not None else None
        if seen is None:
            (_, indices), told = place, repr(name) if isinstance(name, str) else "p"
            raise ExplanationError(f"{called} is not followed: call opt.follow({told}, {indices!r}) before the step that is to be explained")
        if isinstance(seen, str):
            raise ExplanationError(
                f"the last step did not move {called}: {seen}" if seen else f"no step was taken since {called} is followed: take one, then explain it"
            )
        return _explained(seen, place[1])

    def _place(self, what: str, name: Any, index: Any) -> tuple[Place, str]:
        """A coordinate as it is kept, and what it is called."""
        key, named, shape = self._followed_as(what, name)
        place = _index(named, index, shape)
        return (key, place), f"element {place} of parameter {named!r}"

    def _follow(self, following: Following | None) -> None:
        self._following = following
        if self._stepper is not None:
            self._stepper.followed = following

    def _refused(self, error: Exception) -> None:
        """A step was refused."""
        if self._following is not None:
            self._following.missed(f"it was refused, {error}")

    def _idle(self) -> None:
        """There was nothing to step."""
        if self._following is not None:
            self._following.missed("no parameter had a gradient")


def _index(name: str, index: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """An index with a number from 0 for each axis."""
    given = index if isinstance(index, tuple) else (index,)
    what = f"parameter {name!r} of shape {shape}"
    if len(given) != len(shape) or any(isinstance(each, (bool, np.bool_)) or not hasattr(each, "__index__") for each in given):
        numbers = {0: "nothing, ()", 1: "one whole number"}.get(len(shape), f"{len(shape)} whole numbers, one for each axis")
        raise ExplanationError(f"an element of {what} is named by {numbers}; not by {index!r:.80}")
    found = tuple(map(operator.index, given))
    for axis, (place, size) in enumerate(zip(found, shape, strict=True)):
        if not -size <= place < size:
            raise ExplanationError(f"{what} has no element {found}: axis {axis} has {size}")
    return tuple(place % size for place, size in zip(found, shape, strict=True))


def _explained(seen: Seen, index: tuple[int, ...]) -> Explanation:
    """The lines of a step over one element."""
    traced, values, around = seen.update.traced, seen.update.values, seen.around

    def element(value: float) -> Any:
        return np.array([value], seen.arithmetic)

    states = {name: element(seen.before[name]) if name in traced.element_states else seen.before[name] for name in traced.states}
    settings = {name: values[name] for name in dict.fromkeys(["lr", *traced.hyperparameters])}
    more = {
        "weight_decay": values["weight_decay"], "maximize": bool(values["maximize"]), "clip_norm": around.clip_norm, "clip_value": around.clip_value,
        "loss_scale": 1 / around.scale if around.scale != 1.0 else None,
    }  # fmt: skip
    return Explanation(
        parameter=seen.name, index=index, step=seen.step, rule=traced.name, coupling=seen.update.coupling,
        settings=settings | {name: value for name, value in more.items() if value not in (None, False, 0.0)},
        dtype=seen.dtype, arithmetic=str(seen.arithmetic), before=seen.before["p"], after=seen.after["p"],
        states={name: seen.after[name] for name in traced.states},
        steps=(work_out(seen.update, seen.t, element(seen.gradient), element(seen.before["p"]), states, around, seen.after),),
    )  # fmt: skip
