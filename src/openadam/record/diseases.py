"""The diseases that the doctor knows: of each what is read, what it would be without it, what it means, what helps, and who found it.

What is read is in `openadam.readings`, how it is judged in `checks`, `doctor` and, of a run that goes on, `alarms`; the numbers of the rules are
those of the project's catalogue.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..readings import READINGS

__all__ = ["NOISE", "RULES", "SEVERITIES", "Rule", "in_words", "table"]

SEVERITIES = ("error", "warning", "hint")


@dataclass(frozen=True)
class Rule:
    """One disease: ``null`` and ``alarm`` in words, for people; their numbers come with each finding. ``instead`` are remedies for special cases."""

    id: str
    title: str
    severity: str
    reading: str
    null: str
    alarm: str
    meaning: str
    remedy: str
    source: str
    instead: Mapping[str, str] = field(default_factory=dict)


WORDS = {each.rule: each.words for each in reversed(READINGS.values())}  # of several readings of a rule, of the first


_ALL = (
    Rule("D01", "gradients that are not finite", "error", WORDS["D01"], "0", "any",
         "A NaN or infinity would stay in the moments for ever: the step was refused or skipped, or nonfinite='propagate' let it in.",
         "Find what overflows in the backward pass of this tensor (a log or division by 0, a loss scale that is too large); clip, or lower the rate.",
         "Megatron-LLM#33, torchtitan#916",
         {"all": "It is every tensor: look at the batch of that step, at the loss made of it, and at the loss scale, not at one layer.",
          "let in": "Go back to a checkpoint from before; nonfinite='raise', the default, refuses such a step and says in which tensor it began."}),
    Rule("D02", "a poisoned state", "error", WORDS["D02"], "finite, as the gradient is", "any",
         "The gradient is finite and the update is not: the state or the parameter holds a NaN or infinity, or would have got one.",
         "Go back to a checkpoint from before first_step, or begin the state of this tensor anew with reset(); keep nonfinite='raise'.",
         "stabilityguard"),
    Rule("D35", "a step count or moments that were lost", "error", "second moment before the step", "0 at step 1, and only there", "otherwise",
         "The moments and the count of steps do not belong together: bias correction begins anew over old moments, or is over for new ones.",
         "Save and load the whole state_dict of the optimizer, the step with the moments; to begin anew on purpose, use reset().",
         "stylegan2-ada#108, spd#616"),
    Rule("D44", "the loss is not finite", "error", "steps whose loss is not finite", "0", "any",
         "The network, the batch or the loss itself gives NaN or infinity: every gradient that comes of it is lost.",
         "Look at the batch of that step and at the forward pass; lower the learning rate if the loss rose before.", "the project's own catalogue"),
    Rule("D46", "the run ended by an exception", "error", "exceptions", "0", "any",
         "The program was stopped at this step; the last steps before it are recorded in full.",
         "Mend the error; the steps before it tell whether what was learnt had to do with it.", "the project's own catalogue",
         {"interrupted": "Somebody stopped it (Ctrl-C); there is nothing to mend."}),
    Rule("D47", "the loss has risen", "warning", "least of the last 64 losses", "below the first ones",
         "above ten times the largest of the first 20, where these are of one size",
         "The loss stays far above what it began with: it is made larger instead of smaller, or training has diverged.",
         "See that nothing turns the sign of the loss or of its gradients, maximize neither; else lower the learning rate.",
         "the project's own catalogue"),
    Rule("D45", "the loss jumps", "warning", "loss", "the median of the last 64", "three times their range above the largest of them",
         "A bad batch, or a step that was too large: the loss took back at least a quarter of all that was learnt.",
         "Look at the batch of that step; clip (clip_norm=1.0), and lower the learning rate if it happens again.", "the project's own catalogue",
         {"for good": "It did not come back: if what is learnt has changed (data, a target), reset(); else go back to a checkpoint from before."}),
    Rule("D11", "a learning rate that is too large or too small", "warning", WORDS["D11"], "0.001",
         "above 0.1 or below 1e-05, of matrices; above 0.7 in the first step",
         "Each step changes the weights by a share that is far from the usual thousandth: training is erratic, or hardly moves.",
         "Lower the learning rate until update/weight comes near a thousandth.", "cs231n's rule of thumb",
         {"small": "Raise the learning rate until update/weight comes near a thousandth."}),
    Rule("D40", "clipping is always on", "hint", "share of steps clipped", "below 0.1", "above 0.95; a warning if the factor is below 0.001",
         "Adam does not mind the scale of gradients: a clip that is always on only evens out the steps, and brings gradients nearer to eps.",
         "Raise clip_norm to about the median of grad_norm, or leave it out.", "Megatron-LM#5395"),
    Rule("D04", "v underflows", "warning", WORDS["D04"], "0", "above 0.1",
         "The squares of these gradients are too small for v, which stays 0: the update is m/eps, without adaptation.",
         "Scale the loss up, or divide by less, so that gradients exceed 1e-17 in float32.", "pytorch#147437"),
    Rule("D20", "eps dominates the denominator", "warning", WORDS["D20"], "0", "above 0.5; a hint above 0.1",
         "Gradients are so small that eps, not v, divides: Adam has become gradient descent with rate lr/eps, and learning stalls.",
         "Lower eps (to 1e-15, say) or scale the loss up; do not clip so hard.", "Wortsman et al., 2023 (2309.14322); Everett et al., 2024",
         {"large eps": "Lower eps, which was chosen far above the usual 1e-8; if this damping is wanted, all is well."}),
    Rule("D16", "gradients beyond what v expects (RMS spike)", "warning", WORDS["D16"], "1",
         "above a third of the cap sqrt((1 - beta2**t)/(1 - beta2)), and above 3",
         "v knows too little of gradients this large: such a step often comes one to eight steps before a spike of the loss.",
         "Clip (clip_norm=1.0), or lower beta2 to 0.95 or 0.99.", "Wortsman et al., 2023 (2304.13013)"),
    Rule("D17", "spikes of single coordinates", "warning", WORDS["D17"], "6e-07",
         "above 0.5 in one step, or 0.1 with g**2 > 5000 v, and above 5 times its median",
         "A bad batch or heavy tails: many elements at once have a gradient of more than five standard deviations.",
         "Look at the batch of that step; clip (clip_norm=1.0 or clip_value).", "Huang et al., 2025 (SPAM)"),
    Rule("D43", "a gradient that has died", "warning", WORDS["D43"], "1", "below 0.001 for 20 steps",
         "What reaches this tensor has fallen a thousandfold beside others: between it and the loss nothing is let through, or units are dead.",
         "Warm the learning rate up over the first 2/(1 - beta2) steps, or lower it; normalise before each layer, not after it.",
         "Xiong et al., 2020 (2002.04745); Liu et al., 2020 (2004.08249)"),
    Rule("D14", "the whole step goes uphill", "warning", WORDS["D26"], "above 0",
         "at most 0 for 2/(1 - beta1) steps in a row, at least 8",
         "The step of all tensors together goes up on the very batch it was computed for: the first moment is about a past that is over.",
         "Lower beta1 or the learning rate; after a jump of what is learnt, reset().", "Molybog et al., 2023 (2304.09871)"),
    Rule("D26", "a tensor goes uphill", "warning", WORDS["D26"], "above 0",
         "below 0 for 2/(1 - beta1) steps in a row, at least 8, and longer than chance",
         "Stale momentum: one large gradient, or an old direction, outweighs all that came after it.",
         "Lower beta1, or clip so that no single gradient can fill the first moment (clip_norm=1.0).",
         "the article's example: 22 steps after one gradient"),
    Rule("D24", "gradient and first moment disagree", "warning", WORDS["D24"], "0.356 at beta1 = 0.9",
         "above the null value + 0.10 for 2/(1 - beta1) steps",
         "Signs are opposed more often than in noise, or in any even swing: rare large gradients, or an old direction, outweigh all others.",
         "Clip (clip_norm=1.0) or lower beta1; if the loss jumps up and down, lower the learning rate.", "Liang et al., 2024 (C-Optim)"),
    Rule("D09", "steps larger than Adam's usual", "warning", WORDS["D09"], "0.229 at beta1 = 0.9, 1 if signs never change",
         "above a quarter of the bound of D10, and above 2, for 5 steps",
         "Gradients grow, all in one direction, faster than v can follow: steps exceed the learning rate, as before many a divergence.",
         "Clip (clip_norm=1.0), lower beta2, or lower the learning rate.", "marin#1368; Molybog et al., 2023 (2304.09871)"),
    Rule("D07", "updates that are swallowed", "warning", WORDS["D07"], "0", "above 0.1",
         "Parameter plus update rounds to the parameter: these steps do nothing.",
         "Keep the parameters in float32 (or a float32 copy of them); or raise the learning rate.", "pytorch/ao#1124, pytorch#120376",
         {"full precision": "Raise the learning rate: it is too small for parameters of this size, even in full precision."}),
    Rule("D08", "a frozen v", "warning", WORDS["D08"], "0", "above 0.2",
         "v is kept in so few digits that a step no longer changes it (bfloat16 at beta2 = 0.999): it neither grows nor decays.",
         "Keep v in float32, or lower beta2 to 0.95.", "halo#30, OneTrainer#1005"),
    Rule("D23", "a tensor that is not updated", "warning", "share of steps with a gradient", "1",
         "none that is not 0, or none any more for 20 observed steps; a hint where none was ever given",
         "Nothing the tensor does reaches the loss: dead units, a detached branch, a wrong mask, or it is frozen.",
         "If it is frozen on purpose, leave it out of the optimizer; else look for where the graph is cut.", "the project's own catalogue"),
    Rule("D32", "weight decay outweighs learning", "warning", WORDS["D32"], "below 0.1", "above 1",
         "The decay of each step is larger than what is learnt in it: the weights shrink to nothing.",
         "Lower weight_decay, or leave this tensor out with no_decay.", "Kosson et al., 2023 (2305.17212)"),
    Rule("D36", "betas for which Adam need not converge", "warning", "beta1", "below sqrt(beta2)", "at least sqrt(beta2)",
         "The first moment remembers longer than the second: steps are not bounded, and proofs of convergence do not hold.",
         "Choose beta1 < sqrt(beta2), such as (0.9, 0.999).", "Zhang et al., 2022 (2208.09632); Reddi et al., 2018"),
    Rule("D13", "bias correction is off", "warning", "largest factor of the first steps", "1", "above 1.5",
         "Without bias correction the first steps are this many times larger than the learning rate says.",
         "Turn bias correction on, or warm the learning rate up over 2/(1 - beta2) steps.", "Zhang et al., 2020 (2006.05987)"),
    Rule("D10", "one element takes a very large step", "hint", WORDS["D10"], "about 5 times the root mean square",
         "above half of the bound (1 - beta1)/sqrt((1 - beta2)(1 - beta1**2/beta2)), and above 2, for 2 steps",
         "An element with a quiet past got a large gradient: its step is near the largest that Adam can make.",
         "Clip, or lower beta2.", "bound of Kingma and Ba, 2015, section 2.1, computed for both betas"),
    Rule("D18", "v is out of date", "hint", WORDS["D18"], "0.08", "above 0.5 for 50 steps",
         "Gradients fell far below what v remembers: steps are small until it forgets, and v may be too small when it has.",
         "If the loss still has far to go: lower beta2 to 0.95 or 0.99, or reset(). If it is near its end, all is well.",
         "Bai et al., 2025 (2506.04805)"),
    Rule("D19", "v only decays", "hint", WORDS["D19"], "1", "below half-way from 1 to beta2 for 50 steps",
         "Nothing that comes in counts beside what v remembers: it falls by beta2 in each step, and steps stay small meanwhile.",
         "As for D18.", "Bai et al., 2025 (2506.04805)"),
    Rule("D21", "gradients come near eps", "hint", WORDS["D21"], "above 1000", "below 100",
         "eps begins to count; if gradients fall on, it will dominate (D20).", "Lower eps, or scale the loss up.",
         "Wortsman et al., 2023 (2309.14322)",
         {"large eps": "Lower eps, which was chosen far above the usual 1e-8; if this damping is wanted, all is well."}),
    Rule("D25", "steps overshoot", "hint", WORDS["D25"], "0", "below -0.3 for 20 steps",
         "The gradient turns against the way that was gone: the steps are at the edge of what is stable.",
         "Lower the learning rate, if the loss does not fall.", "the project's own measurement"),
    Rule("D27", "absent rows are moved", "hint", WORDS["D27"], "0", "above 0.5, of matrices that are mostly without gradient",
         "Elements without a gradient (rows that did not occur in the batch, dead units) are moved by old momentum, and more than the others.",
         "Of an embedding give gradients by rows (openadam.Rows, openadam.torch.SparseAdam), or beta1 = 0; of dead units lower the learning rate.",
         "pytorch#18404, pytorch#1285"),
    Rule("D34", "L2 regularisation inside Adam", "hint", "share where decay exceeds the gradient", "no coupled decay",
         "any weight_decay that is coupled",
         "The decay is divided by sqrt(v) as the gradient is: weights with large gradients are hardly decayed.",
         "Use AdamW (decoupled decay); weight_decay then means lr*weight_decay per step.", "Loshchilov and Hutter, 2019; pytorch#48793"),
    Rule("D38", "no warm-up", "hint", "update/weight in the first steps", "0.001", "above 0.1 with the learning rate at its full height from step 1",
         "The first steps have the size of the learning rate in every element, whatever the gradients: v is an estimate from few.",
         "Raise the learning rate linearly over the first 2/(1 - beta2) steps; in a short run, over its first tenth.", "Ma and Yarats, 2021"),
    Rule("D39", "what is learnt has changed", "hint", WORDS["D16"], "1",
         "above 3 after a mark, or with disagreement below a third of its null value",
         "The gradients after the change are not those that the moments remember.",
         "reset() at the change, or reset(moments=False), as Adam-Rel does.", "Asadi et al., 2023 (2306.17833); Ellis et al., 2024 (2412.17113)"),
)  # fmt: skip

NOISE = ("D09", "D24", "D10", "D17", "D18", "D25", "D14", "D26")
"""Those whose null value is what noise alone would give."""

RULES: dict[str, Rule] = {rule.id: rule for rule in _ALL}
"""By id, the most urgent of each severity first."""


def in_words(evidence: Mapping[str, Any], id: str | None = None, *, whole: bool = False) -> str:
    """What was seen, beside what it would be without the disease; with all that the evidence holds if the whole of it is wanted.

    >>> in_words({"reading": "disagreement", "value": 0.71234, "null": 0.356, "threshold": 0.5244, "observed": 20}, "D24")
    'disagreement 0.712, noise alone would give 0.356 (alarm at 0.524)'
    """
    if "exception" in evidence:
        return str(evidence["exception"])
    shown = {name: f"{value:.3g}" if isinstance(value, float) else str(value) for name, value in evidence.items() if value is not None}
    reading, value, null, threshold = (shown.pop(name, "unknown") for name in ("reading", "value", "null", "threshold"))
    usual = "noise alone would give" if id in NOISE else "healthy is"
    rest = [f"{name} {each}" for name, each in shown.items()] if whole else []
    alarm = "" if threshold == "inf" else f" (alarm at {threshold})"
    return "; ".join([f"{reading} {value}, {usual} {null}{alarm}", *rest])


def table() -> str:
    """The rules as a table in Markdown.

    >>> print(table().splitlines()[2])
    | D01 | error | gradients that are not finite | elements that are not finite: 0 | any | Megatron-LLM#33, torchtitan#916 |
    """
    lines = ["| id | severity | what | reading: null value | alarm | source |", "| --- | --- | --- | --- | --- | --- |"]
    lines += [f"| {r.id} | {r.severity} | {r.title} | {r.reading}: {r.null} | {r.alarm} | {r.source} |" for r in RULES.values()]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
