"""The optimizer over arrays: parameters and their groups, the step, and its state by name."""

from __future__ import annotations

import inspect
import operator
import threading
import warnings
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from .. import engine as engines
from ..errors import (
    CheckpointMismatchError,
    GradientError,
    HyperparameterError,
    HyperparameterWarning,
    ParameterError,
)
from ..hyperparameters import checked, checked_or_schedule, limit, suggest
from ..language.rule import Rule
from ..step import StepReport, alone, check_dtype
from . import states
from .parameters import Group, describe, excluded, first_singles, flatten, read_group, read_no_decay, read_structure, structured
from .rows import Row, allocate, read_rows, refuse_shared
from .table import ArrayStepper

__all__ = ["Optimizer", "StepReport"]

Array = npt.NDArray[Any]


ELSEWHERE = {
    "amsgrad": "openadam.AMSGrad(…)",
    "decoupled_weight_decay": "coupling='decoupled', or the class whose name ends in W",
    "momentum": "openadam.Momentum(…)",
    "nesterov": "openadam.Momentum(…, form='nesterov')",
}
"""What some keywords of others are here."""


class Optimizer:
    """An optimizer of the family over NumPy arrays, updated in place.

    Args:
        params: What to optimize: one array, a sequence of arrays, a mapping of names to arrays, or a sequence of groups
            (mappings with ``params`` and their own hyperparameters). Arrays are writeable float32 or float64 of any
            shape and strides.
        rule: The update rule; members of the family bring their own.
        coupling: ``coupled`` weight decay joins the gradient (L2), ``decoupled`` shrinks the parameter by
            ``lr * weight_decay``; members bring their own.
        no_decay: What weight decay leaves alone: names, arrays, or a predicate of (name, array).
        clip_norm: Largest global norm of all gradients together; None for no limit.
        clip_value: Largest magnitude of each element, after ``clip_norm``; None for no limit.
        nonfinite: What a NaN or infinite gradient does: ``raise`` (default) refuses the step, ``skip`` skips and counts it,
            ``propagate`` lets it through as torch does.
        maximize: Ascend instead of descend.
        threads: Most threads of a step; default ``OPENADAM_NUM_THREADS``, else the processors this process may use.
        engine: ``native`` or ``reference``; default ``OPENADAM_ENGINE``, else native where there is a kernel.
        isa: Instruction set of the native kernels, for tests; default ``OPENADAM_ISA``, else the best that runs here.
        **hyperparameters: Those of the rule, plus ``lr`` and ``weight_decay``: numbers, or functions of the step number
            t (from 1); and the options of the rule by name.

    Raises:
        HyperparameterError: A value is out of range.
        UnknownHyperparameterError: A keyword that the rule does not have.
        ParameterError, ParameterDtypeError, AliasError: The parameters cannot be optimized as they are.

    >>> import numpy as np, openadam
    >>> w = np.array([1.0, -2.0])
    >>> opt = openadam.Optimizer(w, rule=openadam.rules.adam, lr=0.1, beta1=0.9, beta2=0.999, eps=1e-8)
    >>> opt.step(2 * w)
    StepReport(step=1, grad_norm=4.47213595499958, clip_factor=1.0, skipped=False, measures=None)
    >>> w.round(6)
    array([ 0.9, -1.9])
    """

    rule: ClassVar[Rule | None] = None
    coupling: ClassVar[str] = "coupled"
    defaults: ClassVar[Mapping[str, Any]] = {}
    state_names: ClassVar[Mapping[str, str]] = {}

    def __init__(
        self,
        params: Any,
        *,
        rule: Rule | None = None,
        coupling: str | None = None,
        no_decay: Any = (),
        clip_norm: float | None = None,
        clip_value: float | None = None,
        nonfinite: str = "raise",
        maximize: bool = False,
        threads: int | None = None,
        engine: str | None = None,
        isa: str | None = None,
        **hyperparameters: Any,
    ) -> None:
        public = [*type(self).state_names.values()]
        if len(set(public)) < len(public) or "step" in public:
            raise TypeError(f"{type(self).__name__}.state_names gives two states one name, or one the name 'step': {dict(type(self).state_names)}")
        chosen = rule if rule is not None else type(self).rule
        if not isinstance(chosen, Rule):
            raise TypeError("Optimizer needs rule=…: one of openadam.rules, or a function decorated with @openadam.rule")
        if coupling not in (None, "coupled", "decoupled"):
            raise HyperparameterError(f"coupling={coupling!r} is neither 'coupled' nor 'decoupled'")
        if nonfinite not in ("raise", "skip", "propagate"):
            raise HyperparameterError(f"nonfinite={nonfinite!r} is none of 'raise', 'skip', 'propagate'")
        if not isinstance(maximize, (bool, np.bool_)):
            raise HyperparameterError(f"maximize={maximize!r} is neither True nor False")
        self._rule = chosen
        self._coupling = coupling or type(self).coupling
        self._maximize = bool(maximize)
        self._nonfinite = nonfinite
        self._no_decay = read_no_decay(no_decay)
        self._threads = engines.resolve_threads(threads)
        merged = {**chosen.defaults, **type(self).defaults, **hyperparameters}
        options = {name: merged.pop(name) for name in list(merged) if name in chosen.options}
        for name, value in options.items():
            if value not in chosen.options[name]:
                raise HyperparameterError(f"{name}={value!r} is none of {', '.join(map(repr, chosen.options[name]))}")
        self._traced = chosen.trace(**options)
        self._options = options
        self._program = engines.compiled(self._traced)[0]
        self._engine = engines.choose_engine(self._program, engine, isa)
        self._chosen = {"engine": engine, "isa": isa}
        self._rows: list[Row] = []
        self._stepper = ArrayStepper(
            self._engine,
            self._rows,
            type(self).state_names,
            clip_norm=limit("clip_norm", clip_norm),
            clip_value=limit("clip_value", clip_value),
            nonfinite=nonfinite,
        )

        initial = [value for value in self._traced.initial.values() if isinstance(value, str)]
        self._names = tuple(dict.fromkeys(["lr", *self._traced.hyperparameters, *initial, "weight_decay"]))
        self._base: dict[str, Any] = {"weight_decay": 0.0}
        for name, value in merged.items():
            if name not in self._names:
                if name not in hyperparameters:
                    continue  # a default that this variant of the rule has no use for
                raise suggest(type(self).__name__, name, [*self._names, *chosen.options, *OWN_KEYWORDS], ELSEWHERE)
            self._base[name] = checked_or_schedule(name, value)
        missing = [name for name in self._names if name not in self._base]
        if missing:
            raise HyperparameterError(f"{type(self).__name__} needs {', '.join(f'{name}=…' for name in missing)}: the rule has no default for it")

        self.groups: list[dict[str, Any]] = []
        """The groups: the names of their parameters and their hyperparameters, which may be changed between steps."""
        self._names_of: list[list[str]] = []  # of each group
        self._singles: dict[int, str] = {}  # of each group that has one, the first float32 parameter
        self._settings: list[Any] = []  # the groups' settings when they were last told to the stepper; empty: never, or a schedule changes them
        self._guard = threading.Lock()
        self._in_use = False
        structure, groups = read_structure(params)
        self._grouped = structure == "groups"
        self._structures: list[str] = []  # of each group: single, sequence or mapping
        self._add(groups)
        self._attributes = frozenset((*self.__dict__, "_attributes"))  # ours; what else an object has belongs to its subclass

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        shared = [p for p in inspect.signature(Optimizer.__init__).parameters.values() if p.name not in ("self", "hyperparameters")]
        own = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value) for name, value in cls.defaults.items()]
        first = [p for p in shared if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
        rest = [p for p in shared if p.kind is inspect.Parameter.KEYWORD_ONLY and p.name != "rule"]
        cls.__signature__ = inspect.Signature([*first, *own, *rest])  # type: ignore[attr-defined]

    # --- parameters and groups -------------------------------------------------------------------------------------

    @alone
    def add_group(self, group: Mapping[str, Any]) -> None:
        """Add a group: a mapping with ``params`` and hyperparameters of its own. Its tensors start at step 1.

        Gradients are then given as a list with one entry per group.
        """
        self._add([read_group(group, len(self._rows))])
        self._grouped = True

    def _add(self, groups: list[Group]) -> None:
        """Check the groups whole, then take them in."""
        added: list[Row] = []
        settings_of: list[dict[str, Any]] = []
        for named, settings, _ in groups:
            index = len(self.groups) + len(settings_of)
            values = dict(self._base)
            for name, value in settings.items():
                if name == "maximize":
                    continue
                if name not in self._names:
                    raise suggest(f"group {index}", str(name), [*self._names, "maximize"])
                values[name] = checked_or_schedule(name, value, where=f" in group {index}")
            values["maximize"] = settings.get("maximize", self._maximize)
            rows = read_rows(named, index)
            settings_of.append({"params": [row.name for row in rows], **values})
            added += rows
        existing = [*self._rows, *added]
        if not existing:
            raise ParameterError("there is nothing to optimize: empty parameter list")
        refuse_shared(existing)
        for row, spared in zip(added, excluded(self._no_decay, added, existing), strict=True):
            row.decayed = not spared
        names_of = [[row.name for row in existing if row.group == index] for index in range(len(self.groups) + len(settings_of))]
        singles = first_singles(existing)
        self._check_groups([*self.groups, *settings_of], names_of, singles)

        def first(row: Row, names: Iterable[str]) -> list[float]:
            return [self._initial(name, settings_of[row.group - len(self.groups)]) for name in names]

        allocate(added, [first(row, self._program.states) for row in added])
        numbers = np.array([[0.0, *first(row, self._traced.scalar_states)] for row in added])  # side by side: all are visited in every step
        for row, own in zip(added, numbers, strict=True):
            row.numbers = own
        self.groups += settings_of
        self._structures += [group.structure for group in groups]
        self._rows[:] = existing
        self._names_of, self._singles = names_of, singles
        self._stepper.rebuild(self._traced, self._coupling, len(self.groups))
        self._settings = []

    def _initial(self, state: str, values: Mapping[str, Any]) -> float:
        start = self._traced.initial[state]
        return _at(start, values[start], 1) if isinstance(start, str) else float(start)

    # --- the step --------------------------------------------------------------------------------------------------

    @alone
    def step(self, grads: Any, *, measure: bool = False) -> StepReport:
        """Update the parameters in place from their gradients; all of it, or nothing.

        Args:
            grads: Gradients in the shape in which the parameters were given: one array, a sequence, a mapping of the same
                names, or a list with one such entry per group. None leaves a parameter and its state alone. float32
                gradients of float64 parameters are converted; nothing is ever broadcast or rounded.
            measure: Also return what can be seen inside the step, per tensor.

        Raises:
            GradientError: A gradient cannot be used: wrong shape, dtype or structure, or (unless ``nonfinite`` says
                otherwise) not finite. Parameters, states and counters are as they were.
            AliasError: A gradient shares memory with a parameter or a state.
            HyperparameterError: A group's setting, or what a schedule returned, is out of range.

        >>> import numpy as np, openadam
        >>> w = np.zeros(3)
        >>> opt = openadam.Adam({"w": w}, lr=0.5, clip_norm=1.0)
        >>> opt.step({"w": np.array([3.0, 0.0, 4.0])}).clip_factor
        0.199999960000008
        >>> opt.step({"w": np.array([3.0, np.nan, 4.0])})  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        openadam.errors.NonFiniteGradientError: the gradient of parameter 'w' is not finite at step 2: nan at flat index 1, ...
        """
        try:
            gradients = self._flatten(grads)
        except GradientError:
            self._check_places(self.groups, self._names_of)  # groups that were moved would be blamed on the gradients
            raise
        stepper = self._stepper
        try:
            self._tell_settings()
            stepper.read(gradients)
            if not stepper.table.active_count:
                return StepReport(self.steps, 0.0, 1.0, False, {} if measure else None)
            return stepper.take(self._threads, measure=measure)
        finally:
            stepper.forget()

    def _flatten(self, grads: Any) -> list[Any]:
        """Gradients in the order of the parameters; refuses another structure."""
        parts = [grads]
        if self._grouped:
            count = len(self.groups)
            if not isinstance(grads, (list, tuple)) or len(grads) != count:
                raise GradientError(f"the parameters were given in {count} groups: give a list with the gradients of each, not {describe(grads)}")
            parts = list(grads)
        gradients: list[Any] = []
        for structure, names, part in zip(self._structures, self._names_of, parts, strict=True):
            gradients += flatten(structure, names, part)
        return gradients

    # --- hyperparameters -------------------------------------------------------------------------------------------

    def _check_groups(self, groups: Sequence[dict[str, Any]], names_of: Sequence[list[str]], singles: Mapping[int, str]) -> None:
        """Refuse settings that are out of range, or that the parameters' dtype cannot hold; keep numbers as Python floats."""
        self._check_places(groups, names_of)
        for index, group in enumerate(groups):
            for name in (*self._names, "maximize"):
                if name not in group:
                    raise HyperparameterError(f"group {index} has lost its {name!r}")
            for name in group:
                if name not in self._names and name not in ("params", "maximize"):
                    raise suggest(f"group {index}", str(name), [*self._names, "maximize"])
            numbers = {name: checked_or_schedule(name, group[name], where=f" in group {index}") for name in self._names}
            if not isinstance(group["maximize"], (bool, np.bool_)):
                raise HyperparameterError(f"maximize={group['maximize']!r} in group {index} is neither True nor False")
            check_dtype(index, numbers, singles.get(index))
            lr, decay = numbers["lr"], numbers["weight_decay"]
            if not callable(lr) and not callable(decay):
                self._warn_of_overshoot(index, lr, decay)
            group.update(numbers)

    @staticmethod
    def _check_places(groups: Sequence[dict[str, Any]], names_of: Sequence[list[str]]) -> None:
        """Refuse groups that were added, taken away or reordered by hand."""
        if len(groups) != len(names_of):
            raise ParameterError(f"there are {len(groups)} groups where {len(names_of)} were added; add one with add_group(…), and take none away")
        for index, (group, names) in enumerate(zip(groups, names_of, strict=True)):
            if list(group.get("params", ())) != names:
                why = "groups keep their order and their parameters; change only their settings"
                raise ParameterError(f"group {index} now lists the parameters {group.get('params')!r:.200}, but has {names!r:.200}: {why}")

    def _warn_of_overshoot(self, index: int, lr: float, decay: float) -> None:
        if self._coupling == "decoupled" and lr * decay > 1:
            warnings.warn(f"lr * weight_decay = {lr * decay:g} in group {index}: decay overshoots zero", HyperparameterWarning, stacklevel=5)

    def _tell_settings(self) -> None:
        """Tell the stepper the hyperparameters of the coming step, checked; schedules are asked for step `self.steps` + 1."""
        now = self._settings_now()
        if self._settings and len(now) == len(self._settings) and all(map(operator.is_, now, self._settings)):
            return
        self._check_groups(self.groups, self._names_of, self._singles)
        t = self.steps + 1
        for index, group in enumerate(self.groups):
            numbers = {name: _at(name, group[name], t) for name in self._names}
            check_dtype(index, numbers, self._singles.get(index))
            if callable(group["lr"]) or callable(group["weight_decay"]):
                self._warn_of_overshoot(index, numbers["lr"], numbers["weight_decay"])
            self._stepper.tell(index, numbers | {"maximize": bool(group["maximize"])})
        self._settings = [] if any(map(callable, now)) else self._settings_now()

    def _settings_now(self) -> list[Any]:
        names = (*self._names, "maximize", "params")
        return [group.get(name) for group in self.groups for name in names] + [len(group) for group in self.groups]

    # --- state -----------------------------------------------------------------------------------------------------

    def _public(self, state: str) -> str:
        return type(self).state_names.get(state, state)

    @property
    def steps(self) -> int:
        """Steps taken."""
        return self._stepper.steps

    @property
    def skipped(self) -> int:
        """Steps skipped because of gradients that are not finite."""
        return self._stepper.skipped

    @property
    def params(self) -> dict[str, Array]:
        """The parameters by name: the arrays that were given."""
        return {row.name: row.array for row in self._rows}

    @property
    def state(self) -> Mapping[str, Mapping[str, Any]]:
        """The state of each parameter by name: ``step`` and read-only views of what the rule remembers.

        It is to look at; what an optimizer remembers is changed with `load_state_dict`.

        >>> import numpy as np, openadam
        >>> opt = openadam.Adam({"w": np.zeros(2)}, beta1=0.9)
        >>> _ = opt.step({"w": np.array([2.0, -4.0])})
        >>> opt.state["w"]["step"], opt.state["w"]["exp_avg"]
        (1, array([ 0.2, -0.4]))
        """
        contents = self._contents()
        result = {row.name: contents.state(row) for row in self._rows}
        for state in result.values():
            for name, value in state.items():
                if isinstance(value, np.ndarray):
                    state[name] = value.view()
                    state[name].flags.writeable = False
        return states.ReadOnly({name: states.ReadOnly(state) for name, state in result.items()})

    def _contents(self) -> states.Contents:
        return states.Contents(
            rule=self._rule, traced=self._traced, coupling=self._coupling, public=self._public, rows=self._rows, groups=self.groups,
            counts=(self.steps, self.skipped), finite=self._nonfinite != "propagate",

            check=lambda groups: self._check_groups(groups, self._names_of, self._singles),
        )  # fmt: skip

    @alone
    def state_dict(self) -> dict[str, Any]:
        """Everything but the parameters, copied: plain numbers, strings, lists, dicts and arrays.

        A hyperparameter that is a function of t is stored as ``{"schedule": its repr}``; loading keeps the function that the
        optimizer has.
        """
        return states.write(self._contents())

    @alone
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a `state_dict`, matched by parameter names; all of it, or nothing.

        Raises:
            CheckpointVersionError: It was written by a newer, incompatible version.
            CheckpointMismatchError: It belongs to another rule or to other parameters.
            CheckpointCorruptError: A value is impossible: a negative step or second moment, a state that is not finite.
        """
        self._take_over(states.read(self._contents(), state_dict))

    def _take_over(self, loaded: states.Loaded, parameters: Mapping[str, Array] = MappingProxyType({})) -> None:
        """Commit what has been checked."""
        own = self.params
        targets: list[Any] = [own[name] for name in parameters]
        values: list[Any] = list(parameters.values())
        for row, arrays, numbers in zip(self._rows, loaded.arrays, loaded.numbers, strict=True):
            targets += [*row.states, row.numbers]
            values += [*arrays, numbers]
        engines.assign_all([*targets, self._stepper.table.counts, self.groups], [*values, loaded.counts, loaded.groups])

    def save(self, path: Any, *, parameters: bool = True) -> None:
        """Write the state, and the parameters unless told not to, to one safetensors file, atomically.

        Needs the ``files`` extra. An existing file is replaced only once the new one is complete and on disk.

        Raises:
            CheckpointCorruptError: `load` would refuse the state: it holds values that are not finite. An existing file is untouched.
            OSError: The file cannot be written; an existing one is untouched.
        """
        from .. import checkpoint

        state, tensors = self._copies(parameters)
        states.read(self._contents(), state)  # what could not be read again replaces nothing
        checkpoint.save(path, state, tensors)

    def load(self, path: Any) -> None:
        """Take over what `save` wrote: the state, and the parameters, in place, if the file has them.

        Raises:
            CheckpointError: The file is damaged, foreign, too new, or belongs to another optimizer; nothing has changed.
            OSError: The file cannot be read.
        """
        from .. import checkpoint

        self._take_over_all(*checkpoint.load(path))

    @alone
    def _copies(self, parameters: bool) -> tuple[dict[str, Any], dict[str, Array]]:
        return states.write(self._contents()), {name: np.array(array) for name, array in self.params.items()} if parameters else {}

    @alone
    def _take_over_all(self, state: Mapping[str, Any], parameters: Mapping[str, Array]) -> None:
        read = states.read(self._contents(), state)
        own = self.params
        for row in self._rows if parameters else ():
            row.refuse_unusable()
        if parameters and set(parameters) != set(own):
            raise CheckpointMismatchError(f"the file holds the parameters {sorted(parameters)}, this optimizer has {sorted(own)}")
        for name, value in parameters.items():
            if value.dtype != own[name].dtype or value.shape != own[name].shape:
                raise CheckpointMismatchError(
                    f"parameter {name!r} is {value.dtype} {value.shape} in the file, {own[name].dtype} {own[name].shape} here"
                )
        self._take_over(read, parameters)

    # --- the object itself -----------------------------------------------------------------------------------------

    def __reduce__(self) -> tuple[Any, ...]:
        parts = []
        for group, names, structure in zip(self.groups, self._names_of, self._structures, strict=True):
            settings = {name: value for name, value in group.items() if name != "params"}
            parts.append({"params": structured(structure, [(name, self.params[name]) for name in names]), **settings})
        stepper = self._stepper
        whole: dict[str, Any] = {
            "rule": self._rule, "coupling": self._coupling, "no_decay": self._no_decay,
            "clip_norm": stepper.clip_norm, "clip_value": stepper.clip_value, "nonfinite": self._nonfinite,
            "maximize": self._maximize, "threads": self._threads, **self._chosen, **self._base, **self._options,
        }  # fmt: skip
        more = {name: value for name, value in self.__dict__.items() if name not in self._attributes}
        return _rebuild, (type(self), parts, self._grouped, whole, self.state_dict()), more or None

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} ({self._traced.name}, {self._coupling} decay, {self._engine.name} {self._engine.isa}), {self.steps} steps"]
        for index, group in enumerate(self.groups):
            numbers = ", ".join(f"{name}={group[name]!r}" for name in self._names)
            elements = sum(row.view.size for row in self._rows if row.group == index)
            lines.append(f"  group {index}: {len(group['params'])} tensors, {elements:,} elements; {numbers}")
            undecayed = [row.name for row in self._rows if row.group == index and not row.decayed]
            if undecayed:
                lines.append(f"    without weight decay: {', '.join(undecayed)}")
        lines.append(
            f"  nonfinite={self._nonfinite!r}, clip_norm={self._stepper.clip_norm}, clip_value={self._stepper.clip_value}, threads={self._threads}"
        )
        return "\n".join(lines)


OWN_KEYWORDS = tuple(p.name for p in inspect.signature(Optimizer.__init__).parameters.values() if p.kind is p.KEYWORD_ONLY)


class _Elsewhere:
    """An attribute that people look for and that stands elsewhere: setting it would do nothing, so it is refused."""

    def __init__(self, name: str, where: str) -> None:
        self._message = f"an optimizer has no attribute {name!r}: {where}"

    def __get__(self, instance: Any, owner: Any) -> Any:
        raise AttributeError(self._message)

    def __set__(self, instance: Any, value: Any) -> None:
        raise AttributeError(self._message)


for _name in ("lr", "beta1", "beta2", "eps", "momentum", "dampening", "rho", "lr_decay", "momentum_decay", "weight_decay", "maximize"):
    setattr(Optimizer, _name, _Elsewhere(_name, f"it is a setting of each group, opt.groups[0][{_name!r}]"))
setattr(Optimizer, "param_groups", _Elsewhere("param_groups", "its groups are opt.groups, the parameters by name opt.params"))  # noqa: B010
setattr(Optimizer, "zero_grad", _Elsewhere("zero_grad", "over arrays there is nothing to clear, gradients are given to step(grads)"))  # noqa: B010
for _name in ("clip_norm", "clip_value", "nonfinite", "no_decay", "threads", "engine", "isa"):
    setattr(Optimizer, _name, _Elsewhere(_name, "it is chosen when the optimizer is made; make another and give it this one's state_dict()"))


def _at(name: str, value: Any, t: int) -> float:
    """The value at step t: a number as it is, a schedule asked and checked."""
    return checked(name, value(t), where=f" (from its schedule at t={t})") if callable(value) else float(value)


def _rebuild(cls: type[Optimizer], parts: list[dict[str, Any]], grouped: bool, whole: dict[str, Any], state: dict[str, Any]) -> Optimizer:
    optimizer = cls.__new__(cls)
    Optimizer.__init__(optimizer, parts, **whole)  # a subclass's own may want other arguments
    optimizer._grouped = grouped
    optimizer.load_state_dict(state)
    return optimizer
