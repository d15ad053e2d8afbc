"""The pictures and some numbers of docs/tutorial-dead-transformer.md, from its recordings: ``python pictures.py dead.oadam cured.oadam``."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt
from transformer import entropy

from openadam import record
from openadam.views.pictures import COLOURS

HERE = Path(__file__).parent
EARLY = 60  # steps that are shown of the gradients


def save(figure: plt.Figure, name: str) -> None:
    figure.savefig(HERE / name, dpi=90)
    print(f"Written: {HERE / name}")


def draw_losses(dead: record.Session, cured: record.Session) -> None:
    first = min(finding.first_step or 0 for finding in dead.diagnose() if finding.id == "D43")
    figure, axes = plt.subplots(figsize=(8, 3.4), layout="constrained")
    for session, label, colour in ((dead, "as it was", COLOURS[3]), (cured, "with warm-up", COLOURS[2])):
        (track,) = session.tracks.values()
        loss = track.scalar("loss")
        axes.plot(loss["last"], loss["mean"], color=colour, lw=1)
        axes.annotate(label, (loss["last"][-1], loss["mean"][-10:].mean()), (6, 0), textcoords="offset points", color=colour, va="center")
    axes.plot((0, loss["last"][-1]), (entropy(), entropy()), color="0.5", lw=1, ls=":")
    axes.annotate("frequencies alone", (loss["last"][-1], entropy()), (6, -14), textcoords="offset points", color="0.4", va="center")
    axes.axvline(first, color=COLOURS[0], lw=1, ls="--")
    axes.annotate(f"step {first}: the first gradient has died", (first, 4.7), (6, 0), textcoords="offset points", color=COLOURS[0], va="center")
    axes.set(xlabel="step", ylabel="loss of the batch", xlim=(0, loss["last"][-1] * 1.2), ylim=(2.2, 5))
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, "loss.png")


def draw_gradients(dead: record.Session, cured: record.Session) -> None:
    figure, both = plt.subplots(1, 2, figsize=(8, 3.4), sharey=True, layout="constrained")
    for axes, session, title in zip(both, (dead, cured), ("as it was", "with warm-up"), strict=True):
        (track,) = session.tracks.values()
        names = [name for name in track.tensors if name.endswith("linear2.weight")]
        for place, name in enumerate(names):
            squares = track.measure(name, "grad_sum_squares")
            rms = np.sqrt(squares["mean"] / track.tensors[name]["elements"])
            early = squares["last"] <= EARLY
            shade = plt.get_cmap("viridis")(0.9 * place / (len(names) - 1))
            axes.plot(squares["last"][early], rms[early], color=shade, lw=1.2, label=f"layer {place}")
        axes.set(yscale="log", xlabel="step", title=title)
        axes.spines[["top", "right"]].set_visible(False)
    both[0].set_ylabel("gradient of linear2.weight (rms)")
    both[1].legend(fontsize=8, ncols=2, loc="lower right")
    save(figure, "gradients.png")


def show_gradients(dead: record.Session, cured: record.Session) -> None:
    print(f"{'rms of the gradient of':<28}{'step 1':>10}{'step 10':>10}{'step 30':>10}")
    for session, title in ((dead, "as it was"), (cured, "with warm-up")):
        (track,) = session.tracks.values()
        for layer in (0, 4, 7):
            name = f"layers.{layer}.linear2.weight"
            squares = track.measure(name, "grad_sum_squares")["mean"] / track.tensors[name]["elements"]
            print(f"{f'layer {layer}, {title}':<28}" + "".join(f"{squares[step - 1] ** 0.5:>10.1e}" for step in (1, 10, 30)))


def main() -> None:
    dead, cured = (record.load(path) for path in sys.argv[1:])
    show_gradients(dead, cured)
    draw_losses(dead, cured)
    draw_gradients(dead, cured)


if __name__ == "__main__":
    main()
