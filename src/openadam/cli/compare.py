"""``openadam compare``: the same network trained with several optimizers, as a table, JSON and a picture of the curves."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from pathlib import Path

from .arguments import Parser, UsageError, hyperparameter, members, one_of, whole
from .output import complain, print_json, printable

__all__ = ["add_arguments", "run"]

DEFAULT_PICTURE = "openadam-digits.png"


def add_arguments(parser: Parser) -> None:
    parser.epilog = "Interrupting it (Ctrl-C) keeps what is done."
    parser.add_argument("study", metavar="STUDY", type=one_of("study", ["digits"]), help="digits: handwritten digits, from scikit-learn")
    parser.add_argument("--optimizers", metavar="NAMES", type=members, help="members of the family, joined by commas (see openadam list)")
    parser.add_argument("--seeds", metavar="N", type=whole(1, 1000), help="how many times each optimizer is run")
    parser.add_argument("--epochs", metavar="N", type=whole(1, 10_000), help="how often each image is seen in a run")
    rates = parser.add_mutually_exclusive_group()
    rates.add_argument("--lr", metavar="X", type=hyperparameter("lr"), help="one learning rate for all; not a fair comparison")
    rates.add_argument("--sweep", action="store_true", help="choose each optimizer's learning rate anew first")
    parser.add_argument("--output", metavar="FILE", default=DEFAULT_PICTURE, help="the picture of the curves: .png, .pdf or .svg (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")


def run(given: argparse.Namespace) -> int:
    from ..studies import demo_module, digits
    from ..views import compare as view

    for module in ("rich", "sklearn", "matplotlib"):
        demo_module(module)
    output = Path(given.output)
    try:
        view.check_picture_format(output.suffix)
    except ValueError as error:
        raise UsageError(f"--output {given.output}: {error}") from error
    _check_output(output)
    comparison = digits.Comparison(
        given.optimizers or digits.OPTIMIZERS, given.seeds or digits.SEEDS, given.epochs or digits.EPOCHS, given.lr, given.sweep
    )
    unknown = [name for name in comparison.optimizers if name not in digits.RATES]
    if unknown and given.lr is None and not given.sweep:
        raise UsageError(f"no learning rate was chosen for {', '.join(unknown)} yet; give --sweep, or one rate for all with --lr")
    interrupted = False
    try:
        data = digits.load_data()
        with view.Progress(comparison) as progress:
            comparison.run(data, progress.doing)
    except KeyboardInterrupt:
        interrupted = True
        complain("interrupted; what is done follows" if comparison.runs or comparison.sweeps else "interrupted before the first run was done")
    if comparison.sweeps and not given.json:
        view.print_sweep(comparison)
    if comparison.runs and not given.json:
        view.print_table(comparison, interrupted=interrupted)
        sys.stdout.flush()
    failure: OSError | None = None
    if comparison.runs:
        try:
            output.write_bytes(view.picture(comparison, output.suffix))
        except OSError as error:  # the results are worth printing all the same
            failure = error
    if given.json:
        written = str(output) if comparison.runs and failure is None else None
        print_json(view.as_json(comparison, written, interrupted=interrupted), indent=None)
    elif comparison.runs and failure is None:
        print(f"\nCurves: {printable(output)}")
    if failure is not None:
        raise failure
    return 130 if interrupted else 0


def _check_output(path: Path) -> None:
    """Refuse now what could not be written after the runs."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a directory, not a picture", str(path))
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "there is no such directory", str(path.parent))
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise PermissionError(errno.EACCES, "cannot be written", str(path))
