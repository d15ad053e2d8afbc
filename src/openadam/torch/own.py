"""Rules of one's own in PyTorch: an optimizer for any rule, with groups, schedulers, hooks and checkpoints as the classes of ``torch.optim`` have."""

from __future__ import annotations

import functools
from typing import Any

import torch

from ..errors import HyperparameterError
from ..hyperparameters import checked
from ..language.rule import Rule
from .host import Host
from .members import Member, member_of
from .options import as_python_numbers

__all__ = ["Optimizer"]

OURS = ("lr", "weight_decay", "maximize")


class Optimizer(Host, torch.optim.Optimizer):
    """An optimizer for any rule: one of `openadam.rules`, or a function decorated with `openadam.rule`.

    It is a ``torch.optim.Optimizer`` with the step of openadam: natively over tensors in this machine's memory, in torch operations elsewhere;
    with parameter groups, schedulers of any hyperparameter, hooks, ``GradScaler`` and state dicts. Hyperparameters and states have the names that
    the rule gives them. What finite gradients would make NaN or infinite is refused as such gradients are (`nonfinite`).

    Args:
        params: Parameters, named parameters, or groups of them.
        rule: What moves them.
        coupling: How weight decay joins: ``coupled`` (default) adds it to the gradient, ``decoupled`` shrinks the parameter by
            ``lr * weight_decay``.
        maximize: Whether to go uphill.
        hyperparameters: ``lr``, ``weight_decay`` (default 0), and those of the rule that have no default; options of the rule.

    Raises:
        HyperparameterError: A hyperparameter is missing or out of range, or an option is none of its choices.
        UnknownHyperparameterError: The rule has none of this name.

    >>> import openadam, torch
    >>> @openadam.rule(beta1=0.9, beta2=0.99)
    ... def lion(g, s, h):
    ...     return openadam.Step(openadam.sign(h.beta1 * s.m + (1 - h.beta1) * g), m=h.beta2 * s.m + (1 - h.beta2) * g)
    >>> p = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    >>> optimizer = openadam.torch.Optimizer([p], rule=lion, lr=0.1)
    >>> (p**2).sum().backward()
    >>> optimizer.step()
    >>> p.detach(), optimizer.state[p]["m"]
    (tensor([ 0.9000, -1.9000]), tensor([ 0.0200, -0.0400]))
    """

    _rule: Rule
    _rule_options: dict[str, str]
    _coupling: str

    def __init__(self, params: Any, *, rule: Rule, coupling: str = "coupled", maximize: bool = False, **hyperparameters: Any) -> None:
        if not isinstance(rule, Rule):
            raise TypeError("Optimizer needs rule=…: one of openadam.rules, or a function decorated with @openadam.rule")
        if coupling not in ("coupled", "decoupled"):
            raise HyperparameterError(f"coupling={coupling!r} is neither 'coupled' nor 'decoupled'")
        if rule.compile:
            from ..compiling import compile_rule

            compile_rule(rule)
        self._rule, self._coupling, self._rule_options = rule, coupling, {}
        for name in rule.options:
            if name in hyperparameters:
                value = self._rule_options[name] = hyperparameters.pop(name)
                if value not in rule.options[name]:
                    raise HyperparameterError(f"{name}={value!r} is none of {', '.join(map(repr, rule.options[name]))}")
        known = {name: value for name, value in rule.defaults.items() if name in self.member.required}
        super().__init__(params, maximize=maximize, **{**known, **hyperparameters})

    @functools.cached_property
    def member(self) -> Member:  # type: ignore[override]
        """The rule as if it were a class of ``torch.optim``."""
        return member_of(self._rule, self._rule_options, self._coupling)

    def _accepts(self) -> list[str]:
        return list(dict.fromkeys([*self.member.required, *self._rule.options, *OURS]))

    def _construct(self, params: Any, *arguments: Any, **settings: Any) -> None:
        defaults = {"weight_decay": 0.0, **settings}
        missing = [name for name in self.member.required if name not in defaults]
        if missing:
            raise HyperparameterError(f"Optimizer needs {', '.join(f'{name}=…' for name in missing)}: the rule has no default for it")
        as_python_numbers(defaults)
        for name in self.member.required:
            if not isinstance(defaults[name], torch.Tensor):
                checked(name, defaults[name], kinds=self.member.kinds)
        torch.optim.Optimizer.__init__(self, params, defaults)

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}    rule: {self._rule.name}\n)"

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_rule": self._rule, "_rule_options": self._rule_options, "_coupling": self._coupling}
