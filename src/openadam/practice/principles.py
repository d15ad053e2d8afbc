"""The practices on how Adam works, in the article's order: the moments, the step and its scale, the correction, the whole."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .model import Choice, Draw, Mistake, Number, Option, Parts, Question, practice
from .programs import Case, Task
from .runs import Run, after_step, columns, listing, mistake_of, source, spoken, step_from, values, whole, worked
from .wrong import WRONG, Wrong, adam_but

__all__ = ["BIAS", "PRINCIPLES", "SECOND", "UPDATE", "WHOLE", "written_task"]

FIRST, SECOND = "The First Moment", "The Second Moment"
UPDATE = "The Adam Update Rule: Unification and Scale Invariance"
BIAS = "The Problem of Initialization Bias and its Correction"
WHOLE = "The Complete Algorithm and its Context"


@practice(
    "The two moments of a vector, after one step",
    section=SECOND,
    sentence="Here, the squaring operation g_t^2 is performed element-wise for each parameter's gradient.",
    problem="2152288",
)
def moments(draw: Draw) -> Question:
    g = (draw.number(1, 5), -draw.number(1, 5))
    h: dict[str, Any] = {"lr": 0.001, "beta1": draw.of(0.8, 0.9, 0.95), "beta2": draw.of(0.98, 0.99, 0.999), "eps": 1e-8}
    (right,) = values("adam", [g], **h)
    names = ("m_a", "m_b", "v_a", "v_b")

    def of(name: str) -> Mistake:
        (found,) = values(WRONG[name].rule, [g], **h)
        return mistake_of(name, *found["m"], *found["v"])

    corrected = "these are the corrected moments, m_hat and v_hat, which come later; asked for are m and v"
    return Question(
        f"Two coordinates, a and b, get the gradient g1 = ({g[0]:g}, {g[1]:g}). Both moments start at 0; beta1 = {h['beta1']:g}, beta2 = "
        f"{h['beta2']:g}. What are the first and the second moment after this step?",
        Parts(
            tuple(Number(name, value) for name, value in zip(names, (*right["m"], *right["v"]), strict=True)),
            (of("weights"), of("betas"), of("square"), Mistake("corrected", corrected, (*right["m_hat"], *right["v_hat"]))),
        ),
        "The article's own numbers, worked through:\n\n" + worked("adam", [(2, -4)], ("m", "v")),
        worked("adam", [g], ("g", "m", "v"), **h)
        + "\n\nEach coordinate has moments of its own. They are small because they start at 0: one step contributes 1 - beta of a gradient.",
        "Each coordinate has its own moments, and both start far too small.",
    )


@practice(
    "Momentum remembers, and may disagree",
    section=FIRST,
    sentence='m_t is not just the current gradient but a "memory" of past gradients',
    problem="2152284",
)
def memory(draw: Draw) -> Question:
    beta1 = draw.of(0.7, 0.8, 0.9)
    while True:
        sign, odd = draw.sign(), draw.whole(1, 3)
        grads = [sign * (-1 if t == odd else 1) * float(draw.whole(2, 7) if t == odd else draw.whole(8, 25)) for t in range(4)]
        m = [step["m"] for step in values("adam", grads, beta1=beta1)]
        if [t for t in range(4) if m[t] * grads[t] < 0] == [odd]:
            break
    h: dict[str, Any] = {"lr": 0.001, "beta1": beta1, "beta2": 0.999, "eps": 1e-8}
    heavy = values("momentum", grads, momentum=beta1)[-1]["m"]
    given = ", ".join(f"g{t} = {g:g}" for t, g in enumerate(grads, 1))
    return Question(
        f"A parameter gets the gradients {given}; beta1 = {beta1:g}, m0 = 0. What is m4? And at which one step does m point against that "
        "step's own gradient?",
        Parts(
            (Number("m4", m[-1]), whole("step", odd + 1)),
            (
                mistake_of("weights", values(WRONG["weights"].rule, grads, **h)[-1]["m"], None),
                Mistake("momentum", "the new gradient is not weighted by 1 - beta1; this is classical momentum", (heavy, None)),
                Mistake("mean", "this is the plain mean; older gradients count less", (sum(grads) / 4, None)),
                Mistake("corrected", "this is m_hat, corrected; asked for is m", (values("adam", grads, beta1=beta1)[-1]["m_hat"], None)),
                Mistake("from 0", "the steps are counted from 0; the first is t = 1", (None, float(odd))),
            ),
        ),
        "The article's example, worked through; look for the step at which m and g have different signs:\n\n"
        + worked("adam", [20, -5, 8], ("g", "m"), beta1=0.8),
        worked("adam", grads, ("g", "m"), beta1=beta1)
        + f"\n\nAt step {odd + 1} the gradient is {grads[odd]:g} and m is {m[odd]:.6g}: this step goes against what its own gradient asks for.",
        "m is an average over the past, and a step may go against its own gradient.",
    )


@practice(
    "How long a moment remembers",
    section=FIRST,
    sentence="A value close to 1 means that past gradients have a strong, persistent influence on the current momentum estimate.",
)
def half_life(draw: Draw) -> Question:
    short, long = draw.number(0.7, 0.9, 2), draw.number(0.95, 0.99, 3)

    def steps(beta: float) -> int:
        run = Run("adam", beta1=beta).step(1.0)
        full, count = run.state("m")[0], 0
        while run.state("m")[0] > full / 2:
            run.step(0.0)
            count += 1
        return count

    counts = steps(short), steps(long)
    horizons = [1 / (1 - beta) for beta in (short, long)]
    return Question(
        "A gradient enters m with its full weight, 1 - beta1, and then fades. After how many further steps has it at most half of this "
        f"weight, for beta1 = {short:g} and for beta1 = {long:g}?",
        Parts(
            (whole("short", counts[0]), whole("long", counts[1])),
            (
                Mistake(
                    "horizon", "1/(1 - beta) is another measure of memory, where the weight has fallen to about 1/e", tuple(map(round, horizons))
                ),
                Mistake("entry", "the step at which it enters was counted too", (counts[0] + 1.0, counts[1] + 1.0)),
            ),
        ),
        "A gradient of 1 and then none; watch m, here at beta1 = 0.5, where one further step is enough:\n\n"
        + worked("adam", [1, 0, 0], ("m",), beta1=0.5),
        f"Every further step multiplies the weight by beta1: {short:g}^{counts[0]} = {short ** counts[0]:.4g}, {long:g}^{counts[1]} = "
        f"{long ** counts[1]:.4g}, and one step earlier both are above 1/2. In closed form: log(1/2)/log(beta1), rounded up. For beta1 = "
        f"{short:g}:\n\n"
        + columns(
            ("further steps", "m/m1"),
            [(str(t), step["m"] / (1 - short)) for t, step in enumerate(values("adam", [1.0] + [0.0] * counts[0], beta1=short))],
        ),
        "Ten times nearer to 1 is a memory ten times as long: 7 steps at 0.9, 69 at 0.99, 693 at 0.999.",
    )


@practice(
    "The second moment of three gradients",
    section=SECOND,
    sentence="This running average v_t keeps track of the typical magnitude of gradients for each parameter.",
    problem="2152278",
)
def squares(draw: Draw) -> Question:
    grads = [draw.sign() * draw.number(0.1, 1.5) for _ in range(3)]
    h: dict[str, Any] = {"lr": 0.001, "beta1": 0.9, "beta2": draw.of(0.9, 0.95, 0.98), "eps": 1e-8}
    last = values("adam", grads, **h)[-1]

    def of(name: str) -> Mistake:
        found = values(WRONG[name].rule, grads, **h)[-1]
        return mistake_of(name, found["v"], found["v_hat"] if name != "weights" else None)

    variance = last["v_hat"] - last["m_hat"] ** 2
    return Question(
        f"A parameter gets the gradients {spoken(grads)}; beta2 = {h['beta2']:g}, v0 = 0. What is v3? And what is it once the bias is "
        "corrected, v_hat3 = v3/(1 - beta2^3)?",
        Parts(
            (Number("v3", last["v"]), Number("v_hat3", last["v_hat"])),
            (
                of("square"),
                of("weights"),
                Mistake("sum", "this is the sum of the squares, as Adagrad keeps it", (values("adagrad", grads)[-1]["sum"], None)),
                Mistake("root", "this is the root, which is taken only where the step is divided by it", (last["v"] ** 0.5, last["v_hat"] ** 0.5)),
                Mistake("variance", "this is the variance; v is the raw second moment, from which no mean is taken", (None, variance)),
            ),
        ),
        "The article's numbers, worked through:\n\n" + worked("adam", [0.5, -0.3, 0.8], ("v", "v_hat"), beta2=0.95),
        worked("adam", grads, ("v", "v_hat"), **h)
        + f"\n\nThe signs do not matter. sqrt(v_hat3) = {last['v_hat'] ** 0.5:.4g} is a typical magnitude of these gradients.",
        "v knows how large gradients are and nothing of their signs.",
    )


def written_task(rng: Draw, arguments: str, results: str, wrongs: tuple[Wrong, ...], **fixed: float) -> Task:
    """A program to be written: hidden gradients and settings, what Adam makes of them, and what Adam with a mistake does."""
    taken, returned = tuple(arguments.split(", ")), tuple(results.split(", "))
    sequences = [
        [rng.number(-9, 9, 3) for _ in range(6)],
        [rng.number(-1e-3, 1e-3, 7), 0.0, rng.number(1, 2, 3), 0.0],
        [rng.sign() * rng.number(1, 3, 2) * 1e-8, rng.number(1e-8, 5e-8, 10)],
        [rng.number(50, 200), *[-rng.number(0.5, 2)] * 4],
    ]
    cases, settings = [], []
    for gradients in sequences:
        h: dict[str, Any] = {
            "lr": rng.number(0.01, 0.5, 3),
            "beta1": rng.number(0.5, 0.95, 3),
            "beta2": rng.number(0.8, 0.98, 3),
            "eps": rng.of(1e-8, 1e-4, 1e-2),
            **fixed,
        }
        settings.append(h)
        start = {"p": rng.number(-2, 2), "m": 0.0, "v": 0.0, **h}
        cases.append(Case({name: value for name, value in start.items() if name in taken}, tuple(gradients)))

    def played(rule: str | Wrong) -> list[list[list[float]]]:
        found: list[list[list[float]]] = []
        for case, h in zip(cases, settings, strict=True):
            run = Run(rule if isinstance(rule, str) else rule.rule, case.start.get("p", 0.0), **h)
            found.append([])
            for g in case.gradients:
                run.step(g)
                found[-1].append([float((run.p if name == "p" else run.state(name))[0]) for name in returned])
        return found

    mistakes = tuple((wrong.name, wrong.says, played(wrong)) for wrong in wrongs)
    return Task(taken, returned, tuple(cases), played("adam"), mistakes, source("adam", arguments, returned))


@practice(
    "Write it: the two moments",
    section="The Core Idea: Combining Momentum and Adaptive Learning Rates",
    sentence="Adam integrates these two concepts by maintaining moving averages of both the gradient (the first moment) and its square",
)
def write_moments(draw: Draw) -> Question:
    task = written_task(draw, "g, m, v, beta1, beta2", "m, v", tuple(WRONG[name] for name in ("weights", "betas", "square", "m", "v")))
    return Question(
        "Write a function in a file of its own,\n\n    def step(g, m, v, beta1, beta2):\n        ...\n        return m, v\n\nthat takes a "
        "gradient and the two moments before it, and returns the two moments after it. All are numbers.",
        task,
        "The formulas stand in every trace:\n\n" + worked("adam", [2], ("m", "v")),
        f"{listing(task.answer)}\n\nPrinted from the graph of the package's own rule.",
        "This is half of Adam.",
    )


@practice(
    "Do large gradients make small steps?",
    section=SECOND,
    sentence="A large value in v_t leads to a large denominator, which in turn reduces the size of the update step for that specific parameter.",
    problem="2152271",
)
def adaptivity(draw: Draw) -> Question:
    lr, beta1 = draw.of(0.1, 0.01, 0.001), draw.of(0.8, 0.9, 0.95)
    large, small = float(draw.whole(20, 200)), draw.number(0.01, 0.09, 2)
    signs = np.resize([1.0, -1.0], 200)
    run = Run("adam", [0.0] * 3, lr=lr, beta1=beta1, beta2=0.999, eps=0.0).steps([large, small, large * sign] for sign in signs)
    moved = [abs(float(x)) for x in run.moved[-1]]
    return Question(
        f"Three coordinates under Adam with lr = {lr:g}, beta1 = {beta1:g}, beta2 = 0.999 and no eps. For 200 steps, a always has the gradient "
        f"{large:g}, b always {small:g}, and c has {large:g} and {-large:g} in turn. How far does each move in step 200 (without its sign)?",
        Parts(
            tuple(Number(name, value, 0.01, printed=name != "c") for name, value in zip("abc", moved, strict=True)),
            (
                Mistake(
                    "multiplier",
                    "this is what the gradient is multiplied by; the step is that times the gradient",
                    (lr / large, lr / small, lr / large),
                ),
                Mistake("plain", "this is gradient descent; Adam divides by the size of the gradients", (lr * large, lr * small, lr * large)),
                Mistake("cancelled", "the last gradient weighs more than the one before, so that they do not cancel", (None, None, 0.0)),
                Mistake("signs", "v knows no signs, but m averages them out", (None, None, moved[0])),
            ),
        ),
        "The first steps of three such coordinates, in which b is a hundredth of a; compare the lines of m_hat and sqrt(v_hat):\n\n"
        + worked("adam", [(1, 0.01, 1), (1, 0.01, -1)], ("m_hat", "v_hat", "p"), eps=0.0, lr=1.0),
        f"a and b move by lr, {moved[0]:.4g} and {moved[1]:.4g}: v changes the multiplier of the gradient, and the step is the multiplier "
        f"times the gradient. c moves by {moved[2]:.4g}, which is (1 - beta1)/(1 + beta1) = {(1 - beta1) / (1 + beta1):.4g} of that: m "
        "averages signs that disagree, v does not. So a steady large gradient makes no smaller steps than a steady small one. Disagreement "
        "does.",
        "Not size but disagreement makes steps small.",
    )


@practice(
    "Scale invariance, and where it ends",
    section=UPDATE,
    sentence="the magnitude of this update direction would remain unchanged",
    problem="2152272",
)
def scale(draw: Draw) -> Question:
    eps, lr = draw.of(1e-8, 1e-7, 1e-6), draw.of(0.1, 0.01, 0.001)
    tiny, near, usual = eps * draw.number(0.2, 0.8), eps * draw.whole(2, 30), float(draw.whole(1, 9))
    gs = (usual, near, tiny)

    def steps(**option: str) -> tuple[float, ...]:
        return tuple(float(x) for x in Run("adam", [0.0] * 3, lr=lr, eps=eps, **option).step(gs).moved[0])

    right = steps()
    return Question(
        f"Three coordinates have the first gradients {usual:g}, {near:.3g} and {tiny:.3g}; lr = {lr:g}, eps = {eps:g}. How far does the first "
        "step of Adam move each?",
        Parts(
            tuple(Number(name, value, printed=name == "a") for name, value in zip("abc", right, strict=True)),
            (
                Mistake("no eps", "this is the step for eps = 0; here the gradients come near eps", (None, lr, lr)),
                Mistake("inside", WRONG["inside"].says, (None, *steps(epsilon="inside")[1:])),
                Mistake(
                    "hat", "this is the eps-hat of Keras and TensorFlow, which acts as if it were larger at first", (None, *steps(epsilon="hat")[1:])
                ),
                Mistake("sign", WRONG["sign"].says, tuple(-x for x in right)),
            ),
        ),
        "A first step with gradients near eps = 1e-8:\n\n" + worked("adam", [(1, 1e-6, 1e-8)], ("m_hat", "v_hat", "direction"), lr=1.0),
        worked("adam", [gs], ("m_hat", "v_hat", "direction", "p"), lr=lr, eps=eps)
        + "\n\nAt t = 1, m_hat = g and sqrt(v_hat) = |g|, so the step is lr |g|/(|g| + eps): lr, unless the gradient is as small as eps.",
        "A step is invariant to scale as far as gradients are large against eps.",
    )


@practice(
    "The first step with and without correction",
    section=BIAS,
    sentence="This shows that without bias correction, the initial update step would be dramatically larger than intended",
    problem="2152280, 3095785",
)
def first_step(draw: Draw) -> Question:
    beta1, beta2 = draw.of(
        (draw.number(0.5, 0.95, 2), draw.of(0.99, 0.999, 0.9999)),  # mostly larger
        (draw.number(0.7, 0.95, 2), draw.number(0.8, 0.9, 2)),  # smaller
        draw.of((0.5, 0.75), (0.6, 0.84), (0.7, 0.91), (0.8, 0.96), (0.9, 0.99)),  # as large
    )
    h: dict[str, Any] = {"lr": 1.0, "beta1": beta1, "beta2": beta2, "eps": 0.0}
    off, on = (Run("adam", bias_correction=choice, **h).step(3.0).moved[0, 0] for choice in ("off", "on"))
    ratio = float(off / on)
    it_is = 0 if ratio > 1.001 else 1 if ratio < 0.999 else 2
    mistakes = [mistake_of("root", (1 - beta1) / (1 - beta2), None), Mistake("first only", "v is without correction too", (1 - beta1, None))]
    if it_is != 2:  # at a ratio of 1 these are right, or another mistake
        mistakes += [
            Mistake("upside down", "this is with over without", (1 / ratio, None)),
            Mistake("second only", "m is without correction too", (1 / math.sqrt(1 - beta2), None)),
        ]
    options = [
        Option(text, "" if place == it_is else "compare the ratio with 1", place == it_is)
        for place, text in enumerate(("larger", "smaller", "as large"))
    ]
    return Question(
        f"beta1 = {beta1:g}, beta2 = {beta2:g}, eps = 0. How many times as large is the first step of Adam without bias correction as the one "
        "with it? So, is it larger, smaller or as large?",
        Parts(
            (Number("ratio", ratio), Choice("it_is", tuple(options))),
            tuple(mistakes),
        ),
        "With beta1 = 0.9 and beta2 = 0.999, without correction; with it, the first step is lr:\n\n"
        + worked("adam", [3], ("m", "v", "direction"), lr=1.0, bias_correction="off"),
        worked("adam", [3], ("m", "v", "direction"), bias_correction="off", **h)
        + f"\n\nand with correction the direction is 1, so the ratio is (1 - beta1)/sqrt(1 - beta2) = {ratio:.5g}. m and v both start too "
        "small. v is corrected by more, but stands under the root: which of the two wins is a matter of the betas.",
        "The correction shrinks the first step at the usual betas, and not at all betas.",
    )


@practice(
    "The worst step without correction",
    section=BIAS,
    sentence="As t grows large, the denominators approach 1, and the correction becomes negligible.",
    problem="3095785",
)
def worst_step(draw: Draw) -> Question:
    beta1, beta2 = draw.number(0.8, 0.95, 2), draw.number(0.98, 0.9995, 4)
    h: dict[str, Any] = {"lr": 1.0, "beta1": beta1, "beta2": beta2, "eps": 0.0}
    off, on = (Run("adam", bias_correction=choice, **h).steps([1.0] * 120).moved[:, 0] for choice in ("off", "on"))
    ratios = off / on
    at = int(ratios.argmax())
    return Question(
        f"All gradients are 1; beta1 = {beta1:g}, beta2 = {beta2:g}, eps = 0. At which step t is a step without bias correction largest "
        "against the one with it? And how many times as large is it there? (Draw the curve: a few lines of Python, or openadam.Adam with\n"
        'bias_correction="off".)',
        Parts(
            (whole("t", at + 1), Number("ratio", float(ratios[at]))),
            (
                Mistake("first", "the first step is not the worst: m grows faster than sqrt(v)", (1.0, float(ratios[0]))),
                Mistake("from 0", WRONG["zero"].says, (float(at), None)),
                Mistake("upside down", "this is with over without", (None, float(1 / ratios[at]))),
                Mistake("root", WRONG["root"].says, (None, float((1 - beta1 ** (at + 1)) / (1 - beta2 ** (at + 1))))),
            ),
        ),
        "The second and third step without correction, at the usual betas; with it, every direction here is 1:\n\n"
        + worked("adam", [1, 1, 1], ("m", "v", "direction"), 2, lr=1.0, eps=0.0, bias_correction="off"),
        columns(("t", "ratio"), [(str(t + 1), float(ratios[t])) for t in sorted({0, 1, 4, at - 1, at, at + 1, 29, 59, 119})])
        + f"\n\nThe ratio is (1 - beta1^t)/sqrt(1 - beta2^t). m is nearly full after 1/(1 - beta1) = {1 / (1 - beta1):.0f} steps, v only after "
        f"{1 / (1 - beta2):.0f}: in between the numerator is there and the denominator is not. It peaks at t = {at + 1} with "
        f"{ratios[at]:.5g}.",
        "The article's 3.16 is the first step; the worst comes later.",
    )


@practice(
    "One step by hand",
    section=WHOLE,
    sentence="This algorithm effectively combines the benefits of momentum and per-parameter adaptive scaling.",
)
def one_step(draw: Draw) -> Question:
    h: dict[str, Any] = {
        "lr": draw.of(0.1, 0.2, 0.5),
        "beta1": draw.of(0.7, 0.8, 0.9),
        "beta2": draw.of(0.9, 0.95, 0.99),
        "eps": draw.of(0.1, 0.2, 0.3),
    }
    t = draw.whole(3, 5)
    grads = [draw.sign() * draw.number(0.5, 3) for _ in range(t)]
    begin = draw.number(-2, 2)
    old = values("adam", grads, params=begin, **h)[-2]
    state = {"p": round(old["p"], 4), "g": grads[-1], "m": round(old["m"], 4), "v": round(old["v"], 4), "t": t}

    def by(*words: str) -> float:
        return step_from(adam_but(*words), **state, **h)

    named = ("uncorrected", "inside", "zero", "root", "rate", "sign", "multiplied", "twice", "betas", "weights", "square")
    place = f"p{t}"
    start = step_from("adam", **{**state, "g": 0.0}, **h)
    return Question(
        f"Adam with lr = {h['lr']:g}, beta1 = {h['beta1']:g}, beta2 = {h['beta2']:g}, eps = {h['eps']:g} (so large that its place can be seen) "
        f"has taken {t - 1} steps. Now p = {state['p']:g}, m = {state['m']:g}, v = {state['v']:g}, and the next gradient is {state['g']:g}. "
        "Where is p after this step?",
        Parts(
            (after_step(place, by(), state["p"]),),
            (
                *(mistake_of(name, by(name)) for name in named),
                Mistake("before", "this is where p was before the step", (state["p"],)),
                Mistake("no gradient", "the new gradient did not enter the moments", (start,)),
                Mistake("update", "this is the change of p; asked for is where p is then", (by() - state["p"],)),
            ),
        ),
        "Two steps with other numbers, the second worked through:\n\n" + worked("adam", [2, -1], (), 1, lr=0.1, beta1=0.8, beta2=0.9, eps=0.1),
        f"The run of which this is the last step, traced from its start at {begin:g}:\n\n"
        + worked("adam", grads, (), 1, params=begin, **h)
        + f"\n\nFrom the moments as the question gives them, rounded, p{t} = {by():.6g}.",
        "That is the whole of Adam; the rest of this chapter is what it does.",
    )


@practice(
    "Write it: Adam",
    section=WHOLE,
    sentence="Putting all the pieces together, the complete Adam algorithm for a single parameter update at timestep t proceeds as follows",
)
def write_adam(draw: Draw) -> Question:
    named = ("uncorrected", "inside", "root", "rate", "sign", "multiplied", "twice", "place", "betas", "weights", "square", "m", "v", "precedence")
    arguments = "p, g, m, v, t, lr, beta1, beta2, eps"
    task = written_task(draw, arguments, "p, m, v", tuple(WRONG[name] for name in named))
    return Question(
        f"Write a function in a file of its own,\n\n    def step({arguments}):\n        ...\n        return p, m, v\n\nthat takes a parameter, "
        "its gradient, the moments before the step and the number t of the step (from 1), and returns the parameter and the moments after it. "
        "All are numbers.",
        task,
        "Every line with its formula:\n\n" + worked("adam", [2]),
        f"{listing(task.answer)}\n\nPrinted from the graph of the package's own rule (openadam show adam).",
        "You have written Adam, and it agrees with the package's own.",
    )


@practice(
    "A flat region without epsilon",
    section=UPDATE,
    sentence="leading to a division-by-zero error and an infinitely large update",
    problem="2152248",
)
def flat_region(draw: Draw) -> Question:
    beta1, beta2 = draw.of(
        (draw.of(0.7, 0.8, 0.9, 0.95), draw.of(0.95, 0.99, 0.995, 0.999)),  # the update fades
        (draw.of(0.96, 0.98, 0.99), draw.of(0.7, 0.75, 0.8, 0.85)),  # it grows
    )
    before = draw.whole(50, 150)
    h: dict[str, Any] = {"lr": 1.0, "beta1": beta1, "beta2": beta2, "eps": 0.0}
    run = Run("adam", **h).steps([1.0] * before)
    here = float(run.state("m")[0] / math.sqrt(run.state("v")[0]))
    run.step(0.0)
    factor = float(run.state("m")[0] / math.sqrt(run.state("v")[0])) / here
    run.steps([0.0] * 60)
    grows = factor > 1
    because = "m in the numerator vanishes too, and sqrt(v) in the denominator; compare the factor with 1"
    options = draw.shuffled(
        [
            Option("the update grows without bound", "" if grows else because, grows),
            Option("the update vanishes", because if grows else "", not grows),
            Option("the update stays as it is", "compare the factor with 1"),
        ]
    )
    becomes = "above 1, so the update grows" if grows else "below 1, so the update vanishes"
    return Question(
        f"After {before} steps with the gradient 1 a parameter enters a flat region: its gradient is 0 from now on. beta1 = {beta1:g}, beta2 = "
        f"{beta2:g}, and there is no eps. By which factor does m/sqrt(v) change in every further step? And so, what becomes of the update?",
        Parts(
            (Number("factor", factor), Choice("then", tuple(options))),
            (
                Mistake("m alone", "this is how m changes; sqrt(v) changes too", (beta1, None)),
                mistake_of("root", beta1 / beta2, None),
                Mistake("upside down", "this is the factor of sqrt(v)/m", (1 / factor, None)),
                Mistake("v alone", "this is how the denominator changes; m changes too", (math.sqrt(beta2), None)),
            ),
        ),
        "One step with a gradient and two without, at other betas:\n\n" + worked("adam", [1, 0, 0], ("m", "v"), 2, beta1=0.5, beta2=0.81, eps=0.0),
        f"Without a gradient m is multiplied by beta1 and sqrt(v) by sqrt(beta2), so their ratio by beta1/sqrt(beta2) = {factor:.6g}. It is "
        f"{becomes}: after 61 such steps it is {abs(run.moved[-1, 0]):.3g} times lr. (At the usual betas, "
        "0.9 and 0.999, it vanishes: the article has it the other way round.) What eps is for: a coordinate that never had a gradient (0/0), "
        "squares that vanish in the format, and noise near 0.",
        "Without eps the update grows here, since v forgets sooner than m; at the usual betas it fades."
        if grows
        else "Without eps nothing blows up here: the update fades, since m forgets sooner than v.",
    )


@practice(
    "Adam at constant v is momentum",
    section=WHOLE,
    sentence="the dynamics are equivalent if the momentum parameter γ is set to β1",
    problem="2152236",
)
def momentum(draw: Draw) -> Question:
    beta1, lr, root = draw.of(0.7, 0.8, 0.9), draw.of(0.1, 0.2, 0.5), draw.of(2.0, 4.0, 5.0)
    grads = [draw.sign() * float(draw.whole(2, 20)) for _ in range(3)]
    a = values("momentum", grads, momentum=beta1)[-1]["m"]
    m = values("adam", grads, beta1=beta1)[-1]["m"]
    rate = lr * (m / a) / root if a else math.nan
    return Question(
        f"Classical momentum, a_t = gamma a_(t-1) + g_t, with gamma = {beta1:g}, gets the gradients {spoken(grads)}. What is a3? And an Adam "
        f"with beta1 = {beta1:g}, lr = {lr:g}, without correction and eps, whose second moment is held at V = {root * root:g}: which learning "
        "rate must momentum have, so that both make the same steps?",
        Parts(
            (Number("a3", a), Number("rate", rate)),
            (
                Mistake("average", "this is Adam's m3, which weights each gradient by 1 - beta1; momentum sums", (m, None)),
                Mistake("no weight", "the factor 1 - beta1, by which m is smaller than a, is left out", (None, lr / root)),
                Mistake("root", WRONG["root"].says, (None, lr * (m / a) / root**2 if a else math.nan)),
                Mistake("no V", "the step of Adam is divided by sqrt(V)", (None, lr * (m / a) if a else math.nan)),
                Mistake("adam's rate", "the steps differ by 1 - beta1 and by sqrt(V)", (None, lr)),
            ),
        ),
        "The article's gradients, by momentum and by Adam; compare the last m of both:\n\n"
        + worked("momentum", [20, -5, 8], ("m",), 1, momentum=0.8)
        + "\n\n"
        + worked("adam", [20, -5, 8], ("m",), 1, beta1=0.8),
        worked("momentum", grads, ("m",), momentum=beta1)
        + f"\n\nAdam's m3 is {m:.6g} = (1 - beta1) a3. Its step, lr m/sqrt(V), is therefore that of momentum with the rate lr (1 - "
        f"beta1)/sqrt(V) = {rate:.6g}.",
        "m is the velocity of momentum times 1 - beta1: a rescaling, no more.",
    )


PRINCIPLES = (
    moments, memory, half_life, squares, write_moments, adaptivity, scale, first_step, worst_step, one_step, write_adam, flat_region, momentum,
)  # fmt: skip
