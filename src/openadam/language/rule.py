"""A rule: a function traced into graphs of expressions, one for each choice of its options, and checked where it is defined."""

from __future__ import annotations

import difflib
import inspect
import itertools
import linecache
import math
import numbers
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, overload

from ..errors import RuleError
from ..hyperparameters import HYPERPARAMETERS
from .expression import Expression, Namespace, as_expression, symbol
from .graph import postorder

__all__ = ["Rule", "Step", "Traced", "check_elements", "depends_on_tensors", "rule"]

TAKEN_NAMES = frozenset({"g", "gradient", "p", "step", "t"})  # of whatever a rule returns
TAKEN_HYPERPARAMETERS = frozenset({
    "gradient_scale", "clip_value", "clip_norm", "coupled_decay", "decoupled_decay", "maximize",
    "params", "rule", "coupling", "no_decay", "nonfinite", "max_skips", "threads", "engine", "isa", "self", "wrong",
})  # fmt: skip
ALWAYS_THERE = ("lr", "weight_decay")  # hyperparameters of every optimizer, whatever its rule reads


class Step:
    """What a rule returns: the direction, the new states, and any intermediate values worth seeing, by name.

    >>> g, s, h = symbol("tensor", "g"), Namespace("state"), Namespace("scalar")
    >>> m = h.beta1 * s.m + (1 - h.beta1) * g
    >>> Step(m, m=m).named
    {'m': beta1*m[t-1] + (1 - beta1)*g}
    """

    def __init__(self, direction: Any, **named: Any) -> None:
        self.direction = as_expression(direction)
        self.named = {name: as_expression(value) for name, value in named.items()}
        for name, value in [("the direction", self.direction), *self.named.items()]:
            if value.is_condition:
                raise RuleError(f"{name} is a comparison; use where(condition, a, b)")


@dataclass(frozen=True, eq=False)
class Traced:
    """A rule, traced with one choice of its options: the graph as its author wrote it."""

    name: str
    direction: Expression
    named: Mapping[str, Expression]
    states: tuple[str, ...]  # in the order in which the rule returns them
    hyperparameters: tuple[str, ...]  # without t
    element_states: frozenset[str]
    initial: Mapping[str, float | str]  # a number, or the name of the hyperparameter that holds it

    @property
    def scalar_states(self) -> tuple[str, ...]:
        return tuple(name for name in self.states if name not in self.element_states)


def depends_on_tensors(root: Expression, element_states: frozenset[str]) -> bool:
    """Whether a value differs from element to element; otherwise it is a scalar of the step."""
    for expression in postorder(root):
        if expression.operation == "symbol":
            space, name = expression.value
            if space == "tensor" or (space == "state" and name in element_states):
                return True
    return False


@dataclass(frozen=True, eq=False)
class Rule:
    """An update rule: a function of the gradient ``g``, the states ``s`` and the hyperparameters ``h``.

    Options are keyword-only parameters of the function whose choices the decorator lists; the first is the default.
    """

    function: Callable[..., Step]
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    initial: Mapping[str, float | str] = field(default_factory=dict)
    nonnegative: tuple[str, ...] = ()
    at_most: Mapping[str, float] = field(default_factory=dict)
    defaults: Mapping[str, float] = field(default_factory=dict)
    compile: bool = False  # as soon as an optimizer uses it
    ranges: Mapping[str, str | tuple[float, float]] = field(default_factory=dict)
    _traces: dict[tuple[str, ...], Traced] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "__doc__", self.function.__doc__)
        try:
            _check_options(self.function, self.options)
        except RuleError as error:
            raise _located(error, self.function) from None
        object.__setattr__(self, "options", {option: tuple(choices) for option, choices in self.options.items()})
        traces = self.traces()  # so that a fault shows at definition, in every variant
        try:
            self._check_declarations(traces)
        except RuleError as error:
            raise _located(error, self.function) from None
        object.__setattr__(self, "nonnegative", tuple(self.nonnegative))

    def _check_declarations(self, traces: Sequence[Traced]) -> None:
        """Refuse what the decorator says of names that the rule does not have, and values that cannot be."""
        states = list(dict.fromkeys(name for traced in traces for name in traced.states))
        known = list(dict.fromkeys([*ALWAYS_THERE, *(name for traced in traces for name in traced.hyperparameters)]))
        for name in self.options:
            if name in known or name in TAKEN_HYPERPARAMETERS:
                what = "a hyperparameter of this name" if name in known else "a setting of this name"
                raise RuleError(f"an option cannot be named `{name}`: every optimizer of this rule has {what}; choose another")
        given: Any = self.nonnegative
        if isinstance(given, str):
            raise RuleError(f"nonnegative={self.nonnegative!r} is one string; write nonnegative=({self.nonnegative!r},)")
        elements = {name for traced in traces for name in traced.element_states}
        bounds: Mapping[Any, Any] = self.at_most
        for name, bound in bounds.items():
            if name in elements:
                raise RuleError(f"`at_most` is for scalar states, and {name!r} is one of elements")
            if isinstance(bound, bool) or not isinstance(bound, numbers.Real) or not math.isfinite(bound):
                raise RuleError(f"`at_most` bounds {name!r} by {bound!r:.80}; give a finite number")
        for what, names in (("`initial`", self.initial), ("`nonnegative`", self.nonnegative), ("`at_most`", self.at_most)):
            for name in names:
                if name not in states:
                    raise RuleError(f"{what} names the state {name!r}, which the rule does not read; {_nearest(name, states, 'states')}")
        initial: Mapping[str, Any] = self.initial
        for name, start in initial.items():
            if isinstance(start, str):
                if start in TAKEN_HYPERPARAMETERS or start in TAKEN_NAMES or start in states or start in self.options:
                    raise RuleError(f"`initial` lets {name!r} start at the hyperparameter {start!r}: that name is taken")
                known.append(start)
            elif isinstance(start, bool) or not isinstance(start, numbers.Real) or not math.isfinite(start):
                raise RuleError(f"`initial` lets {name!r} start at {start!r:.80}; give a finite number, or the name of a hyperparameter")
            elif name in self.nonnegative and start < 0:
                raise RuleError(f"`initial` lets {name!r} start at {start!r}, and `nonnegative` says that it is never below 0")
        given_ranges: Mapping[str, Any] = self.ranges
        for name, kind in given_ranges.items():
            if name not in known or name in ALWAYS_THERE:
                raise RuleError(f"`ranges` has {name!r}, which is no hyperparameter of the rule; {_nearest(name, known, 'hyperparameters')}")
            numbers_given = isinstance(kind, (tuple, list)) and len(kind) == 2 and all(isinstance(each, numbers.Real) for each in kind)
            if not (kind in HYPERPARAMETERS if isinstance(kind, str) else numbers_given and kind[0] < kind[1]):
                raise RuleError(f"`ranges` has {name!r} as {kind!r:.80}; give two numbers, the least and the greatest, or a name as 'beta1'")
        for name, value in self.defaults.items():
            if name in self.options:
                raise RuleError(f"{name}={value!r}: the default of an option is the first of its choices, {self.options[name]!r}; put it there")
            if name not in known:
                raise RuleError(
                    f"the default {name}={value!r} is of no hyperparameter that the rule reads; {_nearest(name, known, 'hyperparameters')}"
                )

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def words(self) -> dict[str, tuple[float, float]]:
        """The states that are declared to keep to a range, with that."""
        low, high = dict.fromkeys(self.nonnegative, 0.0), self.at_most
        return {name: (low.get(name, -math.inf), high.get(name, math.inf)) for name in (*low, *high)}

    def __reduce__(self) -> tuple[Any, ...]:
        # A decorated rule is found again under its own name, as a function is; one that is not there can only be carried by value.
        place = (self.function.__module__, self.function.__qualname__)
        try:
            if _find_rule(*place) is self:
                return _find_rule, place
        except (ImportError, AttributeError):
            pass
        if not _is_carried_by_value():
            advice = "define it at the top of a module and do not define it anew, or pickle with cloudpickle"
            raise pickle.PicklingError(f"rule {self.name!r} is not what its module {place[0]!r} has under {place[1]!r}; {advice}")
        return Rule, (
            self.function,
            self.options,
            self.initial,
            self.nonnegative,
            self.at_most,
            self.defaults,
            self.compile,
            self.ranges,
        )  # a function is carried by cloudpickle only

    def __deepcopy__(self, memo: object) -> Rule:
        return self

    @property
    def hyperparameters(self) -> list[str]:
        """The hyperparameters of an optimizer of this rule, whatever its options: what it reads, where its states start, and those of all."""
        traces = self.traces()
        starts = [start for traced in traces for start in traced.initial.values() if isinstance(start, str)]
        return list(dict.fromkeys([*ALWAYS_THERE, *(name for traced in traces for name in traced.hyperparameters), *starts]))

    def traces(self) -> list[Traced]:
        """The graph of every variant."""
        return [self.trace(**choice) for choice in self.variants()]

    def variants(self) -> Iterator[dict[str, str]]:
        """Every combination of the options."""
        for choice in itertools.product(*self.options.values()):
            yield dict(zip(self.options, choice, strict=True))

    def variant_name(self, **choice: str) -> str:
        """The rule's name and the options that are not the default: ``amsgrad_corrected``."""
        parts = [self.name]
        every = [value for choices in self.options.values() for value in choices]
        for option, choices in self.options.items():
            value = choice.get(option, choices[0])
            if value != choices[0]:
                parts.append(value if every.count(value) == 1 else f"{option}_{value}")
        return "_".join(parts)

    def trace(self, **choice: str) -> Traced:
        """The graph of the rule with these options; raises RuleError or, for a wrong option, ValueError."""
        for option, value in choice.items():
            if option not in self.options:
                raise TypeError(f"{self.name} has no option {option!r}; it has {', '.join(self.options) or 'none'}")
            if value not in self.options[option]:
                raise ValueError(f"{option}={value!r} is none of {', '.join(map(repr, self.options[option]))}")
        key = tuple(choice.get(option, choices[0]) for option, choices in self.options.items())
        if key not in self._traces:
            self._traces[key] = self._trace(dict(zip(self.options, key, strict=True)))
        return self._traces[key]

    def _trace(self, choice: dict[str, str]) -> Traced:
        states, hyper = Namespace("state"), Namespace("scalar")
        try:
            step = self.function(symbol("tensor", "g"), states, hyper, **choice)
            if not isinstance(step, Step):
                raise RuleError("a rule must return Step(direction, state=…)")
            read = states._symbols
            taken = {*TAKEN_NAMES, *TAKEN_HYPERPARAMETERS, *ALWAYS_THERE, *hyper._symbols}
            for name in (*read, *step.named):
                if name in taken:
                    raise RuleError(f"nothing that a rule returns can be named `{name}`: that name is taken")
            for name in read:
                if name not in step.named:
                    raise RuleError(f"the rule reads the state `{name}` but does not return it; add {name}=… to Step")
            element_states: frozenset[str] = frozenset()
            while True:  # a state is a scalar unless something that touches a tensor flows into it
                grown = frozenset(name for name in read if depends_on_tensors(step.named[name], element_states))
                if grown == element_states:
                    break
                element_states = grown
            for name in hyper._symbols:
                if name in TAKEN_HYPERPARAMETERS or name in TAKEN_NAMES - {"t"}:
                    raise RuleError(f"a hyperparameter cannot be named `{name}`: that name is taken by what surrounds a rule")
            check_elements([step.direction, *step.named.values()], element_states)
        except Exception as error:
            raise _located(error, self.function) from error
        return Traced(
            name=self.variant_name(**choice),
            direction=step.direction,
            named=step.named,
            states=tuple(name for name in step.named if name in read),
            hyperparameters=tuple(name for name in hyper._symbols if name != "t"),
            element_states=element_states,
            initial={name: self.initial.get(name, 0.0) for name in read},
        )


def check_elements(roots: Iterable[Expression], element_states: frozenset[str]) -> None:
    """Refuse what exists for scalars only where it is applied to tensors."""
    for expression in postorder(*roots):
        if expression.operation in ("exp", "log") and depends_on_tensors(expression, element_states):
            raise _LateError(expression, f"{expression.operation} of a tensor is not in the language (its bits differ between libraries)")
        if expression.operation == "power" and depends_on_tensors(expression, element_states):
            exponent = expression.arguments[1]
            allowed = exponent.operation == "constant" and (exponent.value == 0.5 or exponent.value in range(1, 17))
            if not allowed:
                raise _LateError(expression, f"a tensor can be raised to 0.5 or to a whole number from 1 to 16, not to {exponent!r}")


class _LateError(RuleError):
    """What is wrong with an expression could only be told once the whole rule was traced."""

    def __init__(self, expression: Expression, reason: str) -> None:
        super().__init__(reason)
        self.line = expression.line


def _located(error: Exception, function: Callable[..., Any]) -> RuleError:
    """The same complaint, naming the line of the rule it comes from."""
    code = function.__code__
    file, line = code.co_filename, code.co_firstlineno
    traceback = error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == file:
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    if isinstance(error, _LateError) and error.line is not None:
        file, line = error.line
    source = linecache.getline(file, line).strip()
    reason = str(error) if isinstance(error, RuleError) else f"{type(error).__name__}: {error}"
    return RuleError(f"rule {function.__name__!r}, {file}:{line}: `{source}`: {reason}")


def _nearest(name: str, known: Sequence[str], what: str) -> str:
    """What someone may have meant."""
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]!r}?" if near else f"it has the {what} {', '.join(known) or 'none'}"


def _check_options(function: Callable[..., Any], options: Any) -> None:
    """Refuse options that are not choices among names, and a function that does not take them."""
    if not isinstance(options, Mapping):
        raise RuleError(f"options={options!r:.80} is not a mapping; write options={{'form': ('classical', 'nesterov')}}")
    for option, choices in options.items():
        if not isinstance(option, str) or not option.isidentifier():
            raise RuleError(f"the option {option!r} is not a name that a function can take")
        listed = [] if isinstance(choices, str) or not isinstance(choices, Iterable) else [*choices]
        if not listed or not all(isinstance(choice, str) for choice in listed) or len(set(listed)) < len(listed):
            raise RuleError(f"the option {option!r} has the choices {choices!r:.80}; give a tuple of different strings, the default first")
    parameters = inspect.signature(function).parameters.values()
    for parameter in parameters:
        choices = options.get(parameter.name, ())
        if choices and parameter.default not in (parameter.empty, choices[0]):
            default = f"the function's default {parameter.name}={parameter.default!r} is not the first of the choices {tuple(choices)!r}"
            raise RuleError(f"{default}, which is the default; leave it out, or put it first")
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty]
    keywords = {p.name for p in parameters if p.kind == p.KEYWORD_ONLY}
    if len(positional) != 3 and not any(p.kind == p.VAR_POSITIONAL for p in parameters):
        raise RuleError(f"a rule is a function of (g, s, h): the gradient, the states, the hyperparameters; this one takes ({', '.join(positional)})")
    for option in sorted(keywords ^ set(options)) if not any(p.kind == p.VAR_KEYWORD for p in parameters) else ():
        where = "is among `options` and no keyword-only parameter of the function" if option in options else "is not among `options`"
        raise RuleError(f"{option!r} {where}; write def rule(g, s, h, *, {option}) and options={{{option!r}: (…)}}")


def _is_carried_by_value() -> bool:
    """Whether it is cloudpickle that asks, which carries functions by value."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and ".cloudpickle" not in f".{frame.f_globals.get('__name__', '')}":
        frame = frame.f_back
    return frame is not None


def _find_rule(module: str, qualified_name: str) -> Any:
    import functools
    import importlib

    return functools.reduce(getattr, qualified_name.split("."), importlib.import_module(module))


@overload
def rule(function: Callable[..., Step], /) -> Rule: ...


@overload
def rule(
    *,
    initial: Mapping[str, float | str] | None = None,
    nonnegative: tuple[str, ...] = (),
    at_most: Mapping[str, float] | None = None,
    options: Mapping[str, tuple[str, ...]] | None = None,
    ranges: Mapping[str, str | tuple[float, float]] | None = None,
    compile: bool = False,
    **defaults: float,
) -> Callable[[Callable[..., Step]], Rule]: ...


def rule(
    function: Callable[..., Step] | None = None,
    /,
    *,
    initial: Mapping[str, float | str] | None = None,
    nonnegative: tuple[str, ...] = (),
    at_most: Mapping[str, float] | None = None,
    options: Mapping[str, tuple[str, ...]] | None = None,
    ranges: Mapping[str, str | tuple[float, float]] | None = None,
    compile: bool = False,
    **defaults: float,
) -> Any:
    """Turn a function of ``(g, s, h)`` into an update rule.

    Args:
        function: Returns ``Step(direction, name=…)``; ``g`` is the gradient, ``s.name`` a state, ``h.name`` a
            hyperparameter, ``h.t`` the number of the step, from 1.
        initial: First values of states that do not start at 0: a number, or the name of a hyperparameter.
        nonnegative: States that are never below 0; a checkpoint in which one is, is refused.
        at_most: Scalar states that are never above a number; a checkpoint in which one is, is refused.
        options: Keyword-only parameters of the function and the choices each has, the default first.
        ranges: Hyperparameters and what they may be: from a number to another, both included, as ``{"mix": (0, 1)}``, or as one that is known, as
            ``{"beta3": "beta1"}``. Others may be any finite number, unless their name is known.
        compile: Compile it when an optimizer first uses it; see `openadam.compile`.
        **defaults: Defaults of the hyperparameters; one without a default must be given to the optimizer.

    Raises:
        RuleError: The function uses what the language lacks; the message names the line.

    >>> import numpy as np, openadam
    >>> @openadam.rule(lr=0.1, beta1=0.9)
    ... def signum(g, s, h):
    ...     m = h.beta1 * s.m + (1 - h.beta1) * g
    ...     return openadam.Step(openadam.sign(m), m=m)
    >>> w = np.array([1.0, -1.0])
    >>> _ = openadam.Optimizer(w, rule=signum).step(np.array([3.0, 0.0]))
    >>> w
    array([ 0.9, -1. ])
    """

    def decorate(function: Callable[..., Step]) -> Rule:
        if not inspect.isfunction(function):
            raise TypeError(f"@rule decorates a function, not {function!r}")
        for what, given in (("initial", initial), ("at_most", at_most), ("ranges", ranges)):
            if given is not None and not isinstance(given, Mapping):
                raise _located(RuleError(f"{what}={given!r:.80} is not a mapping; write {what}={{'m': 0.0}}"), function)
        choices, starts, most = options if options is not None else {}, dict(initial or {}), dict(at_most or {})
        return Rule(function, choices, starts, nonnegative, most, dict(defaults), compile, dict(ranges or {}))

    return decorate if function is None else decorate(function)
