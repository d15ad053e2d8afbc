"""``openadam compare``: the same network trained with several optimizers, as a table, JSON and a picture of the curves."""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path

from .arguments import Parser, UsageError, hyperparameter, members, one_of, whole
from .output import complain, complain_of_picture, draw, print_json, printable, refuse_unwritable

__all__ = ["add_arguments", "run"]

DEFAULT_PICTURE = "openadam-digits.png"
DRAWN_BY = b"openadam compare"  # what our pictures say of themselves


def add_arguments(parser: Parser) -> None:
    parser.epilog = "Interrupting it (Ctrl-C) keeps what is done."
    parser.add_argument("study", metavar="STUDY", type=one_of("study", ["digits"]), help="digits: handwritten digits, from scikit-learn")
    parser.add_argument("--optimizers", metavar="NAMES", type=members, help="members of the family, joined by commas (see openadam list)")
    parser.add_argument("--seeds", metavar="N", type=whole(1, 1000), help="how many times each optimizer is run")
    parser.add_argument("--epochs", metavar="N", type=whole(1, 10_000), help="how often each image is seen in a run")
    rates = parser.add_mutually_exclusive_group()
    rates.add_argument("--lr", metavar="X", type=hyperparameter("lr"), help="one learning rate for all; not a fair comparison")
    rates.add_argument("--sweep", action="store_true", help="choose each optimizer's learning rate anew first")
    picture = f"the picture of the curves: .png, .pdf or .svg ({DEFAULT_PICTURE}; with --json, none)"
    parser.add_argument("-o", "--picture", "--output", dest="picture", metavar="FILE", help=picture)
    parser.add_argument("--json", action="store_true", help="print the results as JSON")


def run(given: argparse.Namespace) -> int:
    from ..studies import demo_module, digits
    from ..views import compare as view
    from ..views import pictures, terminal

    for module in ("rich", "sklearn", "matplotlib"):
        demo_module(module)
    picture = Path(given.picture or DEFAULT_PICTURE) if given.picture is not None or not given.json else None
    if picture is not None:
        try:
            pictures.check_picture_format(picture.suffix)
        except ValueError as error:
            raise UsageError(f"--picture {given.picture}: {error}") from error
        _refuse_foreign(picture, asked=given.picture is not None)
        refuse_unwritable(picture)
    comparison = digits.Comparison(
        given.optimizers or digits.OPTIMIZERS, given.seeds or digits.SEEDS, given.epochs or digits.EPOCHS, given.lr, given.sweep
    )
    unknown = [name for name in comparison.optimizers if name not in digits.RATES]
    if unknown and given.lr is None and not given.sweep:
        raise UsageError(f"no learning rate was chosen for {', '.join(unknown)} yet; give --sweep, or one rate for all with --lr")
    interrupted = False
    try:
        data = digits.load_data()
        with terminal.Progress(comparison.planned) as progress:
            begun = itertools.count()
            comparison.run(data, lambda stage, what: progress.at(done := next(begun), max(comparison.planned, done + 1), f"{stage}: {what}"))
    except KeyboardInterrupt:
        interrupted = True
        complain("interrupted; what is done follows" if comparison.runs or comparison.sweeps else "interrupted before the first run was done")
    if comparison.sweeps and not given.json:
        view.print_sweep(comparison)
    if comparison.runs and not given.json:
        view.print_table(comparison, interrupted=interrupted)
        sys.stdout.flush()
    failure: Exception | None = None
    written = None
    if comparison.runs and picture is not None:
        failure = draw(picture, lambda: view.picture(comparison, picture.suffix))
        written = str(picture) if failure is None else None
    if given.json:
        print_json(view.as_json(comparison, written, interrupted=interrupted), indent=None)
    elif written is not None:
        print(f"\nCurves: {printable(picture)}")
    if failure is not None:
        complain_of_picture(failure)
        return 1
    return 130 if interrupted else 0


def _refuse_foreign(path: Path, *, asked: bool) -> None:
    """Refuse a file of somebody else's that nobody asked to replace."""
    if not asked and path.is_file() and DRAWN_BY not in path.read_bytes()[:4096]:
        raise UsageError(f"{path} is there already and was not drawn by this command; name another with --picture")
