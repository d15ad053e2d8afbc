"""State dicts of torch optimizers, read strictly: everything is checked and copied before anything is taken over."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from copy import deepcopy
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointCorruptError, CheckpointMismatchError, HyperparameterError
from ..step import MAX_STEP
from .members import MEMBERS, Member
from .memory import real, scalar_dtype
from .rows import EXACT_FLOAT32, whole_step
from .shards import is_distributed, local_part, with_layout_of

__all__ = ["read", "skips_in_a_row"]

EVERYWHERE = frozenset[str]().union(*(member.state_keys for member in MEMBERS))  # what states are called in any optimizer
ALIASES = {"state1": "exp_avg", "state2": "exp_avg_sq"}  # of bitsandbytes
Groups = list[dict[str, Any]]


def read(own: Groups, defaults: Mapping[str, Any], member: Member, given: Any, *, whose: str, finite: bool) -> tuple[Any, Groups]:
    """The state and the groups that an optimizer is to take over, copied.

    Args:
        own: The optimizer's groups.
        defaults: What a group has where the given one, of an older version, says nothing.
        member: Whose states these are.
        given: A ``state_dict``.
        whose: What the optimizer's class is called.
        finite: Refuse moments that are not finite.
    """
    if not isinstance(given, Mapping) or not isinstance(given.get("state"), Mapping) or not isinstance(given.get("param_groups"), (list, tuple)):
        raise CheckpointMismatchError("not the state_dict of an optimizer: it must have `state`, a dict, and `param_groups`, a list")
    program = given.get("program", member.program)
    if program != member.program:
        raise CheckpointMismatchError(f"the state dict is that of another rule than {whose}'s: it computes something else")
    groups: Groups = []
    for index, group in enumerate(given["param_groups"]):
        if not isinstance(group, Mapping) or not isinstance(group.get("params"), (list, tuple)):
            raise CheckpointMismatchError(f"group {index} of the loaded state dict is not a dict with a list `params`")
        groups.append(deepcopy(dict(group)))
    if len(groups) != len(own):
        raise CheckpointMismatchError(f"loaded state dict has a different number of parameter groups: {len(groups)}, this optimizer {len(own)}")
    for index, (mine, group) in enumerate(zip(own, groups, strict=True)):
        if len(mine["params"]) != len(group["params"]):
            raise CheckpointMismatchError(
                "loaded state dict contains a parameter group that doesn't match the size of optimizer's group: "
                f"group {index} has {len(group['params'])} parameters, this optimizer's {len(mine['params'])}"
            )
    for index, group in enumerate(groups):
        lacking = sorted(set(member.required).difference(group))
        if lacking:
            raise CheckpointMismatchError(f"group {index} of the loaded state dict has no {lacking}: it is not that of {whose}")
    saved_of = _matched(own, groups)
    state: Any = defaultdict(dict)
    known = set(chain.from_iterable(group["params"] for group in groups))
    for key in given["state"]:
        if not isinstance(key, str) and key not in known:
            raise CheckpointMismatchError(f"the state holds an entry for parameter {key!r}, which is in none of its groups")
    for key, found in given["state"].items():
        if not isinstance(key, str) and not isinstance(found, Mapping):
            raise CheckpointCorruptError(f"the state of parameter {key!r} is {type(found).__name__}, not a dict")
    for mine, group in zip(own, groups, strict=True):
        kept = {key: value for key, value in group.items() if key != "params"}
        if member.counts and any("step" not in given["state"].get(i, {"step": 0}) for i in group["params"]):
            shared_step = kept.pop("step", None)  # apex counts once per group
        else:
            shared_step = None
        for key, default in defaults.items():
            kept.setdefault(key, default)
        kept |= {flag: False for flag in ("capturable", "differentiable") if flag in kept}  # of how a step was run, and not of what it did
        if "param_names" in mine:
            kept.setdefault("param_names", list(mine["param_names"]))
        group.clear()
        group.update(kept, params=mine["params"])
        for k, p in enumerate(mine["params"]):
            name = mine["param_names"][k] if "param_names" in mine else None
            found = given["state"].get(saved_of[id(p)])
            if found:
                described = f"parameter {name!r}" if name is not None else f"parameter {saved_of[id(p)]}"
                state[p] = _state(p, described, group, member, found, shared_step, finite=finite)
    # What hooks of the user's have put there; behind the others, for torch's Adagrad looks at the first. A name may also be that of a
    # parameter: torch.distributed.checkpoint has names for numbers.
    state.update((key, value) for key, value in given["state"].items() if isinstance(key, str) and key not in known)
    try:
        for index, group in enumerate(groups):
            member.settings(index, group)
    except HyperparameterError as error:
        raise CheckpointCorruptError(str(error)) from error
    return state, groups


def skips_in_a_row(given: Any) -> int:
    """How many steps in a row had been skipped; 0 where the state dict does not say."""
    count = given.get("skips_in_a_row", 0) if isinstance(given, Mapping) else 0
    if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= MAX_STEP:
        raise CheckpointCorruptError(f"skips_in_a_row is {count!r}, not a whole number")
    return count


def _matched(own: Groups, groups: Groups) -> dict[int, Any]:
    """For each parameter the id it has in the state dict: by name where both sides have names, else by position."""
    mine = list(chain.from_iterable(group["params"] for group in own))
    ids = list(chain.from_iterable(group["params"] for group in groups))
    named = all("param_names" in group for group in (*own, *groups))
    if not named:
        return {id(p): saved for p, saved in zip(mine, ids, strict=True)}
    own_names = list(chain.from_iterable(group["param_names"] for group in own))
    saved_names = list(chain.from_iterable(group["param_names"] for group in groups))
    if len(saved_names) != len(ids):
        raise CheckpointCorruptError(f"the loaded state dict names {len(saved_names)} parameters and has {len(ids)}")
    if len(set(own_names)) < len(own_names) or len(set(saved_names)) < len(saved_names):
        return {id(p): saved for p, saved in zip(mine, ids, strict=True)}
    missing, unexpected = sorted(set(own_names) - set(saved_names)), sorted(set(saved_names) - set(own_names))
    if missing or unexpected:
        raise CheckpointMismatchError(
            f"the parameters differ: the loaded state dict lacks {missing}, and has {unexpected} that this optimizer does not; "
            "strip what stands before its names, such as 'module.', or delete 'param_names' from its groups to match by position"
        )
    for index, (group, saved) in enumerate(zip(own, groups, strict=True)):
        if set(group["param_names"]) != set(saved["param_names"]):
            raise CheckpointMismatchError(f"group {index} of the loaded state dict holds other parameters: {saved['param_names']}")
        saved["param_names"] = list(group["param_names"])
    by_name = dict(zip(saved_names, ids, strict=True))
    return {id(p): by_name[name] for p, name in zip(mine, own_names, strict=True)}


def _state(p: Any, described: str, group: Mapping[str, Any], member: Member, found: Any, shared_step: Any, *, finite: bool) -> dict[str, Any]:
    if not isinstance(found, Mapping):
        raise CheckpointCorruptError(f"the state of {described} is {type(found).__name__}, not a dict")
    given: dict[Any, Any] = {ALIASES.get(key, key): value for key, value in found.items()}
    foreign = sorted(EVERYWHERE.intersection(given) - member.state_keys)
    if foreign:
        raise CheckpointMismatchError(f"the state of {described} holds {foreign}, which {member.name} does not have: it is another optimizer's")
    traced = member.traced(group)
    rule, _ = member.rule(group)
    result: dict[str, Any] = {}
    if member.counts:
        if "step" not in given and shared_step is None:
            raise CheckpointMismatchError(f"the state of {described} lacks 'step'")
        step = whole_step(given.pop("step", shared_step), f"step of {described}")
        result["step"] = torch.tensor(float(step), dtype=scalar_dtype() if step < EXACT_FLOAT32 else torch.float64, device="cpu")
    for name in traced.scalar_states:
        public = member.states.get(name, name)
        if public not in given:
            raise CheckpointMismatchError(f"the state of {described} lacks {public!r}")
        value = given.pop(public)
        number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
        low, high = member.word(name)
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not (low <= number <= high and math.isfinite(number)):
            kind = "a finite number that is not negative" if low == 0 else "a finite number"
            raise CheckpointCorruptError(f"{public!r} of {described} is {value!r:.80}, not {kind}")
        kept = value.dtype in (torch.float32, torch.float64) if isinstance(value, Tensor) else False
        result[public] = torch.tensor(float(number), dtype=value.dtype if kept else scalar_dtype(), device="cpu")
    for name in (each for each in traced.states if each in traced.element_states):
        public = member.states.get(name, name)
        value = given.pop(public, None)
        if value is None:
            if not member.counts:
                continue  # SGD before its first gradient
            raise CheckpointMismatchError(f"the state of {described} lacks {public!r}")
        if member.sparse == "taken" and not member.counts and isinstance(value, Tensor) and value.layout is torch.sparse_coo:
            value = value.to_dense()  # a velocity of torch's SGD over sparse gradients
        result[public] = _moment(p, value, f"{public!r} of {described}", finite=finite, nonnegative=name in rule.nonnegative)
    result.update({key: deepcopy(value) for key, value in given.items() if value is not None or key not in member.state_keys})
    return result


def _moment(p: Any, value: Any, what: str, *, finite: bool, nonnegative: bool) -> Tensor:
    """A copy of a state, dense in the order of the parameter's elements, on its device, in the dtype it was stored in."""
    if not isinstance(value, Tensor):
        raise CheckpointMismatchError(f"{what} is {type(value).__name__}, not a tensor")
    if tuple(value.shape) != tuple(p.shape):
        raise CheckpointMismatchError(f"{what} has shape {tuple(value.shape)}, the parameter {tuple(p.shape)}")
    if value.layout is not torch.strided or not (value.is_floating_point() or value.is_complex()) or value.is_complex() != p.is_complex():
        raise CheckpointMismatchError(f"{what} is {value.dtype} ({value.layout}), the parameter {p.dtype}")
    if is_distributed(p) and not is_distributed(value):
        from torch.distributed.tensor import distribute_tensor

        value = distribute_tensor(value.to(p.device), p.device_mesh, p.placements, src_data_rank=None)
    elif is_distributed(value) and not is_distributed(p):
        raise CheckpointMismatchError(f"{what} is a DTensor, the parameter is not")
    like = local_part(p)
    local = local_part(value, p if is_distributed(p) else None)
    if like.device.type != "meta":
        numbers = real(local)
        if finite and not bool(torch.isfinite(numbers).all()):
            raise CheckpointCorruptError(f"{what} holds values that are not finite")
        if nonnegative and bool((numbers < 0).any()):
            raise CheckpointCorruptError(f"{what} holds negative values, which it cannot have")
    copied = torch.empty_like(like, dtype=value.dtype, requires_grad=False, memory_format=torch.preserve_format).copy_(local)
    return with_layout_of(p, copied)
