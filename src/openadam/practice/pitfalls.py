"""The practices on what goes wrong: mistakes to be found from a trace, formats, stale momentum and its cure, and Reddi's example."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .model import Choice, Draw, Mistake, Number, Option, Parts, Question, practice
from .principles import BIAS, SECOND, UPDATE, WHOLE, written_task
from .runs import Run, after_step, columns, differences, listing, source, values, whole, worked
from .wrong import WRONG, Wrong, adam_but

__all__ = ["PITFALLS"]

NUANCES = "Nuances and Potential Pitfalls"


def beside(right: list[dict[str, Any]], wrong: list[dict[str, Any]], names: tuple[str, ...]) -> str:
    """The traces of the right and of the wrong optimizer, side by side."""
    head = ["t", "g", *(f"{name} right" for name in names), *(f"{name} WRONG" for name in names)]
    return columns(
        head, [(str(t), a["g"], *(a[x] for x in names), *(b[x] for x in names)) for t, (a, b) in enumerate(zip(right, wrong, strict=True), 1)]
    )


def find(draw: Draw, makers: tuple[str, ...], others: tuple[Option, ...], about: str, hint: str, lesson: str, eps: float = 1e-8) -> Question:
    """A question that shows the trace of a wrong optimizer beside the right one; which mistake is it, and where does it go next?"""
    which = WRONG[draw.of(*makers)]
    h: dict[str, Any] = {"lr": draw.of(0.1, 0.2), "beta1": draw.of(0.8, 0.9), "beta2": draw.of(0.95, 0.99), "eps": eps}
    start, step = draw.number(1, 3), 0.0
    while abs(step) < 1e-3:  # so small that the table's digits would not do
        grads = [draw.sign() * draw.number(0.5, 4) for _ in range(4)]
        grads[1] = math.copysign(grads[1], grads[0])  # two of a kind, so that what is stored can be told
        right, wrong = (values(rule, grads, params=start, **h) for rule in ("adam", which.rule))
        before, step = wrong[-2]["p"], wrong[-1]["p"] - wrong[-2]["p"]
    options = [
        Option(WRONG[name].says, "" if name == which.name else f"compare the columns: they are not as if {WRONG[name].says}", name == which.name)
        for name in makers
    ]
    options = draw.shuffled([*options, *others])
    nexts = {name: values(WRONG[name].rule, grads, params=start, **h)[-1]["p"] for name in makers if name != which.name}
    return Question(
        f"{about}\n\nlr = {h['lr']:g}, beta1 = {h['beta1']:g}, beta2 = {h['beta2']:g}, eps = {eps:g}, p0 = {start:g}:\n\n"
        + beside(right[:3], wrong[:3], ("m", "v", "p"))
        + f"\n\nWhat is wrong? And where is the wrong p after the next step, in which the gradient is {grads[3]:g}?",
        Parts(
            (Choice("mistake", tuple(options)), after_step("p4", wrong[-1]["p"], before)),
            (
                Mistake("before", "this is where the wrong p was before the step", (None, before)),
                Mistake("other way", "the step goes the other way", (None, before - step)),
                Mistake("right one", "this is where the right optimizer goes", (None, right[-1]["p"])),
                *(Mistake(f"as {name}", f"this would be so if {WRONG[name].says}", (None, place)) for name, place in nexts.items()),
            ),
        ),
        hint + "\n\nThe right optimizer's first step, in full:\n\n" + worked("adam", grads[:1], params=start, **h),
        f"It is this: {which.says}.{f' ({which.made_by} had it.)' if which.made_by else ''} The lines that differ:\n\n"
        + differences(which.rule, **h)
        + "\n\nThe wrong optimizer, worked through at its last step:\n\n"
        + worked(which.rule, grads, (), 1, params=start, **h),
        lesson,
    )


@practice(
    "Find the mistake: the correction",
    section=BIAS,
    sentence="To counteract this initialization bias, Adam introduces bias-corrected moment estimates",
)
def find_correction(draw: Draw) -> Question:
    return find(
        draw,
        ("uncorrected", "twice", "place", "multiplied"),
        (
            Option(
                "beta1 and beta2 have changed places in the moments", "the first m would be smaller than it should be, and v larger; look at step 1"
            ),
        ),
        "Somebody's Adam treats the bias correction in another way. Here are its traces, beside those of the right one.",
        "First ask whether m and v are those of the right one; then what the first step is, measured in lr.",
        "A look at one step's numbers tells what a loss curve would hide.",
    )


@practice(
    "Find the mistake: what is remembered",
    section=SECOND,
    sentence="Like m_t, v_t is also initialized to zero",
)
def find_memory(draw: Draw) -> Question:
    return find(
        draw,
        ("m", "v", "betas", "weights"),
        (Option("the parameter is moved before the gradient is computed", "then m and v would be right, up to the gradient of another place"),),
        "Somebody's Adam does not remember as it should. Here are its traces, beside those of the right one; a moment stands as it is after "
        "the step.",
        "A moment that stays at 0 was not kept. If none does, look at step 1: it tells by how much a new gradient enters.",
        "States must be stored, with the weights that belong to them.",
    )


@practice(
    "Find the mistake: the last line",
    section=UPDATE,
    sentence="where α is the master learning rate",
)
def find_last_line(draw: Draw) -> Question:
    return find(
        draw,
        ("precedence", "inside", "root", "rate"),
        (Option("eps is left out", "with an eps of this size the step would then be larger in both directions alike"),),
        "Somebody's Adam has its last line otherwise. Here are its traces, beside those of the right one.",
        "m and v are right. Work the first step of the wrong one out of its own moments, and see what is missing or too much.",
        "Root, brackets and the place of eps are small in print, and each changes every step.",
        eps=draw.of(0.02, 0.05, 0.1),
    )


@practice(
    "Find the mistake: the counter",
    section=BIAS,
    sentence="At the beginning of training (small t), the denominators (1 - β^t) are small, which significantly boosts the moment estimates.",
)
def find_counter(draw: Draw) -> Question:
    tensors = draw.whole(3, 5)
    which = draw.of("counter", "stopped", "double", "ahead")
    h: dict[str, Any] = {"lr": 1.0, "beta1": draw.of(0.8, 0.9), "beta2": draw.of(0.99, 0.999), "eps": 1e-8}
    rule = WRONG[which].rule
    rows = []

    def placed(place: int) -> dict[str, int]:
        return {"tensors": tensors, "place": place} if which == "counter" else {}

    for place in range(1, tensors + 1):
        steps = values(rule, [2.0, 2.0, 2.0], **placed(place), **h)
        rows.append((str(place), *(abs(step["p"] - before) for step, before in zip(steps, [0.0, *(step["p"] for step in steps[:-1])], strict=True))))
    asked, step = draw.whole(2, tensors), 3
    every = {"counter": (step - 1) * tensors + asked, "stopped": 1, "double": 2 * step, "ahead": step + 1}
    whys = {
        "counter": "the rows would then differ",
        "stopped": "the first step of every parameter would then be right, and the further ones would not",
        "double": "compare the columns with the correction for t = 2, 4, 6",
        "ahead": "compare the columns with the correction for t = 2, 3, 4",
    }
    options = draw.shuffled(
        [
            *(Option(WRONG[name].says, "" if name == which else whys[name], name == which) for name in every),
            Option("each parameter has another learning rate", "two rows would then differ, by the same ratio in every column"),
        ]
    )
    used = every.pop(which)
    slips = [Mistake(f"as {name}", f"this would be so if {WRONG[name].says}", (None, float(t))) for name, t in every.items()]
    if which == "counter":
        slips += [
            Mistake("from 0", "the very first t is 1", (None, used - 1.0)),
            Mistake("after all", "the counter is advanced just before each parameter, not for all in advance", (None, float(step * tensors + asked))),
        ]
    return Question(
        f"A model has {tensors} parameters, which always get the same gradient, 2. A right Adam with lr = 1 moves each by 1 in every step, up "
        f"to eps = {h['eps']:g}. This one, with beta1 = {h['beta1']:g} and beta2 = {h['beta2']:g}, moves them by\n\n"
        + columns(("parameter", "step 1", "step 2", "step 3"), rows)
        + f"\n\nWhat is wrong? And which t does it use for parameter {asked} in step {step}?",
        Parts(
            (Choice("mistake", tuple(options)), whole("t", used)),
            (
                Mistake("right one", "this is the t that it should use", (None, float(step))),
                *slips,
            ),
        ),
        "First ask whether the rows differ, then which column is the first that is wrong. How the correction depends on t, with a gradient of 2:\n\n"
        + worked("adam", [2, 2], ("m_hat", "v_hat"), **h),
        f"It is this: {WRONG[which].says}.{f' ({WRONG[which].made_by} had it.)' if WRONG[which].made_by else ''} "
        + (f"In step s parameter k is corrected with t = {tensors}(s - 1) + k: here" if which == "counter" else f"In step {step} it uses t =")
        + f" {used}. Parameter {asked}, worked through:\n\n"
        + worked(rule, [2.0] * 3, ("m_hat", "v_hat", "direction"), 1, **placed(asked), **h),
        "t belongs to a parameter's own steps.",
    )


@practice(
    "Repair it",
    section=WHOLE,
    sentence="To fully appreciate the design of Adam, we will deconstruct it into its fundamental components",
)
def repair(draw: Draw) -> Question:
    one = draw.of("betas", "weights", "square", "m", "v")
    two = draw.of("uncorrected", "twice", "multiplied", "root", "inside", "rate", "sign")
    both = Wrong("unrepaired", f"it still does what it did: {WRONG[one].says}, and {WRONG[two].says}", (one, two))
    arguments = "p, g, m, v, t, lr, beta1, beta2, eps"
    task = written_task(draw, arguments, "p, m, v", (both, WRONG[one], WRONG[two]))
    return Question(
        "This function is meant to be Adam, and has two mistakes:\n\n"
        + listing(source(both.rule, arguments, ("p", "m", "v")))
        + "\n\nCopy it into a file, and repair it.",
        task,
        "The lines of a right step, with numbers; compare one line after the other:\n\n" + worked("adam", [2]),
        "The lines that "
        f"differ:\n\n{differences(adam_but(one, two), lr=0.1, beta1=0.9, beta2=0.999, eps=1e-8)}\n\nRepaired:\n\n{listing(task.answer)}",
        "Both mistakes are gone.",
    )


def _float16(x: float) -> float:
    return float(np.float16(x))


def _bfloat16(x: float) -> float:
    """The nearest number with the 8 binary digits of bfloat16; ties do not occur among the numbers here."""
    mantissa, exponent = math.frexp(x)
    return math.ldexp(round(mantissa * 256) / 256, exponent)


@practice(
    "What half precision makes of eps and beta",
    section=UPDATE,
    sentence="The presence of ε ensures that the denominator is always bounded below by a small positive value, preventing numerical instability.",
)
def half_precision(draw: Draw) -> Question:
    eps = draw.of(1e-8, 2e-8, 4e-8, 1e-7, 2e-7)
    beta1, beta2 = draw.of(0.8, 0.9, 0.95), draw.of(0.99, 0.998, 0.999, 0.9999)
    low, high = 0.0, 1.0
    for _ in range(25):  # the smallest gradient whose share of v is not rounded to 0, by bisection
        middle = (low + high) / 2
        low, high = (low, middle) if _float16(values("adam", [middle], beta2=beta2)[0]["v"]) else (middle, high)
    right = (_float16(eps), _bfloat16(beta1), _bfloat16(beta2), high)
    return Question(
        f"What is stored of eps = {eps:g} in float16, and of beta1 = {beta1:g} and beta2 = {beta2:g} in bfloat16 (8 binary digits)? And with "
        "the exact beta2, what is the smallest first gradient for which v is not 0 in float16? (NumPy's float16 may help; bfloat16 is float32 "
        "rounded to its first 16 bits.)",
        Parts(
            (
                Number("eps", right[0], 0.01, 1e-12, printed=True),
                Number("beta1", right[1], 0.0, 5e-5),
                Number("beta2", right[2], 0.0, 5e-5),
                Number("g", right[3], 0.02),
            ),
            (
                Mistake(
                    "as written", "these are the numbers as written; the formats hold others", (eps if right[0] != eps else None, beta1, beta2, None)
                ),
                Mistake("smallest normal", "float16 also has subnormal numbers, down to 2^-24", (None, None, None, math.sqrt(2**-14 / (1 - beta2)))),
                Mistake(
                    "smallest subnormal",
                    "v need not be as large as the smallest subnormal, 2^-24: what is above half of it is rounded up",
                    (None, None, None, math.sqrt(2**-24 / (1 - beta2))),
                ),
                Mistake("no weight", "v takes only the share 1 - beta2 of the square", (None, None, None, math.sqrt(2**-25))),
                Mistake("not squared", WRONG["square"].says, (None, None, None, 2**-25 / (1 - beta2))),
            ),
        ),
        "v after one step with a gradient of 0.01, and what float16 makes of it:\n\n"
        + worked("adam", [0.01], ("v",), beta2=beta2)
        + f"\n\nin float16: {_float16(values('adam', [0.01], beta2=beta2)[0]['v']):.4g}; its smallest number above 0 is {2.0**-24:.4g}, and "
        "half of that is rounded to 0.",
        f"eps becomes {right[0]:.4g}, beta1 {right[1]:.6g}, beta2 {right[2]:.6g}; v vanishes for gradients below {right[3]:.4g}:\n\n"
        + columns(
            ("g", "v", "in float16"),
            [(g, v := values("adam", [g], beta2=beta2)[0]["v"], _float16(v)) for g in (high / 2, high * 0.99, high * 1.01, 2 * high)],
        )
        + ("\n\nWith eps = 0, a coordinate whose v vanishes is divided by 0." if right[0] == 0 else "")
        + ("\n\nWith beta2 = 1, v never leaves 0: what is asked for is not what is run." if right[2] == 1 else ""),
        "Keep the moments and the settings in float32, whatever the parameter is.",
    )


def _slope(left: float, steep: float) -> Callable[[float], float]:
    """Of a convex function with its minimum at 0: gentle on the left, steep on the right, as the article supposes."""
    return lambda x: -left if x < -0.5 else 2.0 * left * x if x < 0 else steep * x


def _wrong_way(run: Run) -> int:
    """Steps from t = 2 on that move away from the minimum, until the first that does not."""
    places = [float(place[0]) for place in run.places]
    count = 0
    while count + 2 < len(places) and places[count + 2] < places[count + 1] < -0.5:
        count += 1
    return count


@practice(
    "Stale momentum",
    section=NUANCES,
    sentence="For many subsequent steps, m_t will remain positive, even though the true gradient is negative.",
    problem="2152259",
)
def stale(draw: Draw) -> Question:
    beta1, first = draw.number(0.5, 0.92, 2), float(draw.whole(15, 250))
    h: dict[str, Any] = {"lr": 1.0, "beta1": beta1, "beta2": 0.999, "eps": 1e-8}
    run = Run("adam", **h).step(first)
    moments: list[float] = []
    while not moments or moments[-1] > 0:
        run.step(-1.0)
        moments.append(float(run.state("m")[0]))
    count = len(moments) - 1
    root = math.sqrt(values("adam", [first] + [-1.0] * len(moments), **h)[-1]["v_hat"])
    return Question(
        f"The first gradient is {first:g}; from t = 2 on all gradients are -1. beta1 = {beta1:g}, beta2 = 0.999. What is m at t = 2? How many "
        "steps from t = 2 on go the wrong way, since m is still positive? And how large is sqrt(v_hat) at the first step that goes the right "
        "way?",
        Parts(
            (Number("m2", moments[0]), whole("steps", count), Number("root", root)),
            (
                Mistake("weights", WRONG["weights"].says, ((1 - beta1) * beta1 * first - beta1, None, None)),
                Mistake("momentum", "the new gradient is not weighted by 1 - beta1; this is classical momentum", (beta1 * first - 1, None, None)),
                Mistake("with the first", "the first step goes the right way and does not count", (None, count + 1.0, None)),
                Mistake("not the root", "this is v_hat; asked for is its root", (None, None, root**2)),
                Mistake("gradients' size", "v remembers for longer than m: the large gradient is still in it", (None, None, 1.0)),
            ),
        ),
        "The article's numbers, as far as the second wrong step:\n\n" + worked("adam", [100, -1, -1], ("g", "m", "v_hat"), 2, lr=1.0),
        columns(("t", "m"), [(str(t), m) for t, m in list(enumerate(moments, 2))[:3] + list(enumerate(moments, 2))[-2:]])
        + f"\n\nm is above 0 for {count} steps, t = 2 to {count + 1}. When it has turned, sqrt(v_hat) is {root:.5g} where gradients are 1, so "
        f"the way back begins with steps {root:.3g} times too small: beta1 is to blame for the direction, beta2 for how long the return "
        "takes.",
        "The direction is stale because of beta1, and the return is slow because of beta2.",
    )


@practice(
    "Choose the cure",
    section=NUANCES,
    sentence="leading to variants like AdamW and AMSGrad, which propose modifications to address such issues",
    problem="2152259",
)
def cure(draw: Draw) -> Question:
    beta1, steep, left = draw.number(0.8, 0.92, 2), float(draw.whole(150, 300)), draw.of(0.5, 1.0, 2.0)
    slope = _slope(left, steep)
    h: dict[str, Any] = {"lr": 1.0, "beta1": beta1}
    runs: list[tuple[str, Run]] = [
        draw.of(
            ("clip the gradient's norm at 1 (clip_norm=1)", Run("adam", 0.4, clip_norm=1.0, **h)),
            ("no memory of m (beta1=0)", Run("adam", 0.4, **{**h, "beta1": 0.0})),
            ("clip the gradient's norm at 1, and a shorter memory of m (clip_norm=1, beta1=0.5)", Run("adam", 0.4, clip_norm=1.0, lr=1.0, beta1=0.5)),
        ),
        draw.of(
            ("a somewhat shorter memory of m (beta1=0.7)", Run("adam", 0.4, **{**h, "beta1": 0.7})),
            ("clip the gradient's norm at 50 (clip_norm=50)", Run("adam", 0.4, clip_norm=50.0, **h)),
        ),
        ("AMSGrad", Run("amsgrad", 0.4, **h)),
        ("AdamW, with weight_decay=0.01", Run("adamw", 0.4, weight_decay=0.01, **h)),
        ("a shorter memory of v (beta2=0.9)", Run("adam", 0.4, beta2=0.9, **h)),
        ("a larger eps (eps=0.1)", Run("adam", 0.4, eps=0.1, **h)),
    ]
    for _, run in runs:
        run.descend(slope, 120)
    adam = Run("adam", 0.4, **h).descend(slope, 120)
    counts = [_wrong_way(run) for _, run in runs]
    lowest = [min(float(place[0]) for place in run.places) for _, run in runs]
    options = draw.shuffled(
        [
            Option(name, f"it takes {count} wrong steps, down to {low:.4g}" if count else "", count == 0)
            for (name, _), count, low in zip(runs, counts, lowest, strict=True)
        ]
    )
    least = min(float(place[0]) for place in adam.places)
    rows = [("Adam", str(_wrong_way(adam)), least), *((name, str(count), low) for (name, _), count, low in zip(runs, counts, lowest, strict=True))]
    return Question(
        f"A convex function has its minimum at 0: its slope is {-left:g} left of -0.5, {2 * left:g}x from there to 0, and {steep:g}x on the "
        f"right. Adam starts at 0.4 with lr = 1, beta1 = {beta1:g}, beta2 = 0.999 and eps = 1e-8, jumps to "
        "-0.6, and momentum carries it further away. Which change leaves no step that goes the wrong way? And how many wrong steps (from t = 2 on, "
        "each further left than the one before) does AMSGrad "
        "take?",
        Parts(
            (Choice("cure", tuple(options)), whole("amsgrad", counts[2])),
            (Mistake("none", "AMSGrad changes v, and the direction is m's: as many as Adam takes, or nearly", (None, 0.0)),),
        ),
        "AMSGrad in the first wrong step; see which of its lines could change the sign:\n\n"
        + worked("amsgrad", [steep * 0.4, -left], (), 1, params=0.4, **h),
        columns(("change", "wrong steps", "lowest"), rows)
        + "\n\nThe sign of a step is the sign of m. Only what changes m helps: a bound on the gradient that enters it, or a shorter memory of "
        "it. AMSGrad and AdamW were made for other troubles.",
        "A variant cures what it was made for; this one is a matter of the gradient's size and of beta1.",
    )


@practice(
    "Where Adam does not converge",
    section=NUANCES,
    sentence="the convergence properties of adaptive methods",
)
def non_convergence(draw: Draw) -> Question:
    large, flip = draw.number(2.5, 6), draw.sign()
    beta2 = round(1 / (1 + large**2), 4)

    def ends(rule: str, beta2: float = beta2) -> float:
        run = Run(rule, lr=lambda t: 0.5 / math.sqrt(t), beta1=0.0, beta2=beta2)
        for t in range(1, 1001):
            run.step(flip * (large if t % 3 == 1 else -1.0))
            np.clip(run.p, -1.0, 1.0, out=run.p)
        return float(run.p[0])

    adam, amsgrad = ends("adam"), ends("amsgrad")
    slope = flip * (large - 2) / 3
    return Question(
        f"In an online problem of the kind of Reddi, Kale and Kumar the slope is {flip * large:g} at every third step (the first included) and "
        f"{-flip:g} otherwise; x is kept between -1 and 1. beta1 = 0, beta2 = {beta2:g}, eps = 1e-8, lr = 0.5/sqrt(t), start at 0. What is "
        "the average slope? Near which end of the interval are Adam and AMSGrad after 1,000 steps, 1 or -1?",
        Parts(
            (Number("slope", slope), Number("adam", adam, 0.0, 0.1, printed=True), Number("amsgrad", amsgrad, 0.0, 0.1, printed=True)),
            (
                Mistake(
                    "both converge",
                    "Adam divides the rare large slope by itself, and the frequent small ones by less: together they win",
                    (None, amsgrad, None),
                ),
                Mistake("neither converges", "AMSGrad remembers the largest v, so the small slopes stay divided by it", (None, None, adam)),
                Mistake("sum", "this is the sum over a period; asked for is the average", (slope * 3, None, None)),
            ),
        ),
        "The first steps of Adam, at a constant learning rate; compare the size of the directions:\n\n"
        + worked("adam", [flip * large, -flip, -flip], ("g", "direction"), lr=0.1, beta1=0.0, beta2=beta2),
        columns(
            ("", "x after 1,000 steps"),
            [("Adam", adam), ("AMSGrad", amsgrad), ("Adam, beta2 = 0.999", ends("adam", 0.999))],
        )
        + f"\n\nThe average slope is {slope:.4g}, so the best x is {-flip:g}. With so short a memory Adam has forgotten the large slope when "
        "the small ones come: each step is about lr, and most steps point the wrong way. AMSGrad does not forget; nor, nearly, does Adam "
        "with a beta2 near 1.",
        "This is the failure that AMSGrad was made for: rare large gradients, forgotten before they count.",
    )


PITFALLS = (
    find_correction, find_memory, find_last_line, find_counter, repair, half_precision, stale, cure, non_convergence,
)  # fmt: skip
