"""The optimizer over arrays: parameters and their groups, the step, and its state by name."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, NoReturn

import numpy as np
import numpy.typing as npt

from .. import engine as engines
from ..errors import CheckpointMismatchError, GradientError, HyperparameterError, OpenAdamError, ParameterError
from ..hyperparameters import checked_or_schedule, kinds_of, limit, limit_of_skips, nearest, refuse_no_reset, suggest
from ..language.rule import Rule
from ..measures import Measure
from ..no_decay import predicate, read_no_decay, refuse_strangers
from ..reports import Measured, StepReport
from ..step import FLOAT32_LARGEST, alone, begin_recording, told_loss
from ..worked.following import Followable
from . import states
from .groups import Groups, at
from .parameters import Group, describe, read_group, read_structure
from .rows import Row, allocate, read_rows, refuse_shared
from .table import ArrayStepper

__all__ = ["Optimizer", "StepReport"]

Array = npt.NDArray[Any]


ELSEWHERE = {
    "amsgrad": "openadam.AMSGrad(…)",
    "centered": "openadam.RMSProp(…, variance='centered')",
    "decoupled_weight_decay": "coupling='decoupled', or the class whose name ends in W",
    "momentum": "openadam.Momentum(…)",
    "nesterov": "openadam.Momentum(…, form='nesterov')",
}
"""What some keywords of others are here."""


class Optimizer(Followable):
    """An optimizer of the family over NumPy arrays, updated in place.

    Args:
        params: What to optimize: one array; a sequence of arrays or a mapping of names to arrays, nested as deep as you like
            (names are then joined by dots: ``layers.0.weight``); or groups: mappings with the key ``params`` and their own
            hyperparameters, one or a sequence. Arrays are writeable float32 or float64 of any shape and strides.
        rule: The update rule; members of the family bring their own.
        coupling: ``coupled`` weight decay joins the gradient (L2), ``decoupled`` shrinks the parameter by
            ``lr * weight_decay``; members bring their own.
        no_decay: What weight decay leaves alone: names, arrays, or a predicate of (name, array).
        clip_norm: Largest global norm of all gradients together; None for no limit.
        clip_value: Largest magnitude of each element, after ``clip_norm``; None for no limit.
        nonfinite: What a NaN or infinite gradient does: ``raise`` (default) refuses the step, ``skip`` skips and counts it,
            ``propagate`` lets it through as torch does.
        max_skips: With ``nonfinite="skip"``: the most steps in a row that are skipped; the next is refused. None for no limit.
        maximize: Ascend instead of descend.
        threads: Most threads of a step; default ``OPENADAM_NUM_THREADS``, else the processors this process may use.
        engine: ``native`` or ``reference``; default ``OPENADAM_ENGINE``, else native where there is a kernel.
        isa: Instruction set of the native kernels, for tests; default ``OPENADAM_ISA``, else the best that runs here.
        record: Where to record what the steps see: a path, an `openadam.record.Recorder`, or a pair of one of these and a name for this
            optimizer; default ``OPENADAM_RECORD``, else nowhere. A recorded run is the same run, to the bit.
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
    StepReport(step=1, grad_norm=4.47213595499958, clip_factor=1.0, skipped=False, measures=None, why=None, loss=None)
    >>> w.round(6)
    array([ 0.9, -1.9])
    """

    rule: ClassVar[Rule | None] = None
    coupling: ClassVar[str] = "coupled"
    defaults: ClassVar[Mapping[str, Any]] = {}
    state_names: ClassVar[Mapping[str, str]] = {}
    _stepper: ArrayStepper

    def __init__(
        self,
        params: Any,
        *wrong: NoReturn,
        rule: Rule | None = None,
        coupling: str | None = None,
        no_decay: Any = (),
        clip_norm: float | None = None,
        clip_value: float | None = None,
        nonfinite: str = "raise",
        max_skips: int | None = None,
        maximize: bool = False,
        threads: int | None = None,
        engine: str | None = None,
        isa: str | None = None,
        record: Any = None,
        **hyperparameters: Any,
    ) -> None:
        before = set(self.__dict__)  # what a subclass has put there already
        if wrong:
            raise TypeError(f"{type(self).__name__} takes the parameters alone by position; give hyperparameters by name: lr={wrong[0]!r:.40}")
        chosen = rule if rule is not None else type(self).rule
        if not isinstance(chosen, Rule):
            raise TypeError("Optimizer needs rule=…: one of openadam.rules, or a function decorated with @openadam.rule")
        coupling = coupling if coupling is not None else type(self).coupling
        if coupling not in ("coupled", "decoupled"):
            raise HyperparameterError(f"coupling={coupling!r} is neither 'coupled' nor 'decoupled'")
        if nonfinite not in ("raise", "skip", "propagate"):
            raise HyperparameterError(f"nonfinite={nonfinite!r} is none of 'raise', 'skip', 'propagate'")
        if not isinstance(maximize, (bool, np.bool_)):
            raise HyperparameterError(f"maximize={maximize!r} is neither True nor False")
        if max_skips is not None and nonfinite != "skip":
            raise HyperparameterError(f"max_skips={max_skips!r} is a limit on what nonfinite='skip' skips, and nonfinite is {nonfinite!r}")
        self._rule = chosen
        self._coupling = coupling
        self._maximize = bool(maximize)
        self._no_decay = read_no_decay(no_decay)
        self._threads = engines.resolve_threads(threads)
        merged = {**chosen.defaults, **type(self).defaults, **hyperparameters}
        options = {name: merged.pop(name) for name in list(merged) if name in chosen.options}
        for name, value in options.items():
            if value not in chosen.options[name]:
                raise HyperparameterError(f"{name}={value!r} is none of {', '.join(map(repr, chosen.options[name]))}")
        if chosen.compile:
            from ..compiling import compile_rule

            compile_rule(chosen)
        self._traced = chosen.trace(**options)
        self._options = options
        self._program = engines.compiled(self._traced)[0]
        self._engine = engines.choose_engine(self._program, engine, isa)
        self._chosen = {"engine": engine, "isa": isa}
        self._rows: list[Row] = []
        self._stepper = ArrayStepper(
            self._engine,
            chosen,
            self._rows,
            type(self).state_names,
            clip_norm=limit("clip_norm", clip_norm),
            clip_value=limit("clip_value", clip_value),
            nonfinite=nonfinite,
            max_skips=limit_of_skips(max_skips),
        )

        public = [self._public(name) for name in self._traced.states]
        if len(set(public)) < len(public) or "step" in public:
            raise TypeError(f"{type(self).__name__}.state_names gives two states one name, or one the name 'step': {', '.join(public)}")
        initial = [value for value in self._traced.initial.values() if isinstance(value, str)]
        self._names = tuple(dict.fromkeys(["lr", *self._traced.hyperparameters, *initial, "weight_decay"]))
        self._kinds = kinds_of(chosen.ranges)
        self._base: dict[str, Any] = {"weight_decay": 0.0, "maximize": self._maximize}
        for name, value in merged.items():
            if name not in self._names:
                if name not in hyperparameters and (chosen is not type(self).rule or name in chosen.hyperparameters):
                    continue  # a default that this rule, or this variant of it, has no use for
                raise suggest(type(self).__name__, name, [*self._names, *chosen.options, *OWN_KEYWORDS], ELSEWHERE)
            self._base[name] = checked_or_schedule(name, value, kinds=self._kinds)
        missing = [name for name in self._names if name not in self._base]
        if missing:
            raise HyperparameterError(f"{type(self).__name__} needs {', '.join(f'{name}=…' for name in missing)}: the rule has no default for it")

        self._groups = Groups(self._names, self._coupling, [*chosen.options, *OWN_KEYWORDS], self._kinds)
        self._guard = threading.Lock()
        self._in_use = False
        self._following = None
        self._grouped, groups = read_structure(params)
        self._add(groups)
        begin_recording(self, record)
        self._attributes = frozenset((*self.__dict__, "_attributes")) - before  # ours; what else an object has belongs to its subclass

    def record(self, record: Any) -> None:
        """Record the steps from here on, as the keyword of this name does from the first; None: no more."""
        self._stepper.observer = self._observer_of(record) if record is not None else None

    def _observer_of(self, record: Any) -> Any:
        """Who records the steps."""
        from ..record.observer import observer

        stepper = self._stepper
        about = {
            "optimizer": type(self).__name__, "rule": self._traced.name, "coupling": self._coupling, "host": "arrays", "engine": self._engine.name,
            "isa": self._engine.isa, "threads": self._threads, "clip_norm": stepper.clip_norm, "clip_value": stepper.clip_value,
            "nonfinite": stepper.nonfinite,
            "groups": [{name: value if not callable(value) else repr(value) for name, value in group.items()} for group in self.groups],
        }  # fmt: skip
        rows = (
            {"name": row.name, "shape": list(row.shape), "dtype": str(row.view.dtype), "elements": row.view.size, "group": row.group}
            for row in self._rows
        )
        return observer(self, record, about, rows)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        defaults: Any = cls.defaults
        if not isinstance(defaults, Mapping) or any(name in OWN_KEYWORDS or not isinstance(name, str) for name in defaults):
            raise TypeError(
                f"{cls.__name__}.defaults must be a mapping of hyperparameters and options, not {defaults!r:.200}; other keywords have theirs"
            )
        for name in cls.__dict__:
            if isinstance(vars(Optimizer).get(name), _Elsewhere):
                raise TypeError(f"{cls.__name__}.{name} would do nothing: write defaults = {{**{cls.__mro__[1].__name__}.defaults, {name!r}: …}}")
        shared = [p for p in inspect.signature(Optimizer.__init__).parameters.values() if p.name not in ("self", "hyperparameters")]
        own = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value) for name, value in cls.defaults.items()]
        first = [p for p in shared if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
        rest = [p for p in shared if p.kind is inspect.Parameter.KEYWORD_ONLY and p.name != "rule"]
        cls.__signature__ = inspect.Signature([*first, *own, *rest])  # type: ignore[attr-defined]

    # --- parameters and groups -------------------------------------------------------------------------------------

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The groups: the names of their parameters and their hyperparameters, which may be changed between steps."""
        return self._groups.settings

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
        for index, (named, given, _) in enumerate(groups, len(self.groups)):
            settings = self._groups.read(index, given, self._base)
            rows = read_rows(named, index)
            settings_of.append({"params": [row.name for row in rows], **settings})
            added += rows
        existing = [*self._rows, *added]
        if not existing:
            raise ParameterError("there is nothing to optimize: empty parameter list")
        refuse_shared(existing)
        refuse_strangers(self._no_decay, {row.name: row.array for row in existing}, "an array")
        spared = predicate(self._no_decay)
        for row in added:
            row.decayed = not spared(row.name, row.array)

        def first(row: Row, names: Iterable[str]) -> list[float]:
            return [self._initial(name, settings_of[row.group - len(self.groups)]) for name in names]

        starts = [first(row, self._program.states) for row in added]
        for row, own in zip(added, starts, strict=True):
            for name, value in zip(self._program.states, own, strict=True):
                if row.view.dtype == np.float32 and abs(value) > FLOAT32_LARGEST:
                    raise HyperparameterError(f"the state {name!r} of parameter {row.name!r} would start at {value:g}, which is infinite in float32")
        numbers = np.array([[0.0, *first(row, self._traced.scalar_states)] for row in added])  # side by side: all are visited in every step
        self._groups.add(settings_of, [group.structure for group in groups], existing)
        allocate(added, starts)
        for row, own in zip(added, numbers, strict=True):
            row.numbers = own
        self._rows[:] = existing
        self._stepper.rebuild(self._traced, self._coupling, len(self.groups))

    def _initial(self, state: str, values: Mapping[str, Any]) -> float:
        start = self._traced.initial[state]
        return at(start, values[start], 1, self._kinds) if isinstance(start, str) else float(start)

    # --- the step --------------------------------------------------------------------------------------------------

    @alone
    def step(self, grads: Any, *, measure: bool | Iterable[Measure] = False, loss: float | None = None) -> StepReport:
        """Update the parameters in place from their gradients; all of it, or nothing.

        Args:
            grads: Gradients in the shape in which the parameters were given: one array, a sequence, a mapping of the same
                names, or a list with one such entry per group. None leaves a parameter and its state alone. float32
                gradients of float64 parameters are converted; nothing is ever broadcast or rounded. A `Rows` in the place of an array
                is a gradient for some rows of its parameter, and steps these alone.
            measure: Also return what can be seen inside the step, per tensor: all of `openadam.measures`, and your own that are given.
            loss: The loss of these gradients, to stand in the report and in a recording.

        Raises:
            GradientError: A gradient cannot be used: wrong shape, dtype or structure, or (unless ``nonfinite`` says
                otherwise) not finite. Parameters, states and counters are as they were.
            AliasError: A gradient shares memory with a parameter or a state.
            HyperparameterError: A group's setting, or what a schedule returned, is out of range; or the loss is not one number.

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
        told = told_loss(loss) if loss is not None else None
        try:
            gradients = self._flatten(grads)
        except GradientError as error:
            self._groups.check_places()  # groups that were moved would be blamed on the gradients
            self._refused(error)
            raise
        stepper = self._stepper
        try:
            self._groups.tell(stepper, self.steps + 1)
            stepper.read(gradients)
            if not stepper.table.active_count:
                self._idle()
                return StepReport(self.steps, 0.0, 1.0, False, Measured() if measure is not False else None, loss=told)
            take = stepper.take if stepper.observer is None and stepper.followed is None else stepper.take_and_tell
            return take(self._threads, measure=measure, loss=told)
        except OpenAdamError as error:
            self._refused(error)
            raise
        finally:
            stepper.forget()

    def mark(self, text: str) -> None:
        """Note an event in the recording, if there is one: a change of what is learnt, say. The steps after it are observed, all of them."""
        if self._stepper.observer is not None:
            self._stepper.observer.mark(self.steps, text)

    def _flatten(self, grads: Any) -> list[Any]:
        """Gradients in the order of the parameters; refuses another structure."""
        structures = self._groups.structures
        if not self._grouped:
            return structures[0].flatten(grads)
        if not isinstance(grads, (list, tuple)) or len(grads) != len(structures):
            count = f"{len(structures)} group{'s' if len(structures) > 1 else ''}"
            what = "" if len(structures) > 1 else " (a mapping with the key 'params' is one)"
            raise GradientError(f"the parameters were given in {count}{what}: give a list with the gradients of each, not {describe(grads)}")
        return [gradient for structure, part in zip(structures, grads, strict=True) for gradient in structure.flatten(part)]

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
        """The parameters by name: the arrays that were given. To change one, write into it; another array is not taken."""
        return states.Parameters({row.name: row.array for row in self._rows})

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
            counts=(self.steps, self.skipped, self._stepper.skips_in_a_row), finite=self._stepper.nonfinite != "propagate",
            check=self._groups.check,
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

    @alone
    def reset(self, names: str | Array | Iterable[str | Array] | None = None, *, moments: bool = True, steps: bool = True) -> None:
        """Let parameters forget: begin their states anew, or count their steps from 1 again, or both; all of it, or nothing.

        When what is learnt changes at a stroke (a target network, a new task), old moments mislead. Asadi et al., 2023, begin
        all anew; Ellis et al., 2024 (Adam-Rel), keep the moments and count the steps anew, so that the bias correction
        makes the first steps small. Settings, and the number of steps by which schedules go, stay as they are.

        Args:
            names: Which parameters, by name, or the arrays themselves; default all.
            moments: Begin what the rule remembers of each element anew.
            steps: Count each parameter's steps anew, and whatever else the rule remembers that is one number for it.

        Raises:
            ParameterError: A name or an array is that of no parameter.
            HyperparameterError: Neither is asked for.

        >>> import numpy as np, openadam
        >>> opt = openadam.Adam({"w": np.zeros(2)}, beta1=0.9)
        >>> _ = opt.step({"w": np.array([2.0, -4.0])})
        >>> opt.reset(moments=False)
        >>> opt.state["w"]["step"], opt.state["w"]["exp_avg"], opt.steps
        (0, array([ 0.2, -0.4]), 1)
        """
        refuse_no_reset(moments, steps)
        targets: list[Any] = []
        values: list[Any] = []
        for row in self._chosen_rows("reset", names):
            settings = self.groups[row.group]
            if moments:
                targets += row.states
                values += [self._initial(name, settings) for name in self._program.states]
            if steps:
                targets.append(row.numbers)
                values.append(np.array([0.0, *(self._initial(name, settings) for name in self._traced.scalar_states)]))
        engines.assign_all(targets, values)
        self._states_changed()

    def _states_changed(self) -> None:
        if self._stepper.foresight is not None:
            self._stepper.foresight.forget()

    def _chosen_rows(self, what: str, names: Any) -> list[Row]:
        """The rows that are meant by names or arrays, each once; None: all."""
        rows = {row.name: row for row in self._rows}
        if names is None:
            return [*rows.values()]
        by_array = {id(row.array): row.name for row in self._rows}
        if not isinstance(names, (str, np.ndarray, Iterable)):
            raise ParameterError(f"{what}: {names!r:.80} ({type(names).__name__}) is neither a parameter or its name nor a list of these")
        wanted: list[Any] = [
            name if isinstance(name, str) else by_array.get(id(name), name) for name in ([names] if isinstance(names, (str, np.ndarray)) else names)
        ]
        for name in wanted:
            if not isinstance(name, str):
                raise ParameterError(
                    f"{what}: an object of type {type(name).__name__} is no parameter of this optimizer; give names, or its own arrays"
                )
            if name not in rows:
                raise ParameterError(f"{what}: no parameter is called {name!r}; {nearest(name, rows)}")
        return [rows[name] for name in dict.fromkeys(wanted)]

    def _followed_as(self, what: str, name: Any) -> tuple[str, str, tuple[int, ...]]:
        (row,) = self._chosen_rows(what, [name])
        return row.name, row.name, row.shape

    def _take_over(self, loaded: states.Loaded, parameters: Mapping[str, Array] = MappingProxyType({})) -> None:
        """Commit what has been checked."""
        own = self.params
        targets: list[Any] = [own[name] for name in parameters]
        values: list[Any] = list(parameters.values())
        for row, arrays, numbers in zip(self._rows, loaded.arrays, loaded.numbers, strict=True):
            targets += [*row.states, row.numbers]
            values += [*arrays, numbers]
        stepper = self._stepper
        steps, skipped, in_a_row = loaded.counts
        targets += [stepper.table.counts, stepper.latest_skips, self.groups]
        engines.assign_all(targets, [*values, np.array([steps, skipped]), [steps, in_a_row], loaded.groups])
        self._states_changed()

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
        self._groups.check_places()
        parts = []
        arrays = iter(self.params.values())
        for group, structure in zip(self.groups, self._groups.structures, strict=True):
            parts.append({**group, "params": structure.build(arrays)})
        stepper = self._stepper
        whole: dict[str, Any] = {
            "rule": self._rule, "coupling": self._coupling, "no_decay": self._no_decay,
            "clip_norm": stepper.clip_norm, "clip_value": stepper.clip_value, "nonfinite": stepper.nonfinite,
            "max_skips": stepper.max_skips, "threads": self._threads, **self._chosen, **self._base, **self._options,
        }  # fmt: skip
        more = {name: value for name, value in self.__dict__.items() if name not in self._attributes}
        return _rebuild, (type(self), parts, self._grouped, whole, self.state_dict()), more or None

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} ({self._traced.name}, {self._coupling} decay, {self._engine.name} {self._engine.isa}), {self.steps} steps"]
        for index, group in enumerate(self.groups):
            numbers = ", ".join(f"{name}={group.get(name)!r}" for name in self._names)
            elements = sum(row.view.size for row in self._rows if row.group == index)
            lines.append(f"  group {index}: {len(group['params'])} tensors, {elements:,} elements; {numbers}")
            undecayed = [row.name for row in self._rows if row.group == index and not row.decayed]
            if undecayed:
                lines.append(f"    without weight decay: {', '.join(undecayed)}")
        stepper = self._stepper
        most = f" (at most {stepper.max_skips} in a row)" if stepper.max_skips is not None else ""
        lines.append(
            f"  nonfinite={stepper.nonfinite!r}{most}, clip_norm={stepper.clip_norm}, clip_value={stepper.clip_value}, threads={self._threads}"
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
for _name in ("betas", "learning_rate"):
    setattr(Optimizer, _name, _Elsewhere(_name, "hyperparameters are settings of each group, by the family's names: opt.groups[0]"))
for _name in ("clip_norm", "clip_value", "nonfinite", "max_skips", "no_decay", "threads", "engine", "isa"):
    setattr(Optimizer, _name, _Elsewhere(_name, "it is chosen when the optimizer is made; make another and give it this one's state_dict()"))


def _rebuild(cls: type[Optimizer], parts: list[dict[str, Any]], grouped: bool, whole: dict[str, Any], state: dict[str, Any]) -> Optimizer:
    optimizer = cls.__new__(cls)
    Optimizer.__init__(optimizer, parts, **whole)  # a subclass's own may want other arguments
    optimizer._grouped = grouped
    optimizer.load_state_dict(state)
    return optimizer
