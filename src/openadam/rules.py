"""The family, each member as its paper writes it, in order of increasing complexity.

A rule takes the gradient ``g``, its states ``s`` and the hyperparameters ``h`` (``h.t`` counts steps from 1), and
returns the direction and what it remembers; the parameter then moves by ``-lr * direction``. Every member is built from
at most four ideas:

    a first moment      which way?        momentum, Adam
    a second moment     how large?        Adagrad, RMSProp, Adam
    bias correction     since when?       Adam
    a denominator       what is eps for?  outside the root, inside it, or Kingma's eps-hat

so RMSProp is a second moment alone, Adam is both moments corrected, AMSGrad is Adam that remembers the largest second
moment, and NAdam is Adam that looks one step ahead. What surrounds a rule (gradient scale and clip, ``maximize``, weight
decay) is at the end of this file; it is the same for every member, so AdamW is Adam with another coupling of the decay.

The defaults are those of ``torch.optim``; where the paper, Keras or Optax compute something else, the docstring says so,
and an option selects it where it is a real choice.
"""

from __future__ import annotations

from typing import TypeVar

from .language.expression import Expression, Namespace, maximum, minimum, sqrt, substitute, symbol, where
from .language.program import Program, lower
from .language.rule import Rule, Step, Traced, rule

T = TypeVar("T", float, Expression)

EPSILON = ("outside", "inside", "hat")
"""Where eps stands: sqrt(v_hat) + eps, sqrt(v_hat + eps), or Kingma's eps-hat, (sqrt(v) + eps) / sqrt(correction)."""


def first_moment(g: Expression, s: Namespace, h: Namespace) -> Expression:
    """An exponential average of gradients: which way, mostly?"""
    return h.beta1 * s.m + (1 - h.beta1) * g


def second_moment(g: Expression, s: Namespace, h: Namespace) -> Expression:
    """An exponential average of squared gradients, not centered: how large, typically?"""
    return h.beta2 * s.v + (1 - h.beta2) * g**2


def denominator(v: Expression, eps: Expression, epsilon: str, correction: Expression | None = None) -> Expression:
    """The root of the second moment, corrected if need be, and kept away from zero by eps."""
    v_hat = v if correction is None else v / correction
    if epsilon == "inside":
        return sqrt(v_hat + eps)
    if epsilon == "hat" and correction is not None:
        return (sqrt(v) + eps) / sqrt(correction)
    return sqrt(v_hat) + eps


@rule
def sgd(g: Expression, s: Namespace, h: Namespace) -> Step:
    """Gradient descent. Robbins and Monro, 1951."""
    return Step(g)


@rule(options={"form": ("classical", "nesterov")})
def momentum(g: Expression, s: Namespace, h: Namespace, *, form: str) -> Step:
    """Momentum: classical (Polyak, 1964), dampened, or Nesterov's (Sutskever et al., 2013).

    As torch: the first gradient enters undampened, and the learning rate stands outside the buffer. Keras keeps
    ``lr`` inside the buffer (``v = momentum * v - lr * g``), which differs only while ``lr`` changes.
    """
    entering = where(h.t == 1, 1, 1 - h.dampening)
    m = h.momentum * s.m + entering * g
    return Step(g + h.momentum * m if form == "nesterov" else m, m=m)


@rule(initial={"sum": "initial_accumulator_value"}, nonnegative=("sum",), options={"epsilon": ("outside", "inside")})
def adagrad(g: Expression, s: Namespace, h: Namespace, *, epsilon: str) -> Step:
    """Adaptive subgradient method. Duchi, Hazan and Singer, 2011.

    As torch: the sum starts at 0 and eps stands outside the root. Keras and Optax start it at 0.1 and put eps inside.
    """
    sum = s.sum + g**2
    decayed = 1 + (h.t - 1) * h.lr_decay
    return Step(g / denominator(sum, h.eps, epsilon) / decayed, sum=sum)


@rule(nonnegative=("v",), options={"variance": ("raw", "centered"), "buffer": ("none", "momentum"), "epsilon": ("outside", "inside")})
def rmsprop(g: Expression, s: Namespace, h: Namespace, *, variance: str, buffer: str, epsilon: str) -> Step:
    """RMSProp: plain (Hinton, 2012), centered (Graves, 2013), with momentum.

    As torch: eps outside the root, the learning rate outside the momentum buffer. Keras and Optax default to eps inside
    the root and keep ``lr`` inside the buffer. The centered variance is kept from falling below 0 by rounding, where torch
    yields NaN.
    """
    states = {"v": h.rho * s.v + (1 - h.rho) * g**2}
    spread = states["v"]
    if variance == "centered":
        states["g_mean"] = h.rho * s.g_mean + (1 - h.rho) * g
        spread = maximum(spread - states["g_mean"] ** 2, 0)
    direction = g / denominator(spread, h.eps, epsilon)
    if buffer == "momentum":
        direction = states["m"] = h.momentum * s.m + direction
    return Step(direction, **states)


@rule(nonnegative=("v",), options={"epsilon": EPSILON, "bias_correction": ("on", "off")})
def adam(g: Expression, s: Namespace, h: Namespace, *, epsilon: str, bias_correction: str) -> Step:
    """Adaptive moment estimation. Kingma and Ba, 2015, Algorithm 1.

    Torch, Optax and Algorithm 1 have eps outside the root; Keras, TensorFlow and scikit-learn compute the eps-hat form of the
    paper's section 2 (Keras with eps 1e-7); Optax's ``eps_root`` stands inside. Without bias correction the step is up to
    6.57 times larger at the usual betas (``BERTAdam``).
    """
    m = first_moment(g, s, h)
    v = second_moment(g, s, h)
    if bias_correction == "off":
        return Step(m / denominator(v, h.eps, epsilon), m=m, v=v)
    m_hat = m / (1 - h.beta1**h.t)
    v_hat = v / (1 - h.beta2**h.t)
    return Step(m_hat / denominator(v, h.eps, epsilon, 1 - h.beta2**h.t), m=m, v=v, m_hat=m_hat, v_hat=v_hat)


@rule(nonnegative=("v", "v_max"), options={"maximum_of": ("raw", "corrected", "paper"), "epsilon": EPSILON})
def amsgrad(g: Expression, s: Namespace, h: Namespace, *, maximum_of: str, epsilon: str) -> Step:
    """Adam with the largest second moment so far. Reddi, Kale and Kumar, 2018, Algorithm 2.

    As torch and Keras: the maximum is taken over the raw ``v`` and then corrected. Optax takes it over ``v_hat`` (``corrected``).
    The paper corrects nothing (``paper``).
    """
    m = first_moment(g, s, h)
    v = second_moment(g, s, h)
    if maximum_of == "paper":
        v_max = maximum(s.v_max, v)
        return Step(m / denominator(v_max, h.eps, epsilon), m=m, v=v, v_max=v_max)
    m_hat = m / (1 - h.beta1**h.t)
    if maximum_of == "corrected":
        v_max = maximum(s.v_max, v / (1 - h.beta2**h.t))
        return Step(m_hat / denominator(v_max, h.eps, epsilon), m=m, v=v, v_max=v_max, m_hat=m_hat)
    v_max = maximum(s.v_max, v)
    v_hat = v_max / (1 - h.beta2**h.t)
    return Step(m_hat / denominator(v_max, h.eps, epsilon, 1 - h.beta2**h.t), m=m, v=v, v_max=v_max, m_hat=m_hat, v_hat=v_hat)


@rule(nonnegative=("u_max",), options={"epsilon": ("within", "added")})
def adamax(g: Expression, s: Namespace, h: Namespace, *, epsilon: str) -> Step:
    """Adam with the infinity norm. Kingma and Ba, 2015, Algorithm 2.

    As torch and Optax: eps is added to ``|g|`` within the maximum. Keras adds it to the denominator (``added``); the paper
    has no eps, which is ``eps=0`` here: a coordinate that never had a gradient then stays where it is.
    """
    m = first_moment(g, s, h)
    size = abs(g) + h.eps if epsilon == "within" else abs(g)
    u_max = maximum(h.beta2 * s.u_max, size)
    m_hat = m / (1 - h.beta1**h.t)
    return Step(m_hat / (u_max if epsilon == "within" else u_max + h.eps), m=m, u_max=u_max, m_hat=m_hat)


@rule(
    initial={"mu_product": 1.0},
    nonnegative=("v", "mu_product"),
    at_most={"mu_product": 1.0},
    options={"form": ("dozat", "optax"), "epsilon": EPSILON},
)
def nadam(g: Expression, s: Namespace, h: Namespace, *, form: str, epsilon: str) -> Step:
    """Adam with Nesterov momentum. Dozat, 2016.

    As torch: the momentum follows Dozat's schedule, whose product is a state; Keras is the same with ``momentum_decay=1``.
    Optax (``form="optax"``) has no schedule: it corrects the next momentum with ``1 - beta1**(t + 1)``.
    """
    m = first_moment(g, s, h)
    v = second_moment(g, s, h)
    v_hat = v / (1 - h.beta2**h.t)
    below = denominator(v, h.eps, epsilon, 1 - h.beta2**h.t)
    if form == "optax":
        m_hat = (h.beta1 / (1 - h.beta1 ** (h.t + 1))) * m + ((1 - h.beta1) / (1 - h.beta1**h.t)) * g
        return Step(m_hat / below, m=m, v=v, m_hat=m_hat, v_hat=v_hat)
    mu = h.beta1 * (1 - 0.5 * 0.96 ** (h.t * h.momentum_decay))
    mu_next = h.beta1 * (1 - 0.5 * 0.96 ** ((h.t + 1) * h.momentum_decay))
    mu_product = s.mu_product * mu
    m_hat = (mu_next / (1 - mu_product * mu_next)) * m + ((1 - mu) / (1 - mu_product)) * g
    return Step(m_hat / below, m=m, v=v, mu=mu, mu_next=mu_next, mu_product=mu_product, m_hat=m_hat, v_hat=v_hat)


@rule(nonnegative=("v",), options={"epsilon": ("hat", "outside", "inside")})
def radam(g: Expression, s: Namespace, h: Namespace, *, epsilon: str) -> Step:
    """Rectified Adam. Liu et al., 2020, Algorithm 2.

    As torch: eps-hat form, rectified where ``rho > 5``, else the corrected first moment alone. The paper's threshold is 4;
    Optax has eps outside the root (``epsilon="outside"``) and its threshold includes 5.
    """
    m = first_moment(g, s, h)
    v = second_moment(g, s, h)
    m_hat = m / (1 - h.beta1**h.t)
    rho_max = 2 / (1 - h.beta2) - 1
    rho = rho_max - 2 * h.t * h.beta2**h.t / (1 - h.beta2**h.t)
    r = sqrt((rho - 4) * (rho - 2) * rho_max / ((rho_max - 4) * (rho_max - 2) * rho))
    rectified = r * m_hat / denominator(v, h.eps, epsilon, 1 - h.beta2**h.t)
    return Step(where(rho > 5, rectified, m_hat), m=m, v=v, m_hat=m_hat, rho_max=rho_max, rho=rho)


# What surrounds every rule. `scale` and `prepare` make the gradient that the rule sees, `apply` moves the parameter.


def scale(g: Expression, h: Namespace) -> Expression:
    """The gradient times the clip of the global norm; negative to maximize."""
    return h.gradient_scale * g


def prepare(g: Expression, p: Expression, h: Namespace) -> Expression:
    """Scale the gradient, bound each element, then couple weight decay (L2); only where there is more to do than to scale."""
    bounded = minimum(maximum(scale(g, h), -h.clip_value), h.clip_value)
    return where(h.coupled_decay == 0, bounded, bounded + h.coupled_decay * p)


def apply(p: Expression, direction: Expression, h: Namespace) -> Expression:
    """Decay the parameter (Loshchilov and Hutter, 2019), then move it against the direction."""
    decayed = where(h.decoupled_decay == 0, p, p - (h.lr * h.decoupled_decay) * p)
    return decayed - h.lr * direction


def clip_ratio(norm: T, clip_norm: T) -> T:
    """The norm that the gradients may have over the one that they have; as torch's clip_grad_norm_. Of numbers or symbols."""
    return clip_norm / (norm + 1e-6)


def clip_factor(norm: float, clip_norm: float) -> float:
    """What the gradients are multiplied by so that their global norm is at most ``clip_norm``: their ratio, at most 1."""
    factor = clip_ratio(norm, clip_norm)
    return 1.0 if factor >= 1.0 else factor  # NaN stays NaN


G, P = symbol("tensor", "g"), symbol("tensor", "p")
PREPARE: Program = lower("prepare", {"prepared": prepare(G, P, Namespace("scalar"))})


def update_program(traced: Traced) -> Program:
    """The whole update of one tensor: new states from the scaled gradient, then the new parameter."""
    h = Namespace("scalar")
    states = tuple(name for name in traced.states if name in traced.element_states)
    results = substitute([*(traced.named[state] for state in states), traced.direction], {("tensor", "g"): scale(G, h)})
    outputs = {**dict(zip(states, results[:-1], strict=True)), "p": apply(P, results[-1], h)}
    memory = {name: traced.named[name] for name in traced.scalar_states}
    return lower(traced.name, outputs, states=states, element_states=traced.element_states, memory=memory)


FAMILY: tuple[Rule, ...] = (sgd, momentum, adagrad, rmsprop, adam, amsgrad, adamax, nadam, radam)
"""Every rule of the package; the native kernels are printed from these."""
