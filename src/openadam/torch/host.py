"""What all the optimizers have in common on torch's side: construction, the step, loading, copying, in torch's conventions."""

from __future__ import annotations

import ctypes
import difflib
import inspect
import numbers
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from .. import engine as engines
from ..errors import HyperparameterError, HyperparameterWarning, UnknownHyperparameterError
from ..hyperparameters import checked, suggest
from ..step import StepReport, alone, check_dtype
from . import loading
from .graph import GraphEngine, arithmetic_of
from .members import Member
from .rows import SkippedByScaler, TensorStepper
from .shards import Shards

if TYPE_CHECKING:
    _Base = torch.optim.Optimizer
else:
    _Base = object

__all__ = ["Host"]

ENGINES = (None, "native", "graph", "compiled")


class Host(_Base):
    """The step of openadam in the place of torch's; stands before a class of ``torch.optim`` in the order of bases.

    Constructor, groups, hooks, ``zero_grad`` and ``repr`` are torch's own. The keywords that come on top, all of them optional:

    Args:
        clip_norm: Largest global norm of all gradients together, over all processes that hold a part; None for no limit.
        nonfinite: What a NaN or infinite gradient does: ``raise`` (default) refuses the step, ``skip`` skips and counts it,
            ``propagate`` lets it through as torch does.
        no_decay: What weight decay leaves alone: names (if ``named_parameters()`` were given), tensors, or a predicate of
            (name, tensor).
        threads: Most threads of a step; default ``OPENADAM_NUM_THREADS``, else ``torch.get_num_threads()``.
        sharded: Whether plain tensors given here are a part of those of a model, the rest of which other processes of the default
            group hold, as under ``ZeroRedundancyOptimizer``; norm and checks then go over all of them. DTensors tell by themselves.
        engine: ``native``, or ``graph`` for the same rules in torch operations, which also serve whatever the native kernels do not
            reach, or ``compiled`` for these under ``torch.compile``; default native where there is a kernel.
    """

    member: ClassVar[Member]
    _step_supports_amp_scaling = True  # GradScaler then leaves unscaling and skipping to the step
    _counted = (0, 0)  # steps taken and skipped before this object had a stepper: in a copy
    last_step: StepReport | None = None
    """What the last step saw: number, gradient norm, clip factor, whether it was skipped."""

    def __init__(
        self,
        params: Any,
        *arguments: Any,
        clip_norm: float | None = None,
        nonfinite: str = "raise",
        no_decay: str | Tensor | Iterable[Any] | Callable[[str, Tensor], bool] = (),
        threads: int | None = None,
        sharded: bool = False,
        engine: str | None = None,
        **settings: Any,
    ) -> None:
        if nonfinite not in ("raise", "skip", "propagate"):
            raise HyperparameterError(f"nonfinite={nonfinite!r} is none of 'raise', 'skip', 'propagate'")
        if engine not in ENGINES:
            raise HyperparameterError(f"engine={engine!r} is none of {', '.join(map(repr, ENGINES))}")
        if engine == "native" and engines.native_or_reference().name != "native":
            raise HyperparameterError("engine='native': there is no native code here; leave it out to run on torch operations")
        if not callable(no_decay):
            if not isinstance(no_decay, Iterable):
                raise HyperparameterError(f"no_decay={no_decay!r} is neither names, nor tensors, nor a function of (name, tensor)")
            no_decay = [no_decay] if isinstance(no_decay, (str, Tensor)) else list(no_decay)
        accepted = _accepted(type(self))
        for name in settings:
            if name not in accepted:
                raise _unexpected(type(self).__name__, name, accepted)
        _refuse_modes(type(self).__name__, settings)
        _check_kinds(type(self), arguments, settings)
        if isinstance(params, (set, frozenset)):
            raise TypeError("optimizer parameters need to be organized in ordered collections: a set has no order; give a list")
        self._options: dict[str, Any] = {
            "clip_norm": None if clip_norm is None else checked("clip_norm", clip_norm),
            "nonfinite": nonfinite,
            "no_decay": no_decay,
            "threads": None if threads is None else engines.resolve_threads(threads),
            "sharded": bool(sharded),
            "engine": engine,
        }
        self._begin()
        super().__init__(params, *arguments, **settings)
        _as_python_numbers(self.defaults)
        for own in self.state.values():  # torch's Adagrad makes its sum at once, in the parameter's dtype; one of 16 bits would stall
            if own["sum"].dtype in (torch.bfloat16, torch.float16):
                own["sum"] = torch.full_like(own["sum"], self.defaults["initial_accumulator_value"], dtype=torch.float32)
        self._check(self.param_groups)
        self._check_names(no_decay)
        self._constructed = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__module__ == __package__ and cls.__doc__ and Host.__doc__:  # what comes on top is told by each class's help, too
            cls.__doc__ = f"{inspect.cleandoc(cls.__doc__)}\n\n{inspect.cleandoc(Host.__doc__).split(chr(10) * 2, 1)[1]}"
        if "__init__" not in cls.__dict__:
            theirs = list(inspect.signature(_torch_class(cls).__init__).parameters.values())[1:]
            cls.__signature__ = inspect.Signature([*theirs, *_keywords()])  # type: ignore[attr-defined]

    def _begin(self) -> None:
        """What lives beside torch's own attributes, and is made anew in a copy."""
        self._guard = threading.Lock()
        self._in_use = False
        self._stepper: TensorStepper | None = None
        self._read: tuple[list[Any], dict[int, dict[str, Any]]] | None = None

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

    def _check_names(self, no_decay: Any) -> None:
        """Refuse names in ``no_decay`` that no parameter has: what they were meant for would decay."""
        if callable(no_decay):
            return
        wanted = [item for item in no_decay if isinstance(item, str)]
        names = [name for group in self.param_groups for name in group.get("param_names", ())]
        unknown = [name for name in wanted if name not in set(names)]
        if unknown and not names:
            raise HyperparameterError(f"no_decay={wanted} are names, and the parameters have none: give model.named_parameters()")
        if unknown:
            near = difflib.get_close_matches(unknown[0], names, 1) or [name for name in names if unknown[0] in name][:1]
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise HyperparameterError(
                f"no parameter is named {unknown[0]!r}, as no_decay has it; {hint}Names are whole, as in 'layer.bias'; "
                "a function says it for many: no_decay=lambda name, p: p.ndim < 2"
            )
        if any(not isinstance(item, (str, Tensor)) for item in no_decay):
            raise HyperparameterError(f"no_decay={no_decay!r} holds what is neither a name nor a tensor")

    @property
    def skipped(self) -> int:
        """Steps skipped so far because of gradients that are not finite; a loaded state dict starts it anew."""
        return self._stepper.skipped if self._stepper is not None else self._counted[1]

    def _check(self, groups: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
        """The settings of each class of tensors, as numbers."""
        settings: dict[int, dict[str, Any]] = {}
        for index, group in enumerate(groups):
            _as_python_numbers(group)
            for name, value in self._options.items():
                if name in group and group[name] is not value and group[name] != value:
                    raise HyperparameterError(f"{name} in group {index}: it is chosen when the optimizer is made, and is the same for all groups")
            _refuse_modes(type(self).__name__, group)
            values = self.member.settings(index, group)
            check_dtype(index, {name: value for name, value in values.items() if name != "maximize"}, _first_narrow(group))
            if self.member.coupling(group) == "decoupled" and values["lr"] * values["weight_decay"] > 1:
                overshoot = values["lr"] * values["weight_decay"]
                warnings.warn(f"lr * weight_decay = {overshoot:g} in group {index}: decay overshoots zero", HyperparameterWarning, stacklevel=3)
            settings[2 * index] = values
            settings[2 * index + 1] = {**values, "weight_decay": 0.0}
        return settings

    def _settings(self) -> dict[int, dict[str, Any]]:
        """The settings for the coming step; read again where anything has changed. Tensors may change in place."""
        now = [value for group in self.param_groups for key, value in group.items() if key not in ("params", "param_names")]
        if self._read is not None:
            before, settings = self._read
            if (
                len(now) == len(before)
                and all(a is b for a, b in zip(now, before, strict=True))
                and not any(isinstance(a, (Tensor, list)) for a in now)
            ):
                return settings
        settings = self._check(self.param_groups)
        self._read = (now, settings)
        return settings

    # --- the step --------------------------------------------------------------------------------------------------

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Perform a single optimization step: all of it, or nothing.

        Args:
            closure: Reevaluates the model and returns the loss; called once.

        Returns:
            What the closure returned. What the step itself saw is in `last_step`.

        Raises:
            GradientError: A gradient cannot be used: sparse, of another shape, or (unless ``nonfinite`` says otherwise) not finite.
                Parameters, states and counters are as they were, on every process that takes part.
            HyperparameterError: A group's setting is out of range.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._take()
        return loss

    @alone
    @torch.no_grad()
    def _take(self) -> None:
        still = False
        try:
            settings = self._settings()
            still = all(values["lr"] == 0 for values in settings.values())
            stepper = self._current()
            found_inf, grad_scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
            stepper.skips = found_inf is not None and _number(found_inf) != 0
            if stepper.skips and not stepper.exchanges:
                self._skip(stepper)
                return
            scale = 1.0
            if grad_scale is not None:
                scale = 1.0 / checked("grad_scale", _number(grad_scale)) if _number(grad_scale) else float("inf")
                if scale == float("inf"):
                    raise HyperparameterError(f"grad_scale={_number(grad_scale)} cannot be divided by")
            stepper.read()
        except Exception:
            if self._stepper is not None:
                self._stepper.forget()
            self._tell_others(still)
            raise
        threads = self._threads()
        try:
            if len(stepper.missing) == stepper.count and not stepper.shards:
                self.last_step = StepReport(stepper.steps, 0.0, 1.0, False)
                return
            # torch.distributed.checkpoint takes a step at lr = 0 over gradients of zeros to have the states made. To count it would spoil
            # the bias correction of all that follow. Whether it is the first, all processes say together.
            asks = still and (stepper.is_new or stepper.shards)
            only_makes_states = (lambda: stepper.is_new) if asks else None
            self.last_step = stepper.take(settings, threads, scale=scale, before_commit=stepper.register, only_makes_states=only_makes_states)
        except SkippedByScaler:
            self._skip(stepper)
        finally:
            stepper.forget()

    def _skip(self, stepper: TensorStepper) -> None:
        stepper.table.counters[stepper.count + 1] += 1
        self.last_step = StepReport(stepper.steps, float("nan"), 1.0, True)

    def _tell_others(self, still: bool) -> None:
        """That this process refuses the step, before the first word about it: those who hold the rest would wait for ever."""
        if self._options["nonfinite"] == "propagate" and self._options["clip_norm"] is None and not still:
            return  # nobody asks
        shards = Shards([p for group in self.param_groups for p in group["params"]], plain_too=self._options["sharded"])
        if shards:
            shards.refuse()

    def _current(self) -> TensorStepper:
        """The picture of groups and states, made anew where they are not what they were."""
        if self._stepper is None or not self._stepper.stands(self.param_groups, self.state):
            options = self._options
            own_threads = options["threads"] is not None or bool(os.environ.get("OPENADAM_NUM_THREADS"))
            engine = GraphEngine(engines.native_or_reference(0 if own_threads else _team_of_torch()), compile=options["engine"] == "compiled")
            self._stepper = TensorStepper(
                self.param_groups, self.state, self.member, engine,
                native=options["engine"] in (None, "native"), no_decay=options["no_decay"], sharded=options["sharded"],
                clip_norm=options["clip_norm"], clip_value=None, nonfinite=options["nonfinite"], previous=self._stepper,
                counted=self._counted,
            )  # fmt: skip
        return self._stepper

    def _threads(self) -> int:
        if self._options["threads"] is not None:
            return int(self._options["threads"])
        if os.environ.get("OPENADAM_NUM_THREADS"):
            return engines.resolve_threads(None)
        return min(torch.get_num_threads(), engines.MAX_THREADS)

    # --- state -----------------------------------------------------------------------------------------------------

    @torch.compiler.disable  # type: ignore[untyped-decorator]
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
        state, groups = loading.read(self.param_groups, self.defaults, self.member, given, finite=self._options["nonfinite"] != "propagate")
        self.__setstate__({"state": state, "param_groups": groups, "_counted": (0, 0)})
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def __getstate__(self) -> dict[str, Any]:
        counted = (self._stepper.steps, self._stepper.skipped) if self._stepper is not None else self._counted
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


def _torch_class(cls: type) -> Any:
    """The class of torch.optim whose constructor, groups and hooks these are."""
    return next(base for base in cls.__mro__ if base.__module__.startswith("torch.optim"))


def _check_kinds(cls: type, arguments: tuple[Any, ...], settings: Mapping[str, Any]) -> None:
    """Refuse what is no number where torch would fail over comparing it."""
    given = {**dict(zip(_accepted(cls), arguments, strict=False)), **settings}
    member: Member = cls.member  # type: ignore[attr-defined]
    betas = given.get("betas", (0, 0))
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise HyperparameterError(f"Invalid betas: {betas!r} is not a pair of numbers")
    for name in ("lr", "weight_decay", *(key for key, place in member.numbers.values() if place is None)):
        value = given.get(name, 0.0)
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, (Tensor, numbers.Real, np.ndarray)):
            raise HyperparameterError(f"Invalid {name}: {value!r} ({type(value).__name__}) is not a number")


def _refuse_modes(name: str, settings: Mapping[str, Any]) -> None:
    """Refuse the flags of torch that a step of ours cannot honour."""
    for flag, why in (("differentiable", "its step is no part of the autograd graph"), ("capturable", "its step cannot be captured in a CUDA graph")):
        if settings.get(flag):
            raise HyperparameterError(f"{flag}=True is not supported by openadam: {why}; use torch.optim.{name} for it")


def _as_python_numbers(group: dict[str, Any]) -> None:
    """NumPy's numbers would not load again from a file under ``weights_only``."""
    for key, value in group.items():
        if isinstance(value, (np.generic, np.ndarray)) and value.size == 1:
            group[key] = value.item()


def _first_narrow(group: Mapping[str, Any]) -> str | None:
    """The name of a group's first parameter that is worked on in float32."""
    for k, p in enumerate(group["params"]):
        if arithmetic_of(p.dtype) is torch.float32:
            return str(group["param_names"][k]) if "param_names" in group else str(k)
    return None


def _accepted(cls: type) -> list[str]:
    """The keywords of torch's constructor."""
    return [name for name in inspect.signature(_torch_class(cls).__init__).parameters if name not in ("self", "params")]


def _keywords() -> list[inspect.Parameter]:
    """What comes on top of torch's arguments."""
    return [p for p in inspect.signature(Host.__init__).parameters.values() if p.kind is inspect.Parameter.KEYWORD_ONLY]


def _unexpected(name: str, keyword: str, accepted: list[str]) -> UnknownHyperparameterError:
    return suggest(name, keyword, [*accepted, *(p.name for p in _keywords())])


class _Chosen:
    """An option that is chosen when the optimizer is made: to be read; setting it would do nothing, so that is refused."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: Any) -> Any:
        return self if instance is None else instance._options[self._name]

    def __set__(self, instance: Any, value: Any) -> None:
        raise AttributeError(f"{self._name} is chosen when the optimizer is made; make another and give it this one's state_dict()")


for _name in ("clip_norm", "nonfinite", "no_decay", "threads", "sharded", "engine"):
    setattr(Host, _name, _Chosen(_name))
