"""What all the optimizers have in common on torch's side: construction, the step, loading, copying, in torch's conventions."""

from __future__ import annotations

import ctypes
import inspect
import itertools
import operator
import os
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, overload

import torch
from torch import Tensor

from .. import engine as engines
from ..errors import HyperparameterError, HyperparameterWarning, ParameterError
from ..hyperparameters import checked, refuse_no_reset
from ..measures import Measure
from ..reports import StepReport
from ..step import alone, as_loss, begin_recording, check_dtype, told_loss
from ..worked.following import Followable
from . import loading
from .members import Member
from .memory import can_be_filled, has_numbers, is_memory, real
from .options import (
    Chosen,
    Engine,
    NoDecay,
    NonFinite,
    Predicate,
    accepted,
    as_python_numbers,
    as_recorded,
    check_kinds,
    check_names,
    chosen_parameters,
    first_narrow,
    read_options,
    refuse_modes,
    refuse_unknown,
    torch_class,
)
from .shards import Shards, is_distributed, is_flattened
from .table import SkippedByScaler, TensorStepper

if TYPE_CHECKING:
    _Base = torch.optim.Optimizer
else:
    _Base = object

__all__ = ["Host"]

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
FIXED = (float, int, bool, str, tuple, type(None))  # values that do not change in place


def uncompiled(method: F) -> F:
    """A method that `torch.compile` leaves as it is."""
    return torch.compiler.disable(method)  # type: ignore[no-any-return, no-untyped-call]


class Host(Followable, _Base):
    """The step of openadam in the place of torch's; stands before a class of ``torch.optim`` in the order of bases.

    Constructor, groups, hooks, ``zero_grad`` and ``repr`` are torch's own. The keywords that come on top, all of them optional:

    Args:
        clip_norm: Largest global norm of all gradients together, over all processes that hold a part; None for no limit.
        clip_value: Largest magnitude of each element of a gradient, after ``clip_norm``; None for no limit.
        nonfinite: What a NaN or infinite gradient does: ``raise`` (default) refuses the step, ``skip`` skips and counts it,
            ``propagate`` lets it through as torch does.
        max_skips: The most steps in a row that are skipped, by ``nonfinite="skip"`` or because a scaler says so; the next raises
            `TooManySkipsError`. None for no limit. How many they are is in the state dict.
        no_decay: What weight decay leaves alone: names (if ``named_parameters()`` were given), tensors, or a predicate of
            (name, tensor).
        threads: Most threads of a step; default ``OPENADAM_NUM_THREADS``, else ``torch.get_num_threads()``.
        sharded: Whether plain tensors given here are a part of those of a model, the rest of which other processes of the default
            group hold, as under ``ZeroRedundancyOptimizer``; norm and checks then go over all of them. DTensors tell by themselves.
        engine: ``native``, or ``interpreter``, which runs the same rules instruction by instruction, or ``graph`` for them in torch
            operations, which also serve whatever the native kernels do not reach, or ``compiled`` for these under ``torch.compile``;
            default native where there is a kernel, else interpreted, and without native code, for what lies in this machine's memory, the
            NumPy reference.
        record: Where to record what the steps see: a path, an `openadam.record.Recorder`, or a pair of one of these and a name for
            this optimizer; default ``OPENADAM_RECORD``, else nowhere. A recorded run is the same run, to the bit.
    """

    member: Member
    _step_supports_amp_scaling = True  # GradScaler then leaves unscaling and skipping to the step
    _counted = (0, 0, 0)  # steps taken, skipped, and skipped in a row before this object had a stepper: in a copy
    _observer: Any  # who records the steps
    last_step: StepReport | None = None
    """What the last step saw: number, gradient norm, clip factor, whether it was skipped, and the measures if they were asked for."""

    clip_norm: Chosen[float | None] = Chosen()
    clip_value: Chosen[float | None] = Chosen()
    nonfinite: Chosen[NonFinite] = Chosen()
    max_skips: Chosen[int | None] = Chosen()
    no_decay: Chosen[list[str | Tensor] | Predicate] = Chosen()
    threads: Chosen[int | None] = Chosen()
    sharded: Chosen[bool] = Chosen()
    engine: Chosen[Engine | None] = Chosen()

    def __init__(
        self,
        params: Any,
        *arguments: Any,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        nonfinite: NonFinite = "raise",
        max_skips: int | None = None,
        no_decay: NoDecay = (),
        threads: int | None = None,
        sharded: bool = False,
        engine: Engine | None = None,
        record: Any = None,
        **settings: Any,
    ) -> None:
        options = read_options(
            clip_norm=clip_norm, clip_value=clip_value, nonfinite=nonfinite, max_skips=max_skips, no_decay=no_decay, threads=threads,
            sharded=sharded, engine=engine,
        )  # fmt: skip
        if engine is None and engines.engine_of_environment() != "reference" and not engines.native_isas():
            engines.warn_of_no_kernels(stacklevel=3)
        if not self.member.decays and not (isinstance(no_decay, tuple) and not no_decay):
            raise HyperparameterError(f"no_decay={no_decay!r:.80} would do nothing: {type(self).__name__} has no weight decay")
        accepts = self._accepts()
        refuse_unknown(type(self).__name__, accepts, settings, OPTIONS)
        refuse_modes(type(self).__name__, settings)
        arguments = check_kinds(accepts, self.member, arguments, settings)
        if isinstance(params, (set, frozenset)):
            raise TypeError("optimizer parameters need to be organized in ordered collections: a set has no order; give a list")
        self._options: dict[str, Any] = options
        self._begin()
        self._construct(params, *arguments, **settings)
        as_python_numbers(self.defaults)
        for own in self.state.values():  # torch's Adagrad makes its sum at once, in the parameter's dtype; one of 16 bits would stall
            if own["sum"].dtype in (torch.bfloat16, torch.float16):
                own["sum"] = torch.full_like(own["sum"], self.defaults["initial_accumulator_value"], dtype=torch.float32)
        self._check(self.param_groups)
        check_names(options["no_decay"], self.param_groups)
        self._constructed = True
        begin_recording(self, record)

    def _accepts(self) -> list[str]:
        """The keywords beside those that come on top."""
        return accepted(type(self))

    def _construct(self, params: Any, *arguments: Any, **settings: Any) -> None:
        """As torch does."""
        super().__init__(params, *arguments, **settings)

    def record(self, record: Any) -> None:
        """Record the steps from here on, as the keyword of this name does from the first; None: no more."""
        self._observer = self._observer_of(record) if record is not None else None
        if self._stepper is not None:
            self._stepper.observer = self._observer

    @property
    def steps_taken(self) -> int:
        """Steps that were taken, by this object's own count."""
        return self._stepper.steps if self._stepper is not None else self._counted[0]

    def _observer_of(self, record: Any) -> Any:
        """Who records the steps."""
        from ..record.observer import observer

        groups, tensors = as_recorded(self.param_groups)
        about = {
            "optimizer": type(self).__name__, "rule": self.member.traced(self.param_groups[0]).name,
            "coupling": self.member.coupling(self.param_groups[0]), "host": "torch", "torch": torch.__version__,
            **{name: value for name, value in self._options.items() if name != "no_decay"},
            "groups": groups,
        }  # fmt: skip
        return observer(self, record, about, tensors)

    def mark(self, text: str) -> None:
        """Note an event in the recording, if there is one: a change of what is learnt, say. The steps after it are observed, all of them."""
        if self._observer is not None:
            self._observer.mark(self.steps_taken, text)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__module__ == __package__ and cls.__doc__ and Host.__doc__:  # what comes on top is told by each class's help, too
            cls.__doc__ = f"{inspect.cleandoc(cls.__doc__)}\n\n{inspect.cleandoc(Host.__doc__).split(chr(10) * 2, 1)[1]}"
        if "__init__" not in cls.__dict__:
            theirs = list(inspect.signature(torch_class(cls).__init__).parameters.values())[1:]
            ours = inspect.signature(Host.__init__).parameters
            cls.__signature__ = inspect.Signature([*theirs, *(ours[name] for name in OPTIONS)])  # type: ignore[attr-defined]

    def _begin(self) -> None:
        """What lives beside torch's own attributes, and is made anew in a copy."""
        self._guard = threading.Lock()
        self._in_use = False
        self._stepper: TensorStepper | None = None
        self._observer = None
        self._following = None
        self._told: list[Any] = []  # the groups' settings as they were when the stepper was told; empty: tell it
        self._still = False  # whether all learning rates are 0

    # --- groups ----------------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as torch does; its values are checked. Its parameters start at step 1."""
        if "_constructed" not in self.__dict__:
            super().add_param_group(param_group)
            return
        before = len(self.param_groups)
        super().add_param_group(param_group)
        try:
            self._check(self.param_groups)
        except BaseException:
            del self.param_groups[before:]
            raise

    @property
    def skipped(self) -> int:
        """Steps skipped so far because of gradients that are not finite; a loaded state dict starts it anew."""
        return self._stepper.skipped if self._stepper is not None else self._counted[1]

    def _check(self, groups: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """The settings of each group, as numbers under the family's names."""
        settings: list[dict[str, Any]] = []
        for index, group in enumerate(groups):
            as_python_numbers(group)
            for name, value in self._options.items():
                if name in group and group[name] is not value and group[name] != value:
                    raise HyperparameterError(f"{name} in group {index}: it is chosen when the optimizer is made, and is the same for all groups")
            refuse_modes(type(self).__name__, group)
            values = self.member.settings(index, group)
            check_dtype(index, {name: value for name, value in values.items() if name != "maximize"}, first_narrow(group))
            if self.member.coupling(group) == "decoupled" and values["lr"] * values["weight_decay"] > 1:
                overshoot = values["lr"] * values["weight_decay"]
                warnings.warn(f"lr * weight_decay = {overshoot:g} in group {index}: decay overshoots zero", HyperparameterWarning, stacklevel=3)
            settings.append(values)
        return settings

    def _tell(self, stepper: TensorStepper) -> None:
        """Tell the stepper the settings for the coming step, where anything has changed. Some values may change in place."""
        now = self._settings_now()
        if self._told and len(now) == len(self._told) and all(map(operator.is_, now, self._told)):
            return
        self._told = []
        settings = self._check(self.param_groups)
        stepper.tell(self.param_groups, settings)
        self._still = all(values["lr"] == 0 for values in settings)
        now = self._settings_now()
        if all(isinstance(value, FIXED) for value in now):
            self._told = now

    def _settings_now(self) -> list[Any]:
        now: list[Any] = []
        for group in self.param_groups:
            now += map(group.get, self.member.keys)
            now.append(len(group))
        return now

    # --- the step --------------------------------------------------------------------------------------------------

    @overload
    def step(self, closure: None = None, *, measure: bool | Iterable[Measure] = False, loss: Any = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], T], *, measure: bool | Iterable[Measure] = False, loss: Any = None) -> T: ...
    @uncompiled
    def step(self, closure: Callable[[], Any] | None = None, *, measure: bool | Iterable[Measure] = False, loss: Any = None) -> Any:
        """Perform a single optimization step: all of it, or nothing.

        Args:
            closure: Reevaluates the model and returns the loss; called once.
            measure: Also look at what can be seen inside the step, per tensor: ``last_step.measures`` then has all of `openadam.measures`,
                and your own that are given.
            loss: The loss of these gradients, where no closure returns it, to stand in `last_step` and in a recording.

        Returns:
            What the closure returned. What the step itself saw is in `last_step`.

        Raises:
            GradientError: A gradient cannot be used: sparse, of another shape, or (unless ``nonfinite`` says otherwise) not finite.
                Parameters, states and counters are as they were, on every process that takes part.
            ParameterError, AliasError: A parameter or a state is not what a step can change.
            HyperparameterError: A group's setting is out of range, or the loss that is told is not one number.
        """
        if loss is not None:
            loss = told_loss(loss)
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        try:
            self._take(measure, result if loss is None else loss)
        except BaseException as error:
            # A scaler takes these away after a step; after one that was refused, a later step would be scaled by them.
            for name in ("grad_scale", "found_inf"):
                self.__dict__.pop(name, None)
            if isinstance(error, Exception):
                self._refused(error)
            raise
        return result

    @alone
    def _take(self, measure: bool | Iterable[Measure], loss: Any) -> None:
        stepper = self._stepper
        if loss is None and self._observer is not None:
            loss = self.__dict__.pop("_told_loss", None)  # by whoever observes
        told = as_loss(loss) if loss is not None else None
        try:
            if not isinstance(self.param_groups, Sequence) or not self.param_groups:
                raise ParameterError(f"the optimizer's param_groups are {self.param_groups!r}, and must be a list of at least one group")
            if stepper is None:
                stepper = self._stepper = self._make_stepper()
                stepper.observer, stepper.followed = self._observer, self._following
            self._tell(stepper)
            own = self.__dict__
            found_inf, grad_scale = own.get("found_inf"), own.get("grad_scale")
            stepper.skips = found_inf is not None and _number(found_inf) != 0
            if stepper.skips and not stepper.exchanges:
                self._skip(stepper, told)
                return
            scale = 1.0
            if grad_scale is not None:
                scale = 1.0 / checked("grad_scale", _number(grad_scale)) if _number(grad_scale) else float("inf")
                if scale == float("inf"):
                    raise HyperparameterError(f"grad_scale={_number(grad_scale)} cannot be divided by")
            if not isinstance(self.state, Mapping):
                raise ParameterError(f"the optimizer's state is {type(self.state).__name__}, not a dict; give it a dict of the parameters' states")
            stepper.read(self.param_groups, self.state, self._threads())
        except BaseException as error:
            if stepper is not None:
                stepper.forget()
            if isinstance(error, Exception):
                self._tell_others()
            raise
        try:
            if not stepper.active_count and not stepper.shards:
                self._idle()
                self.last_step = StepReport(stepper.steps, 0.0, 1.0, False, loss=told)
                return
            # torch.distributed.checkpoint takes a step at lr = 0 over gradients of zeros to have the states made. To count it would spoil
            # the bias correction of all that follow. Whether it is the first, all processes say together.
            only_makes_states = None
            if self._still:
                stepper.is_new = stepper.begins()
                only_makes_states = (lambda: stepper.is_new) if stepper.is_new or stepper.shards else None
            take = stepper.take if stepper.observer is None and stepper.followed is None else stepper.take_and_tell
            self.last_step = take(
                self._threads(), scale=scale, measure=measure, loss=told, before_commit=stepper.register, only_makes_states=only_makes_states
            )
        except SkippedByScaler:
            self._skip(stepper, told)
        finally:
            stepper.forget()

    def _skip(self, stepper: TensorStepper, loss: float | None) -> None:
        self.last_step = stepper.skip(float("nan"), loss=loss)

    def _tell_others(self) -> None:
        """That this process refuses the step, before the first word about it: those who hold the rest would wait for ever."""
        if self._options["nonfinite"] == "propagate" and self._options["clip_norm"] is None and not self._still:
            return  # nobody asks
        try:
            shards = Shards([p for group in self.param_groups or () for p in group["params"]], plain_too=self._options["sharded"])
        except ParameterError:  # who the others are is what could not be found out
            return
        if shards:
            shards.refuse()

    def _make_stepper(self) -> TensorStepper:
        options = self._options
        own_threads = options["threads"] is not None or bool(os.environ.get("OPENADAM_NUM_THREADS"))
        native = None
        if options["engine"] in (None, "native", "interpreter"):
            native = engines.native_engine(0 if own_threads else _team_of_torch(), interpreter=options["engine"] == "interpreter")
        how = options["engine"] if options["engine"] in ("graph", "compiled") else "blocks"
        return TensorStepper(
            self.member, native, how=how, no_decay=options["no_decay"], sharded=options["sharded"],
            clip_norm=options["clip_norm"], clip_value=options["clip_value"], nonfinite=options["nonfinite"], max_skips=options["max_skips"],
            counted=self._counted,
        )  # fmt: skip

    def _threads(self) -> int:
        if self._options["threads"] is not None:
            return int(self._options["threads"])
        if os.environ.get("OPENADAM_NUM_THREADS"):
            return engines.resolve_threads(None)
        return min(torch.get_num_threads(), engines.MAX_THREADS)

    @uncompiled
    @alone
    def reset(self, params: str | Tensor | Iterable[str | Tensor] | None = None, *, moments: bool = True, steps: bool = True) -> None:
        """Let parameters forget: begin their states anew, or count their steps from 1 again, or both.

        When what is learnt changes at a stroke (a target network, a new task), old moments mislead. Asadi et al., 2023, begin
        all anew; Ellis et al., 2024 (Adam-Rel), keep the moments and count the steps anew, so that the bias correction
        makes the first steps small.

        Args:
            params: Which: names (if ``named_parameters()`` were given) or tensors; default all.
            moments: Begin what is remembered of each element anew.
            steps: Count each parameter's steps anew, and begin whatever else is one number for it (``mu_product``).

        Raises:
            ParameterError: A name or tensor is no parameter, or a state cannot be written; nothing was changed.
            HyperparameterError: Neither is asked for, or steps alone where none are counted (SGD).

        >>> import torch
        >>> from openadam.torch import Adam
        >>> p = torch.tensor([1.0, -2.0], requires_grad=True)
        >>> optimizer = Adam([p])
        >>> p.grad = torch.tensor([2.0, -4.0])
        >>> optimizer.step()
        >>> optimizer.reset(moments=False)
        >>> optimizer.state[p]["step"], optimizer.state[p]["exp_avg"]
        (tensor(0.), tensor([ 0.2000, -0.4000]))
        """
        refuse_no_reset(moments, steps)
        if steps and not moments and not self.member.counts:
            raise HyperparameterError(f"{type(self).__name__} counts no steps that could be begun anew; leave moments=False out")
        filled: list[tuple[Tensor, float]] = []
        dropped: list[Any] = []
        for group, name, p in chosen_parameters(params, self.param_groups):
            state = self.state.get(p)
            if not state:
                continue
            if moments and steps and not self.member.made_at_once:
                dropped.append(state)
                continue
            for key, first in self.member.first_values(group, moments=moments, steps=steps):
                tensor = state.get(key)
                if tensor is None:
                    continue
                if not isinstance(tensor, Tensor) or not can_be_filled(tensor):
                    raise ParameterError(f"reset: the state {key!r} of parameter {name!r} is no tensor that can be written; nothing was changed")
                filled.append((tensor, first))
        with torch.no_grad():  # no Python code runs between the fills, so no signal handler does
            deque(itertools.starmap(Tensor.fill_, filled), maxlen=0)
        for state in dropped:
            for key in self.member.state_keys.intersection(state):
                del state[key]

    def _followed_as(self, what: str, name: Any) -> tuple[int, str, tuple[int, ...]]:
        ((_, called, p),) = chosen_parameters([name], self.param_groups, what)
        if is_distributed(p) or is_flattened(p):
            raise ParameterError(f"{what}: parameter {called!r} is spread over processes, of which each holds a part; its elements are not followed")
        if not is_memory(p) or not has_numbers(p):
            raise ParameterError(f"{what}: parameter {called!r} ({type(p).__name__}) is no plain memory, in which an element could be looked at")
        return id(p), called, tuple(real(p.detach()).shape)

    # --- state -----------------------------------------------------------------------------------------------------

    @uncompiled
    def state_dict(self) -> dict[str, Any]:
        """Torch's state dict; with ``max_skips``, also ``skips_in_a_row``, and of a rule of one's own what it computes, as ``program``; torch's
        classes leave them aside.
        """
        state = super().state_dict()
        if self.member.program is not None:
            state["program"] = self.member.program
        if self.member.counts_in_ints:
            for key, own in state["state"].items():
                if isinstance(own, dict) and isinstance(own.get("step"), Tensor):
                    state["state"][key] = {**own, "step": int(own["step"])}
        if self._options["max_skips"] is not None:
            state["skips_in_a_row"] = self._stepper.skips_in_a_row if self._stepper is not None else self._counted[2]
        return state

    @uncompiled
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load the optimizer state: of this class or of torch's, matched by parameter names where both sides have them.

        All of it, or nothing. States keep the dtype in which they were stored; nothing is shared with ``state_dict``.

        Raises:
            CheckpointMismatchError: It belongs to other parameters or to another optimizer.
            CheckpointCorruptError: A value is impossible: a negative step or second moment, a moment that is not finite.
        """
        given: Any = dict(state_dict) if isinstance(state_dict, Mapping) else state_dict
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            changed = pre_hook(self, given)
            if changed is not None:
                given = changed
        in_a_row = loading.skips_in_a_row(given)
        state, groups = loading.read(
            self.param_groups, self.defaults, self.member, given, whose=type(self).__name__, finite=self._options["nonfinite"] != "propagate"
        )
        taken = max((int(own["step"]) for own in state.values() if isinstance(own, dict) and "step" in own), default=0)
        self.__setstate__({"state": state, "param_groups": groups, "_counted": (taken, 0, in_a_row)})
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def __getstate__(self) -> dict[str, Any]:
        stepper = self._stepper
        counted = (stepper.steps, stepper.skipped, stepper.skips_in_a_row) if stepper is not None else self._counted
        own = {"_options": self._options, "last_step": self.last_step, "_constructed": True, "_counted": counted}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._begin()


def _team_of_torch() -> int:
    """The address by which torch's own threads do our work too, or 0.

    After a backward pass they stay awake for some milliseconds, on the processors that threads of ours would need. Threads that do not
    exist are not there because none was needed yet, or because this process was forked: then they would never answer.
    """
    if not sys.platform.startswith("linux") or len(os.listdir("/proc/self/task")) < 2:
        return 0
    parallel = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
    return ctypes.cast(parallel, ctypes.c_void_p).value or 0 if parallel is not None else 0


def _number(value: Any) -> float:
    if hasattr(value, "full_tensor"):
        value = value.full_tensor()
    return float(value)


OPTIONS = [*(name for name, value in vars(Host).items() if isinstance(value, Chosen)), "record"]
"""What comes on top of torch's arguments."""
