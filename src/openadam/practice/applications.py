"""The practices on applications: the min-max game, a target that switches, rows that are absent, and a report to be read."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..row_sparse import Rows
from .model import Choice, Draw, Mistake, Number, Option, Parts, Question, practice
from .runs import Array, Run, columns, values, whole, worked

__all__ = ["APPLICATIONS"]

INTRODUCTION = "Introduction"
FIELDS = "analyzing its behavior in diverse fields like Generative Adversarial Networks, Reinforcement Learning, and Natural Language Processing"
ADAPTIVE = "The Core Idea: Combining Momentum and Adaptive Learning Rates"


def _angle(vector: Array) -> float:
    return math.degrees(math.atan2(float(vector[1]), float(vector[0])))


@practice(
    "Phase lag: momentum in a gradient that turns",
    section="The First Moment",
    sentence="This accumulated momentum helps the optimizer maintain a consistent direction of travel through the parameter space.",
)
def phase_lag(draw: Draw) -> Question:
    degrees, betas = draw.number(6, 12), (0.5, draw.number(0.75, 0.92, 2))
    turns = [(math.cos(math.radians(degrees * t)), math.sin(math.radians(degrees * t))) for t in range(150)]

    def lag(beta1: float) -> float:
        run = Run("adam", [0.0, 0.0], beta1=beta1).steps(turns)
        return (_angle(np.array(turns[-1])) - _angle(run.state("m"))) % 360.0

    lags = [lag(beta) for beta in betas]
    return Question(
        "Two players of a game, a generator and a discriminator, drive the gradient of both around: it has always length 1 and turns by "
        f"{degrees:g} degrees in every step. By how many degrees does the direction of m lag behind the gradient, once it has settled, for "
        f"beta1 = {betas[0]:g} and for {betas[1]:g}? (Run it: openadam.Adam on two coordinates, and look at opt.state.)",
        Parts(
            (Number("lag_a", lags[0], 0.01), Number("lag_b", lags[1], 0.01)),
            (
                Mistake("radians", "this is in radians", tuple(math.radians(x) for x in lags)),
                Mistake(
                    "mean age",
                    "a gradient in m is beta1/(1 - beta1) steps old on average, but gradients that point elsewhere cancel, the oldest most",
                    tuple(degrees * beta / (1 - beta) for beta in betas),
                ),
                Mistake("none", "m is made of older gradients, which point elsewhere", (0.0, 0.0)),
            ),
        ),
        f"The first steps, for beta1 = {betas[1]:g}; the angle of m is atan2(b, a):\n\n"
        + worked("adam", [tuple(round(x, 6) for x in turn) for turn in turns[:3]], ("g", "m"), beta1=betas[1]),
        columns(("beta1", "lag in degrees"), [(beta, lag(beta)) for beta in sorted({0.0, *betas, 0.95})])
        + "\n\nIn a game the gradient turns with the players, and what lags pushes outwards. It is a reason why GANs are often trained with "
        "beta1 = 0.5 or 0.",
        "Momentum answers a turning gradient too late; a smaller beta1 answers sooner.",
    )


def _play(beta1: float, lr: float, steps: int, *, alternating: bool = True) -> float:
    """How far from the equilibrium two players of min over x, max over y of x y are, from (1, 1)."""
    x, y = Run("adam", 1.0, lr=lr, beta1=beta1, beta2=0.9), Run("adam", 1.0, lr=lr, beta1=beta1, beta2=0.9, maximize=True)
    for _ in range(steps):
        seen = float(x.p[0])
        x.step(y.p)
        y.step(x.p if alternating else seen)
    return math.hypot(float(x.p[0]), float(y.p[0]))


@practice(
    "The min-max game",
    section=INTRODUCTION,
    sentence=FIELDS,
)
def game(draw: Draw) -> Question:
    lr, steps, beta1 = draw.number(0.02, 0.04, 3), draw.whole(300, 400), draw.of(0.5, 0.6, 0.9, 0.92)
    radii = [_play(beta, lr, steps) for beta in (0.0, beta1)]
    both = [_play(beta, lr, steps, alternating=False) for beta in (0.0, beta1)]
    nearer = tuple(radius < math.sqrt(2.0) for radius in radii)
    texts = {
        (True, True): "with both",
        (True, False): "only with beta1 = 0",
        (False, True): f"only with beta1 = {beta1:g}",
        (False, False): "with neither",
    }
    options = draw.shuffled(Option(text, "" if which == nearer else "compare both with sqrt(2)", which == nearer) for which, text in texts.items())
    return Question(
        "One player moves x to make x y small, the other moves y to make it large; both start at 1, and (0, 0) is where they should end. Each "
        f"has an Adam with lr = {lr:g}, beta2 = 0.9 and eps = 1e-8; in each of {steps} rounds x moves first, and y moves by the "
        f"gradient at the new x. How far from (0, 0) are they then, with beta1 = 0 and with beta1 = {beta1:g}? And with which of the two are they "
        f"nearer than at the "
        "start? (openadam.Adam with maximize=True is the second player.)",
        Parts(
            (Number("without", radii[0], 0.01), Number("with", radii[1], 0.01), Choice("nearer", tuple(options))),
            (
                Mistake("at once", "this is if both move at once; here y sees the new x", (both[0], both[1], None)),
                Mistake("exchanged", "these are the two, exchanged", (radii[1], radii[0], None)),
                Mistake("squared", "this is the square of the distance", (radii[0] ** 2, radii[1] ** 2, None)),
            ),
        ),
        "The first player's first steps, while y is still near 1:\n\n" + worked("adam", [1, 1], (), 1, params=1, lr=lr, beta1=0.9, beta2=0.9),
        columns(("beta1", "distance"), [(beta, _play(beta, lr, steps)) for beta in sorted({0.0, 0.5, beta1, 0.9})])
        + "\n\nThe players circle around (0, 0), so each gradient turns. Without momentum, alternating steps lead inwards; m lags behind a "
        "gradient that turns, and what lags pushes outwards: a little at beta1 = 0.5, and at 0.9 more than they come in.",
        "In a game momentum does harm: a matter of phase, not of noise.",
    )


BEFORE = 300  # steps before a switch


def _settled(**h: Any) -> Run:
    """Some hundred steps with a gradient of 1."""
    return Run("adam", **h).steps([1.0] * BEFORE)


@practice(
    "The target switches",
    section=INTRODUCTION,
    sentence=FIELDS,
)
def target_switch(draw: Draw) -> Question:
    factor, beta1, beta2 = draw.number(4, 15), draw.of(0.8, 0.9), draw.of(0.98, 0.99, 0.995)
    h: dict[str, Any] = {"lr": 1.0, "beta1": beta1, "beta2": beta2, "eps": 0.0}
    moved = _settled(**h).steps([factor] * 100).moved[BEFORE:, 0]
    peak = int(moved.argmax())
    return Question(
        "In reinforcement learning the target network is replaced now and then, and errors are suddenly larger. Say that the gradient was 1 "
        f"for {BEFORE} steps, and is {factor:g} from then on; lr = 1, beta1 = {beta1:g}, beta2 = {beta2:g}, no eps. How large is the first "
        "step after the switch? How large is the largest one, and which step after the switch (1 is the first) is it?",
        Parts(
            (Number("first", float(moved[0])), Number("largest", float(moved[peak])), whole("which", peak + 1)),
            (
                Mistake("invariant", "the step is invariant to scale only if the whole history is scaled", (1.0, None, None)),
                Mistake("gradient", "the step is not proportional to the gradient: m and v are averages", (factor, None, None)),
                Mistake("first is largest", "m goes on growing, and faster than sqrt(v)", (None, float(moved[0]), 1.0)),
                Mistake("from 0", "the first step after the switch is number 1", (None, None, float(peak))),
                Mistake("m alone", "v learns of the new gradient too", (beta1 + (1 - beta1) * factor, None, None)),
            ),
        ),
        "The same with short memories, so that a few steps are enough; the switch is at step 9:\n\n"
        + worked("adam", [1] * 8 + [factor, factor], ("m", "v", "direction"), 2, lr=1.0, beta1=0.3, beta2=0.5, eps=0.0),
        columns(("step after", "moves by"), [(str(t + 1), float(moved[t])) for t in sorted({0, 1, 2, peak - 1, peak, peak + 1, 40, 99}) if t >= 0])
        + "\n\nm learns of the larger gradient sooner than v does: after each switch some steps are too large, a comb over the run. A beta2 "
        "nearer to beta1 shortens it.",
        "After a change of scale Adam's steps are too large until v has caught up.",
    )


@practice(
    "Reset the moments, or only the clock?",
    section="The Problem of Initialization Bias and its Correction",
    sentence="Because of this initialization, the estimates are biased towards zero, especially during the very first few iterations of training.",
)
def reset(draw: Draw) -> Question:
    factor, lr = draw.sign() * draw.number(3, 15), draw.of(0.1, 0.2, 0.5, 1.0)
    beta1, beta2 = draw.of(0.8, 0.9), draw.of(0.995, 0.998, 0.999)
    h: dict[str, Any] = {"lr": lr, "beta1": beta1, "beta2": beta2, "eps": 0.0}

    def first(t: int | None = None, m: float | None = None, v: float | None = None) -> float:
        run = _settled(**h)
        if t is not None:
            run.restart(t, m, v)
        return float(run.step(factor).moved[-1, 0])

    keep, everything, clock, moments = first(), first(0, 0.0, 0.0), first(0), first(BEFORE, 0.0, 0.0)
    return Question(
        f"The gradient was 1 for {BEFORE} steps, and after a switch of the target it is {factor:g}. lr = {lr:g}, beta1 = {beta1:g}, beta2 = "
        f"{beta2:g}, no eps. By how much does the first step after the switch move the parameter downwards (p before minus p after, with its "
        "sign), if the optimizer goes on as it is; if m, v and t are reset to 0; and if only t is?",
        Parts(
            (Number("kept", keep, 2e-3), Number("all", everything, 2e-3, printed=True), Number("clock", clock, 2e-3)),
            (
                Mistake(
                    "moments only", "this is if m and v are reset and t is not: the correction that they need is then missing", (None, moments, None)
                ),
                Mistake("same", "with t = 1 the kept moments are corrected as if they were new: m by 1/(1 - beta1), v by more", (None, None, keep)),
                Mistake("as reset", "m and v are kept", (None, None, everything)),
                Mistake("sign", "the sign is that of the new gradient, or of m", (None, -everything, None)),
                Mistake("gradient", "the size of the gradient cancels, as it does in every first step", (None, lr * factor, None)),
            ),
        ),
        "A first step, which is what a full reset makes of the next one:\n\n" + worked("adam", [-factor], ("m_hat", "v_hat", "direction"), **h),
        columns(
            ("what is reset", "the first step after the switch"),
            [("nothing", keep), ("m, v and t", everything), ("t alone", clock), ("m and v, and not t (a mistake)", moments)],
        )
        + "\n\nA full reset makes a step of lr, in the direction of the new gradient. With t alone, both kept moments are divided by small "
        "numbers, v by the smaller one: the step shrinks, by sqrt(1 - beta2)/(1 - beta1) if they were settled. That is Adam on local time "
        "(Ellis et al., 2024); resetting all is Asadi et al., 2023.",
        "What is reset decides the size of the next step: lr, or less than lr.",
    )


ROUNDS = 20


@practice(
    "Rows that are absent",
    section=ADAPTIVE,
    sentence="This is particularly useful in sparse gradient settings",
)
def absent_rows(draw: Draw) -> Question:
    rows, beta1 = draw.whole(4, 12), draw.number(0.6, 0.92, 2)

    def share(rule: str = "adam", lazy: bool = False, **change: float) -> float:
        run = Run(rule, [0.0] * rows, **{"lr": 1.0, "beta1": beta1, "beta2": 0.999, **change})
        run.steps(Rows([t % rows], np.ones(1)) if lazy else np.eye(rows)[t % rows] for t in range(ROUNDS * rows))
        last = abs(run.moved[-rows:])  # one round
        return float(last.sum() - np.trace(last)) / float(last.sum())

    right, zero = share(), draw.of(True, False)
    changes = [
        draw.of(("beta1 = 0", share(beta1=0.0)), ("a step over the rows that the batch has only, as SparseAdam makes it", share(lazy=True))),
        ("a tenth of the learning rate", share(lr=0.1)),
        ("a shorter memory of v (beta2 = 0.9)", share(beta2=0.9)),
        ("decoupled weight decay (AdamW, 0.01)", share("adamw", weight_decay=0.01)),
    ]
    fits = [abs(then - (0.0 if zero else right)) < 1e-6 for _, then in changes]
    options = draw.shuffled(
        Option(name, "" if fit else f"the share is then {then:.4g}", fit) for (name, then), fit in zip(changes, fits, strict=True)
    )
    return Question(
        f"An embedding has {rows} rows. Each batch has one word, so one row has the gradient 1 and all others 0, in turn; Adam has lr = 1, "
        f"beta1 = {beta1:g}, beta2 = 0.999 and eps = 1e-8, and the rows start at 0. After {ROUNDS} rounds, which share of all motion in a round "
        "(the sum of the lengths of all moves) is by rows that were absent from the batch? And which change "
        f"{'makes it 0' if zero else 'leaves it as it is'}?",
        Parts(
            (Number("share", right, 0.01), Choice("change", tuple(options))),
            (
                Mistake("none", "a row without gradient still has m, and moves by it", (0.0, None)),
                Mistake("present", "this is the share of the rows that were there", (1 - right, None)),
                Mistake("rows", "the rows do not move alike: the present one moves most", ((rows - 1) / rows, None)),
                Mistake("forever", "between two visits of a row m fades for a limited time only", (beta1, None)),
            ),
        ),
        "One row, in its own batch and in the two after it:\n\n" + worked("adam", [1, 0, 0], ("g", "m", "p"), lr=1.0, beta1=beta1),
        columns(("beta1", "share of absent rows"), [(beta, share(beta1=beta)) for beta in (0.0, 0.5, beta1)])
        + "\n\n"
        + columns(("change", "share of absent rows"), changes)
        + "\n\nA row moves by m, which fades by beta1 in every step without a gradient. Most of the motion of an embedding is of that kind. The "
        "learning rate scales all moves alike; beta1 = 0 and lazy steps, as SparseAdam makes them, end it.",
        "Dense Adam moves rows that no batch has; that is momentum, and it can be left out.",
    )


DISEASES = {
    "steady": "the gradient is large against its noise and keeps its sign: it goes as fast as Adam goes",
    "noise": "there is hardly anything but noise: only averaging, or a larger batch, helps",
    "epsilon": "gradients have become so small that eps decides: it is gradient descent with the rate lr/eps",
    "stale": "one huge gradient is still in both moments: steps go against the gradient",
    "oscillation": "the gradient changes its sign in every step: the learning rate is too large for this direction",
}


def _gradients(disease: str, draw: Draw) -> list[float]:
    noise = [draw.number(-1, 1, 6) for _ in range(24)]
    if disease == "stale":
        return [1.0] * 10 + [draw.of(2e3, 5e3)] + [-1.0 - 0.1 * x for x in noise[:13]]
    size = {"steady": 2.0, "noise": 1.0, "epsilon": 3e-10, "oscillation": 1.0}[disease]
    if disease == "oscillation":
        return [(-1) ** t * (1.0 + 0.1 * x) for t, x in enumerate(noise)]
    return [size * (x if disease == "noise" else 1.0 + 0.2 * x) for x in noise]


@practice(
    "Read a report and name the disease",
    section=INTRODUCTION,
    sentence="We address the knowledge gap between simply using Adam as a black box and truly appreciating its design.",
)
def report(draw: Draw) -> Question:
    chosen = draw.shuffled(DISEASES)[:3]
    order = draw.shuffled(DISEASES)
    rows = []
    for name, disease in zip("ABC", chosen, strict=True):
        grads = _gradients(disease, draw)
        steps = values("adam", grads, lr=1.0)[-12:]
        last, size = steps[-1], len(steps)
        root = math.sqrt(last["v_hat"])
        against = sum(step["m_hat"] * step["g"] < 0 for step in steps) / size
        floor = root / (root + 1e-8)
        rows.append(
            (
                name,
                math.sqrt(sum(step["g"] ** 2 for step in steps) / size),
                root,
                sum(abs(step["direction"]) for step in steps) / size,
                against,
                floor,
            )
        )
    choices = []
    for place, (name, disease) in enumerate(zip("ABC", chosen, strict=True)):
        options = tuple(
            Option(
                DISEASES[other],
                "" if other == disease else f"look at the row of {name} again: floor first, then against, then step/lr",
                other == disease,
            )
            for other in order
        )
        choices.append(Choice(name, options, listed=place == 0))
    return Question(
        "Three tensors under Adam at lr = 1 and the usual settings, over the last 12 steps: the root mean square of g; sqrt(v_hat) at the "
        "end; the mean size of a step in units of lr (noise alone: about 0.2); the share of steps in which m_hat and g have different signs "
        "(noise alone: about 0.36); and sqrt(v_hat)/(sqrt(v_hat) + eps).\n\n"
        + columns(("tensor", "rms g", "sqrt(v_hat)", "step/lr", "against", "floor"), rows)
        + "\n\nWhich of these is the state of A, of B and of C?",
        Parts(tuple(choices)),
        "How a huge gradient among small ones looks in a trace, one step later:\n\n" + worked("adam", [1, 1, 2000, -1], (), 1, lr=1.0),
        "\n".join(f"{name}: {DISEASES[disease]}." for name, disease in zip("ABC", chosen, strict=True))
        + "\n\nfloor far below 1: eps. against near 1, and sqrt(v_hat) far above rms g: stale moments. step/lr near 1: a steady gradient. Of "
        "the other two, oscillation has the smaller step/lr, near (1 - beta1)/(1 + beta1) = 0.053, since its gradients cancel, and against "
        "= 0: m follows the last one.",
        "Four numbers a tensor tell what a loss curve does not.",
    )


APPLICATIONS = (phase_lag, game, target_switch, reset, absent_rows, report)
