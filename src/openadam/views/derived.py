"""What several measures of a tensor tell together: the way of v to eps, the noise scale, rotation, and the first moment beside the gradient.

These have no thresholds: they are drawn beside what theory says. Each is taken of the means of a bucket, so that a band around such a line is
the range of these means.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..readings import READINGS, Numbers
from ..record import TrackData
from .histories import about_of

__all__ = ["DERIVED", "Derived", "Noise", "derived", "noise"]


class Derived(NamedTuple):
    label: str
    meaning: str
    share: bool = False


DERIVED = {
    "v_over_eps": Derived(READINGS["v_over_eps"].label, READINGS["v_over_eps"].meaning),
    "noise_scale": Derived("noise scale", "noise of a batch's gradient over the gradient without noise, both squared: the batch that has as much "
                           "noise as signal, in batches of this run; a gap where noise drowns the gradient"),
    "rotation": Derived("rotation", "by what angle a step turns the parameter, seen as one vector, in radians"),
    "m_rms": Derived("rms(m)", "root mean square of the first moment before the step"),
    "seen_grad_rms": Derived("rms(g seen)", "root mean square of the gradient as the rule sees it: clipped, with coupled decay"),
}  # fmt: skip

MEASURES = (
    "sampled", "v_zero", "v_hat_sum", "m_hat_sum_squares", "update_sum_squares", "param_sum_squares", "param_dot_update", "m_before_sum_squares",
    "seen_grad_sum_squares",
)  # fmt: skip


class Noise(NamedTuple):
    """Of the gradient of a batch: the sum of the variances of its elements, and the square of what it is on average."""

    trace: Any
    signal: Any

    @property
    def scale(self) -> Any:
        """In batches of this size; NaN where the noise drowns the gradient, or nothing is known."""
        with np.errstate(all="ignore"):
            return np.where(self.signal > 0, self.trace / np.where(self.signal > 0, self.signal, 1.0), np.nan)


def noise(v_hat: Any, m_hat_squares: Any, beta1: Any, step: Any) -> Noise:
    """Noise and signal of gradients from the sums of v̂ and of m̂².

    v̂ averages over so many steps that it holds signal and all of the noise, m̂ over so few that it keeps the share r = (1-β1)/(1+β1) of the noise
    (in the first steps more: m̂ is a weighted mean whose weights have that sum of squares). The noise scale is that of McCandlish et al., 2018;
    it is biased where gradients drift faster than v̂ forgets.

    >>> found = noise(v_hat=5.0, m_hat_squares=1.2, beta1=0.9, step=10_000)
    >>> float(found.trace.round(6)), float(found.signal.round(6)), float(found.scale.round(6))
    (4.011111, 0.988889, 4.05618)
    """
    with np.errstate(all="ignore"):
        power = np.power(beta1, step)
        kept = (1 - beta1) / (1 + beta1) * (1 + power) / (1 - power)
        trace = np.maximum((np.asarray(v_hat, float) - m_hat_squares) / np.where(kept < 1, 1 - kept, np.nan), 0)
        return Noise(trace, m_hat_squares - kept * trace)


def derived(track: TrackData, tensors: Sequence[str]) -> tuple[dict[str, Any], Noise]:
    """All of `DERIVED` as buckets x tensors, NaN where it cannot be told; and noise and signal of all elements, as buckets x tensors too."""
    _, last, summary = track.block(tensors, MEASURES)
    mean = {name: summary[1, ..., place] for place, name in enumerate(MEASURES)}
    about = about_of(track, tensors)
    beta1 = about["h"].beta1
    if str(track.about.get("rule", "")).startswith("amsgrad"):  # whose v̂ is a maximum: it tells of no variance
        mean["m_hat_sum_squares"] = np.full_like(mean["m_hat_sum_squares"], np.nan)
    with np.errstate(all="ignore"):
        times = about["elements"] / mean["sampled"]
        found = noise(
            times * mean["v_hat_sum"], times * mean["m_hat_sum_squares"], np.where((beta1 >= 0) & (beta1 < 1), beta1, np.nan), last[:, None]
        )
        weights = np.where(mean["param_sum_squares"] > 0, mean["param_sum_squares"], np.nan)
        along = times * mean["param_dot_update"]
        values = {
            "v_over_eps": READINGS["v_over_eps"].of(Numbers(mean.__getitem__, **about)),
            "noise_scale": found.scale,
            "rotation": np.sqrt(np.maximum(mean["update_sum_squares"] - along**2 / weights, 0) / weights),
            "m_rms": np.sqrt(mean["m_before_sum_squares"] / mean["sampled"]),
            "seen_grad_rms": np.sqrt(mean["seen_grad_sum_squares"] / mean["sampled"]),
        }
    return values, found
