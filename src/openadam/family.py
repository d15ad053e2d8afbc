"""The members of the family: each a rule, a coupling of weight decay, defaults, and torch's names for its states."""

from __future__ import annotations

from . import rules
from .arrays.optimizer import Optimizer
from .hyperparameters import HYPERPARAMETERS

__all__ = ["MEMBERS", "SGD", "AMSGrad", "AdaMax", "Adagrad", "Adam", "AdamW", "Momentum", "NAdam", "NAdamW", "RAdam", "RAdamW", "RMSProp"]

MOMENTS = {"m": "exp_avg", "v": "exp_avg_sq", "v_max": "max_exp_avg_sq", "u_max": "exp_inf"}
BETAS = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}


class SGD(Optimizer):
    """Gradient descent without memory. Robbins and Monro, 1951; torch's SGD without momentum.

    >>> import numpy as np, openadam
    >>> w = np.array([1.0])
    >>> _ = openadam.SGD(w, lr=0.5).step(np.array([1.0]))
    >>> w
    array([0.5])
    """

    rule = rules.sgd
    defaults = {"lr": 1e-3, "weight_decay": 0.0}


class Momentum(Optimizer):
    """Gradient descent with momentum. Polyak, 1964; ``form="nesterov"``: Sutskever et al., 2013. Torch's SGD with momentum.

    The first gradient enters undampened and ``lr`` stands outside the velocity, as in torch; Keras keeps ``lr`` inside,
    which differs while ``lr`` changes.

    >>> import numpy as np, openadam
    >>> w = np.array([0.0])
    >>> opt = openadam.Momentum(w, lr=1.0, momentum=0.5)
    >>> for _ in range(3):
    ...     _ = opt.step(np.array([1.0]))
    >>> w  # 1, then 1.5, then 1.75
    array([-4.25])
    """

    rule = rules.momentum
    defaults = {"lr": 1e-3, "momentum": 0.9, "dampening": 0.0, "weight_decay": 0.0, "form": "classical"}
    state_names = {"m": "momentum_buffer"}


class Adagrad(Optimizer):
    """The adaptive subgradient method. Duchi, Hazan and Singer, 2011. Torch's Adagrad.

    The sum starts at 0, so the first step is ``lr * sign(g)``; Keras and Optax start it at 0.1 with ``epsilon="inside"``.

    >>> import numpy as np, openadam
    >>> w = np.array([0.0])
    >>> opt = openadam.Adagrad(w, lr=1.0)
    >>> for _ in range(2):
    ...     _ = opt.step(np.array([5.0]))
    >>> w.round(4)  # -1, then -1/sqrt(2) more
    array([-1.7071])
    """

    rule = rules.adagrad
    defaults = {"lr": 1e-2, "eps": 1e-10, "lr_decay": 0.0, "initial_accumulator_value": 0.0, "weight_decay": 0.0, "epsilon": "outside"}
    state_names = {"sum": "sum"}


class RMSProp(Optimizer):
    """RMSProp: plain (Hinton, 2012), ``variance="centered"`` (Graves, 2013), ``buffer="momentum"``. Torch's RMSprop.

    ``rho`` is torch's ``alpha``. Keras and Optax default to ``rho=0.9, epsilon="inside"``, and keep ``lr`` inside the momentum buffer.

    >>> import numpy as np, openadam
    >>> w = np.array([0.0])
    >>> _ = openadam.RMSProp(w, lr=0.01).step(np.array([3.0]))
    >>> w.round(6)  # lr / sqrt(1 - rho)
    array([-0.1])
    """

    rule = rules.rmsprop
    defaults = {"lr": 1e-2, "rho": 0.99, "eps": 1e-8, "momentum": 0.0, "weight_decay": 0.0, "variance": "raw", "buffer": "none", "epsilon": "outside"}
    state_names = {"v": "square_avg", "g_mean": "grad_avg", "m": "momentum_buffer"}


class Adam(Optimizer):
    """Adaptive moment estimation. Kingma and Ba, 2015, Algorithm 1. Torch's Adam: weight decay joins the gradient (L2).

    ``epsilon`` places eps: ``outside`` the root (torch, Optax, Algorithm 1), ``inside`` it (Optax's eps_root), or ``hat``
    (Kingma's eps-hat: Keras with eps 1e-7, TensorFlow, scikit-learn). ``bias_correction="off"`` leaves the moments raw.

    >>> import numpy as np, openadam
    >>> w = np.array([0.0, 0.0])
    >>> opt = openadam.Adam(w, lr=0.1)
    >>> _ = opt.step(np.array([2.0, -400.0]))
    >>> w.round(6)  # the first step is lr in every coordinate, whatever the scale
    array([-0.1,  0.1])
    """

    rule = rules.adam
    defaults = {"lr": 1e-3, **BETAS, "weight_decay": 0.0, "epsilon": "outside", "bias_correction": "on"}
    state_names = MOMENTS


class AdamW(Adam):
    """Adam with decoupled weight decay. Loshchilov and Hutter, 2019, Algorithm 2. Torch's AdamW.

    The parameter is shrunk by ``lr * weight_decay`` of itself before it moves, so decay is not divided by the root of the second
    moment. The default 0.01 is torch's; Keras has 0.004, Optax 0.0001.

    >>> import numpy as np, openadam
    >>> w = np.array([1.0])
    >>> _ = openadam.AdamW(w, lr=0.1, weight_decay=0.5).step(np.array([0.0]))
    >>> w
    array([0.95])
    """

    coupling = "decoupled"
    defaults = {**Adam.defaults, "weight_decay": 1e-2}


class AMSGrad(Optimizer):
    """Adam with the largest second moment so far. Reddi, Kale and Kumar, 2018. Torch's Adam with ``amsgrad=True``.

    ``maximum_of``: ``raw`` (torch, Keras: over v, then corrected), ``corrected`` (Optax: over v_hat), ``paper`` (no correction at all).

    >>> import numpy as np, openadam
    >>> opt = openadam.AMSGrad({"w": np.zeros(1)}, beta2=0.5)
    >>> for g in (4.0, 0.0):
    ...     _ = opt.step({"w": np.array([g])})
    >>> opt.state["w"]["exp_avg_sq"], opt.state["w"]["max_exp_avg_sq"]
    (array([4.]), array([8.]))
    """

    rule = rules.amsgrad
    defaults = {"lr": 1e-3, **BETAS, "weight_decay": 0.0, "maximum_of": "raw", "epsilon": "outside"}
    state_names = MOMENTS


class AdaMax(Optimizer):
    """Adam with the infinity norm. Kingma and Ba, 2015, Algorithm 2. Torch's Adamax.

    eps stands within the maximum, as in torch and Optax; Keras adds it to the denominator (``epsilon="added"``).

    >>> import numpy as np, openadam
    >>> w = np.array([0.0])
    >>> _ = openadam.AdaMax(w, lr=0.1).step(np.array([5.0]))
    >>> w.round(6)
    array([-0.1])
    """

    rule = rules.adamax
    defaults = {"lr": 2e-3, **BETAS, "weight_decay": 0.0, "epsilon": "within"}
    state_names = MOMENTS


class NAdam(Optimizer):
    """Adam with Nesterov momentum. Dozat, 2016. Torch's NAdam.

    ``form="dozat"`` has the momentum schedule whose speed is ``momentum_decay`` (Keras: 1.0); ``form="optax"`` has none.

    >>> import numpy as np, openadam
    >>> w = np.array([0.0])
    >>> opt = openadam.NAdam(w, lr=0.1)
    >>> _ = opt.step(np.array([5.0]))
    >>> round(opt.state["0"]["mu_product"], 6)  # beta1 * (1 - 0.96**0.004 / 2)
    0.450073
    """

    rule = rules.nadam
    defaults = {"lr": 2e-3, **BETAS, "momentum_decay": 4e-3, "weight_decay": 0.0, "form": "dozat", "epsilon": "outside"}
    state_names = MOMENTS


class NAdamW(NAdam):
    """NAdam with decoupled weight decay. Torch's NAdam with ``decoupled_weight_decay=True``.

    >>> import numpy as np, openadam
    >>> w = np.array([1.0])
    >>> _ = openadam.NAdamW(w, lr=0.1, weight_decay=0.5).step(np.array([0.0]))
    >>> w
    array([0.95])
    """

    coupling = "decoupled"
    defaults = {**NAdam.defaults, "weight_decay": 1e-2}


class RAdam(Optimizer):
    """Rectified Adam. Liu et al., 2020, Algorithm 2. Torch's RAdam.

    While fewer than about six steps make the second moment too uncertain (rho at most 5), the corrected first moment alone
    moves the parameter. Torch has Kingma's eps-hat here; Optax ``epsilon="outside"``.

    >>> import numpy as np, openadam
    >>> w = np.array([0.0])
    >>> _ = openadam.RAdam(w, lr=0.1).step(np.array([5.0]))
    >>> w.round(6)
    array([-0.5])
    """

    rule = rules.radam
    defaults = {"lr": 1e-3, **BETAS, "weight_decay": 0.0, "epsilon": "hat"}
    state_names = MOMENTS


class RAdamW(RAdam):
    """RAdam with decoupled weight decay. Torch's RAdam with ``decoupled_weight_decay=True``.

    >>> import numpy as np, openadam
    >>> w = np.array([1.0])
    >>> _ = openadam.RAdamW(w, lr=0.1, weight_decay=0.5).step(np.array([0.0]))
    >>> w
    array([0.95])
    """

    coupling = "decoupled"
    defaults = {**RAdam.defaults, "weight_decay": 1e-2}


MEMBERS: dict[str, type[Optimizer]] = {
    cls.__name__.lower(): cls for cls in (SGD, Momentum, Adagrad, RMSProp, Adam, AdamW, AMSGrad, AdaMax, NAdam, NAdamW, RAdam, RAdamW)
}
"""By the name that the command line uses."""


def _complete_docstring(cls: type[Optimizer]) -> None:
    """Add what all members have in common: their hyperparameters' meanings, ranges and defaults, and the options' choices."""
    assert cls.rule is not None
    lines = ["", "Args:", "    params: One array, a sequence or mapping of arrays, or groups; see `openadam.Optimizer`."]
    for name, default in cls.defaults.items():
        if name in HYPERPARAMETERS:
            known = HYPERPARAMETERS[name]
            lines.append(f"    {name}: {known.meaning}; {known.describe_range()}, or a function of t. Default {default:g}.")
        else:
            lines.append(f"    {name}: {' | '.join(cls.rule.options[name])}. Default {default}.")
    lines += [
        "    no_decay, clip_norm, clip_value, nonfinite, maximize, threads, engine: see `openadam.Optimizer`,",
        "        which also tells the errors raised.",
    ]
    cls.__doc__ = (cls.__doc__ or "").rstrip() + "\n" + "\n".join(f"    {line}" if line else "" for line in lines) + "\n"


for _member in MEMBERS.values():
    _complete_docstring(_member)
