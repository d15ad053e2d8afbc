"""The optimizer over arrays: parameters and their groups, the step, and its state by name."""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from . import engine as engines
from . import states
from .errors import AliasError, CheckpointMismatchError, GradientError, HyperparameterError, HyperparameterWarning, ParameterError
from .hyperparameters import checked, checked_or_schedule, suggest
from .language.expression import Rule
from .parameters import (
    Entry,
    as_gradient,
    describe,
    flatten,
    overlaps,
    protected_intervals,
    read_entries,
    read_group,
    read_structure,
    structured,
    touches,
)
from .step import Stepper, StepReport, Update, allocate_states, alone, check_dtype, compiled

__all__ = ["Optimizer", "StepReport"]

Array = npt.NDArray[Any]


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
        self._no_decay = no_decay
        self._threads = engines.resolve_threads(threads)
        merged = {**chosen.defaults, **type(self).defaults, **hyperparameters}
        options = {name: merged.pop(name) for name in list(merged) if name in chosen.options}
        for name, value in options.items():
            if value not in chosen.options[name]:
                raise HyperparameterError(f"{name}={value!r} is none of {', '.join(map(repr, chosen.options[name]))}")
        self._traced = chosen.trace(**options)
        self._options = options
        program, scalars = compiled(self._traced)
        self._engine = engines.choose_engine(program, engine, isa)
        self._chosen = {"engine": engine, "isa": isa}
        kernel = self._engine.kernel(program)
        assert kernel is not None
        self._update = Update(self._traced, program, scalars, self._coupling, kernel)
        self._entries: list[Entry] = []
        self._stepper = _ArrayStepper(
            self,
            clip_norm=None if clip_norm is None else checked("clip_norm", clip_norm),
            clip_value=None if clip_value is None else checked("clip_value", clip_value),
        )
        self._table = self._stepper.table

        initial = [value for value in self._traced.initial.values() if isinstance(value, str)]
        self._names = tuple(dict.fromkeys(["lr", *self._traced.hyperparameters, *initial, "weight_decay"]))
        self._base: dict[str, Any] = {"weight_decay": 0.0}
        for name, value in merged.items():
            if name not in self._names:
                if name not in hyperparameters:
                    continue  # a default that this variant of the rule has no use for
                raise suggest(type(self).__name__, name, [*self._names, *chosen.options])
            self._base[name] = checked_or_schedule(name, value)
        missing = [name for name in self._names if name not in self._base]
        if missing:
            raise HyperparameterError(f"{type(self).__name__} needs {', '.join(f'{name}=…' for name in missing)}: the rule has no default for it")

        self.groups: list[dict[str, Any]] = []
        """The groups: the names of their parameters and their hyperparameters, which may be changed between steps."""
        self._plain: list[Any] = []
        self._protected: tuple[Array, Array] = (np.zeros(0, np.int64), np.zeros(0, np.int64))
        self._doubtful = True
        self._names_of: list[list[str]] = []  # of each group
        self._singles: dict[int, str] = {}  # of each group that has one, the first float32 parameter
        # The groups' settings when they were last checked, and what they come to for each class, if no schedule changes them.
        self._settings: tuple[list[Any], dict[int, dict[str, Any]] | None] = ([], None)
        self._guard = threading.Lock()
        self._in_use = False
        structure, groups = read_structure(params)
        self._grouped = structure == "groups"
        self._structures: list[str] = []  # of each group: single, sequence or mapping
        self._add(groups)

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
        self._add([read_group(group, len(self._entries))])
        self._grouped = True

    def _add(self, groups: list[tuple[list[tuple[str, Any]], dict[str, Any]]]) -> None:
        """Check the groups whole, then take them in."""
        added: list[Entry] = []
        settings_of: list[dict[str, Any]] = []
        for named, settings in groups:
            index = len(self.groups) + len(settings_of)
            values = dict(self._base)
            for name, value in settings.items():
                if name in ("params", "structure", "maximize"):
                    continue
                if name not in self._names:
                    raise suggest(f"group {index}", name, [*self._names, "maximize"])
                values[name] = checked_or_schedule(name, value, where=f" in group {index}")
            values["maximize"] = settings.get("maximize", self._maximize)
            entries = read_entries(named, index)
            settings_of.append({"params": [entry.name for entry in entries], **values})
            added += entries
        existing = [*self._entries, *added]
        if not existing:
            raise ParameterError("there is nothing to optimize: empty parameter list")
        overlaps(existing)
        for entry, excluded in zip(added, _excluded(self._no_decay, added), strict=True):
            entry.decayed = not excluded
        self._check_groups([*self.groups, *settings_of], existing)

        first_values = [[self._initial(name, settings_of[entry.group - len(self.groups)]) for name in self._update.program.states] for entry in added]
        states = allocate_states(added, first_values)
        memory = self._traced.scalar_states
        first = np.array([self._initial(name, settings_of[entry.group - len(self.groups)]) for entry in added for name in memory])
        self.groups += settings_of
        self._structures += [settings["structure"] for _, settings in groups]
        self._entries[:] = existing
        table = self._table
        table.states += states
        table.parameters += [entry.view for entry in added]
        table.programs = [self._update.program] * len(existing)
        table.counters = np.concatenate([self._stepper.steps_of, np.zeros(len(added), np.int64), [self.steps, self.skipped]])
        table.memory = np.concatenate([table.memory, first])
        self._rebuild_rows()
        now = self._settings_now()
        self._settings = (now, None if any(map(callable, now)) else self._settings_at(1))

    def _initial(self, state: str, values: Mapping[str, Any]) -> float:
        start = self._traced.initial[state]
        return _at(start, values[start], 1) if isinstance(start, str) else float(start)

    def _rebuild_rows(self) -> None:
        """The table's rows, from the entries and states as they are now."""
        table = self._table
        rows = np.zeros((len(self._entries), engines.COLUMNS), np.int64)
        for i, entry in enumerate(self._entries):
            rows[i, engines.PARAMETER] = entry.address
            rows[i, engines.LENGTH] = entry.view.size
            rows[i, engines.DTYPE] = engines.DTYPES[entry.view.dtype]
            for s, state in enumerate(table.states[i]):
                rows[i, engines.STATES + s] = state.__array_interface__["data"][0]
        rows[:, engines.KERNEL] = self._update.kernel
        # Tensors of one class (a group, decayed or not) share their scalars while their step numbers agree.
        classes = np.array([2 * entry.group + (not entry.decayed) for entry in self._entries], np.int64)
        self._stepper.updates = dict.fromkeys(range(2 * len(self.groups)), self._update)
        self._stepper.rebuild(rows, classes, [entry.view.dtype for entry in self._entries])
        self._plain = [entry.view if entry.is_plain else None for entry in self._entries]
        self._doubtful = True
        self._names_of = [[] for _ in self.groups]
        for entry in self._entries:
            self._names_of[entry.group].append(entry.name)
        self._singles = _first_singles(self._entries)
        self._protected = protected_intervals(self._entries, table.states)

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
            return self._step(self._flatten(grads), measure)
        finally:
            self._table.gradients = []  # they are the caller's; keep none alive

    def _step(self, gradients: list[Any], measure: bool) -> StepReport:
        settings = self._values()
        self._take_gradients(gradients)
        if len(self._stepper.missing) == len(self._entries):
            return StepReport(self.steps, 0.0, 1.0, False, {} if measure else None)
        return self._stepper.take(settings, self._threads, measure=measure)

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

    def _take_gradients(self, gradients: list[Any]) -> None:
        """Put the gradients into the table; refuse by name what cannot be used."""
        table = self._table
        others, suspects = engines.read_gradients(gradients, self._plain, table.rows, self._protected, self._doubtful)
        self._doubtful = True  # until everything below has been checked
        layouts: dict[int, list[int]] = {}
        self._stepper.missing = [i for i in others if gradients[i] is None]
        for i in others:
            entry = self._entries[i]
            row = table.rows[i]
            row[engines.ACTIVE] = gradients[i] is not None
            row[engines.LAYOUT] = -1
            if gradients[i] is not None:
                gradient = gradients[i] = as_gradient(entry, gradients[i])
                row[engines.GRADIENT] = gradient.__array_interface__["data"][0]
                layout = entry.layout(gradient)
                if layout is not None:
                    layouts[i] = layout
                if touches(gradient, self._protected):
                    suspects.append(i)
        numbers: list[int] = []
        for i, layout in layouts.items():
            table.rows[i, engines.LAYOUT] = len(numbers)
            numbers += layout
        table.layouts = np.array(numbers, np.int64)
        for i in suspects:
            self._refuse_alias(self._entries[i].name, gradients[i])
        table.gradients = gradients
        self._doubtful = False

    def _refuse_alias(self, name: str, gradient: Array) -> None:
        for entry, own in zip(self._entries, self._table.states, strict=True):
            for other, what in [(entry.view, "parameter"), *((state, "state of parameter") for state in own)]:
                if np.may_share_memory(gradient, other) and np.shares_memory(gradient, other):
                    raise AliasError(
                        f"the gradient of parameter {name!r} shares memory with the {what} {entry.name!r}, which the step writes; pass a copy"
                    )

    # --- hyperparameters -------------------------------------------------------------------------------------------

    def _check_groups(self, groups: Sequence[dict[str, Any]], entries: Sequence[Entry]) -> None:
        """Refuse settings that are out of range, or that the parameters' dtype cannot hold; keep numbers as Python floats."""
        singles = _first_singles(entries)
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
            if self._coupling == "decoupled" and not callable(lr) and not callable(decay) and lr * decay > 1:
                warnings.warn(f"lr * weight_decay = {lr * decay:g} in group {index}: decay overshoots zero", HyperparameterWarning, stacklevel=4)
            group.update(numbers)

    def _values(self) -> dict[int, dict[str, Any]]:
        """The hyperparameters of the coming step for each class, checked; schedules are asked for step `self.steps` + 1."""
        now = self._settings_now()
        checked_then, constant = self._settings
        if len(now) != len(checked_then) or any(a is not b for a, b in zip(now, checked_then, strict=True)):
            self._check_groups(self.groups, self._entries)
            now = self._settings_now()
            constant = None if any(map(callable, now)) else self._settings_at(1)
            self._settings = (now, constant)
        return constant or self._settings_at(self.steps + 1)

    def _settings_now(self) -> list[Any]:
        names = (*self._names, "maximize")
        return [group.get(name) for group in self.groups for name in names] + [len(group) for group in self.groups]

    def _settings_at(self, t: int) -> dict[int, dict[str, Any]]:
        settings = {}
        for index, group in enumerate(self.groups):
            numbers = {name: _at(name, group[name], t) for name in self._names}
            check_dtype(index, numbers, self._singles.get(index))
            settings[2 * index] = numbers | {"maximize": bool(group["maximize"])}
            settings[2 * index + 1] = settings[2 * index] | {"weight_decay": 0.0}
        return settings

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
        return {entry.name: entry.array for entry in self._entries}

    @property
    def state(self) -> dict[str, dict[str, Any]]:
        """The state of each parameter by name: ``step`` and read-only views of what the rule remembers.

        >>> import numpy as np, openadam
        >>> opt = openadam.Adam({"w": np.zeros(2)}, beta1=0.9)
        >>> _ = opt.step({"w": np.array([2.0, -4.0])})
        >>> opt.state["w"]["step"], opt.state["w"]["exp_avg"]
        (1, array([ 0.2, -0.4]))
        """
        result: dict[str, dict[str, Any]] = {}
        memory = self._table.memory.reshape(len(self._entries), -1)
        for i, entry in enumerate(self._entries):
            state: dict[str, Any] = {"step": int(self._table.counters[i])}
            for name, array in zip(self._update.program.states, self._table.states[i], strict=True):
                view = entry.as_given(array).view()
                view.flags.writeable = False
                state[self._public(name)] = view
            for k, name in enumerate(self._traced.scalar_states):
                state[self._public(name)] = float(memory[i, k])
            result[entry.name] = state
        return result

    @alone
    def state_dict(self) -> dict[str, Any]:
        """Everything but the parameters, copied: plain numbers, strings, lists, dicts and arrays.

        A hyperparameter that is a function of t is stored as ``{"schedule": its repr}``; loading keeps the function that the
        optimizer has.
        """
        return states.write(self)

    @alone
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a `state_dict`, matched by parameter names; all of it, or nothing.

        Raises:
            CheckpointVersionError: It was written by a newer, incompatible version.
            CheckpointMismatchError: It belongs to another rule or to other parameters.
            CheckpointCorruptError: A value is impossible: a negative step or second moment, a state that is not finite.
        """
        self._take_over(states.read(self, state_dict))

    def _take_over(self, loaded: states.Loaded, parameters: Mapping[str, Array] = MappingProxyType({})) -> None:
        """Commit what has been checked."""
        table, own = self._table, self.params
        self._stepper.no_longer_together()
        engines.assign_all(
            [*(own[name] for name in parameters), *(array for arrays in table.states for array in arrays), table.counters, table.memory, self.groups],
            [*parameters.values(), *(array for arrays in loaded.arrays for array in arrays), loaded.counters, loaded.memory, loaded.groups],
        )
        self._stepper.note_together()

    def save(self, path: Any, *, parameters: bool = True) -> None:
        """Write the state, and the parameters unless told not to, to one safetensors file, atomically.

        Needs the ``files`` extra. An existing file is replaced only once the new one is complete and on disk.

        Raises:
            OSError: The file cannot be written; an existing one is untouched.
        """
        from . import checkpoint

        state, tensors = self._copies(parameters)
        checkpoint.save(path, state, tensors)

    def load(self, path: Any) -> None:
        """Take over what `save` wrote: the state, and the parameters, in place, if the file has them.

        Raises:
            CheckpointError: The file is damaged, foreign, too new, or belongs to another optimizer; nothing has changed.
            OSError: The file cannot be read.
        """
        from . import checkpoint

        self._take_over_all(*checkpoint.load(path))

    @alone
    def _copies(self, parameters: bool) -> tuple[dict[str, Any], dict[str, Array]]:
        return states.write(self), {name: np.array(array) for name, array in self.params.items()} if parameters else {}

    @alone
    def _take_over_all(self, state: Mapping[str, Any], parameters: Mapping[str, Array]) -> None:
        read = states.read(self, state)
        own = self.params
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
        return _rebuild, (type(self), parts, self._grouped, whole, self.state_dict())

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} ({self._traced.name}, {self._coupling} decay, {self._engine.name} {self._engine.isa}), {self.steps} steps"]
        for index, group in enumerate(self.groups):
            numbers = ", ".join(f"{name}={group[name]!r}" for name in self._names)
            elements = sum(entry.view.size for entry in self._entries if entry.group == index)
            lines.append(f"  group {index}: {len(group['params'])} tensors, {elements:,} elements; {numbers}")
            undecayed = [entry.name for entry in self._entries if entry.group == index and not entry.decayed]
            if undecayed:
                lines.append(f"    without weight decay: {', '.join(undecayed)}")
        lines.append(
            f"  nonfinite={self._nonfinite!r}, clip_norm={self._stepper.clip_norm}, clip_value={self._stepper.clip_value}, threads={self._threads}"
        )
        return "\n".join(lines)


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
for _name in ("clip_norm", "clip_value", "nonfinite", "no_decay", "threads", "engine", "isa"):
    setattr(Optimizer, _name, _Elsewhere(_name, "it is chosen when the optimizer is made; make another and give it this one's state_dict()"))


class _ArrayStepper(Stepper):
    """Steps over the arrays of an optimizer."""

    def __init__(self, optimizer: Optimizer, *, clip_norm: float | None, clip_value: float | None) -> None:
        super().__init__(optimizer._engine, clip_norm=clip_norm, clip_value=clip_value, nonfinite=optimizer._nonfinite)
        self._state_names = type(optimizer).state_names  # and not the optimizer itself, which would then live until the garbage collector comes
        self._entries = optimizer._entries

    def name(self, i: int) -> str:
        return self._entries[i].name

    def gradient(self, i: int) -> Array | None:
        gradient = self.table.gradients[i]
        return None if gradient is None else self._entries[i].as_given(gradient)

    def preview(self, i: int) -> tuple[Array, Iterable[tuple[str, Array, Array]]]:
        table = self.table
        with np.errstate(all="ignore"):
            outputs = engines.ReferenceEngine.outputs(table, i)
        given = table.gradients[i]
        assert given is not None
        before = zip((*table.programs[i].states, "p"), (*table.states[i], table.parameters[i]), strict=True)
        return given.reshape(-1), [(self._state_names.get(name, name), array.reshape(-1), outputs[name]) for name, array in before]


def _at(name: str, value: Any, t: int) -> float:
    """The value at step t: a number as it is, a schedule asked and checked."""
    return checked(name, value(t), where=f" (from its schedule at t={t})") if callable(value) else float(value)


def _excluded(no_decay: Any, entries: Sequence[Entry]) -> list[bool]:
    """For each parameter whether weight decay leaves it alone."""
    if callable(no_decay):
        return [bool(no_decay(entry.name, entry.array)) for entry in entries]
    if not isinstance(no_decay, Iterable):
        raise HyperparameterError(f"no_decay={no_decay!r} is neither names, nor arrays, nor a function of (name, array)")
    items = [no_decay] if isinstance(no_decay, str) or hasattr(no_decay, "dtype") else list(no_decay)
    names = {item for item in items if isinstance(item, str)}
    arrays = {id(item) for item in items if not isinstance(item, str)}
    return [entry.name in names or id(entry.array) in arrays for entry in entries]


def _first_singles(entries: Sequence[Entry]) -> dict[int, str]:
    """Of each group that has one, the name of its first float32 parameter."""
    singles: dict[int, str] = {}
    for entry in entries:
        if entry.view.dtype == np.float32:
            singles.setdefault(entry.group, entry.name)
    return singles


def _rebuild(cls: type[Optimizer], parts: list[dict[str, Any]], grouped: bool, whole: dict[str, Any], state: dict[str, Any]) -> Optimizer:
    if cls.rule is not None:
        whole = {name: value for name, value in whole.items() if name != "rule"}
    optimizer = cls(parts, **whole)
    optimizer._grouped = grouped
    optimizer.load_state_dict(state)
    return optimizer
