"""``openadam study``: an experiment on real data, with claims that were made before it and verdicts that are computed after it."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .arguments import Parser, UsageError, named_object, near, whole
from .output import complain, complain_of_picture, draw, print_columns, print_json, refuse_unwritable

__all__ = ["add_arguments", "run"]

STUDIES = ("digits", "gan", "rl", "nlp")
OF_A_RUN = ("seeds", "full", "out", "resume", "picture", "workers", "json")


def add_arguments(parser: Parser) -> None:
    parser.epilog = "Interrupting it (Ctrl-C) keeps what is done; with --out it can be gone on with."
    parser.add_argument("study", metavar="STUDY", nargs="?", help=f"{', '.join(STUDIES)}, or module:attribute for one of your own")
    parser.add_argument("--list", action="store_true", help="print its settings, numbers and claims (without a study: the studies), and run nothing")
    parser.add_argument("--settings", metavar="NAMES", help="only these of its settings, joined by semicolons")
    parser.add_argument("--seeds", metavar="N", type=whole(1, 1000), help="how many times each setting is run")
    parser.add_argument("--full", action="store_true", help="with the full budget: longer runs, more seeds")
    parser.add_argument("--sweep", action="store_true", help="choose the learning rates anew, and print how")
    parser.add_argument("--out", metavar="FILE", type=Path, help="append every finished cell to a file, JSON lines")
    parser.add_argument("--resume", action="store_true", help="go on with the file of --out")
    parser.add_argument("--picture", metavar="FILE", type=Path, help="draw it: .png, .pdf or .svg")
    parser.add_argument("--workers", metavar="N", type=whole(1, 64), help="cells side by side; default: the processors")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")


def run(given: argparse.Namespace) -> int:
    from ..studies import frame, module
    from ..views import pictures
    from ..views import study as view

    for flag in ("list", "sweep"):
        others = [f"--{name}" for name in (*OF_A_RUN, "sweep" if flag == "list" else "settings") if getattr(given, name)]
        if getattr(given, flag) and others:
            raise UsageError(f"--{flag} runs none of the study's cells; leave {', '.join(others)} out")
    if given.study is None:
        if not given.list:
            raise UsageError(f"which study? {', '.join(STUDIES)}, or module:attribute for one of your own")
        print_columns((name, _find(name).title) for name in STUDIES)
        return 0
    study = _find(given.study)
    names = [setting.name for setting in study.settings]
    settings = list(dict.fromkeys(name.strip() for name in given.settings.split(";"))) if given.settings is not None else names
    for name in settings:
        if name not in names:
            raise UsageError(f"there is no setting {name!r}; {near(name, names, '; ')} (joined by semicolons)")
    if given.resume and given.out is None:
        raise UsageError("--resume goes on with a file: name it with --out")
    module("rich", "studies")
    if given.list:
        view.print_study(study)
        return 0
    for needed in (*study.needs, "threadpoolctl"):
        module(needed, "studies")
    if given.sweep:
        if study.sweep is None:
            raise UsageError(f"the study {study.name} chooses no learning rates")
        view.print_sweep(study, study.sweep())
        return 0
    if given.picture is not None:
        module("matplotlib", "studies")
        try:
            pictures.check_picture_format(given.picture.suffix)
        except ValueError as error:
            raise UsageError(f"--picture {given.picture}: {error}") from error
        if given.out is not None and given.out.absolute() == given.picture.absolute():
            raise UsageError(f"{given.out} cannot hold both the cells and the picture")
        refuse_unwritable(given.picture)
    seeds = given.seeds or (study.full_seeds if given.full else study.seeds)
    workers = given.workers or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    with _ended_as_if_interrupted() as ended:
        cells, interrupted, kept = _cells(frame, study, frame.planned(settings, seeds), given, workers)
        code = (128 + signal.SIGTERM if ended else 130) if interrupted else 0 if kept else 1
        if not cells:
            return code
        failure = draw(given.picture, lambda: view.picture(study, cells, given.picture.suffix)) if given.picture is not None else None
        files = [str(file) for file in (given.picture if failure is None else None, given.out) if file is not None]
        if given.json:
            print_json(view.as_json(study, cells, files, full=given.full), indent=None)
        else:
            view.print_results(study, cells, files)
    if failure is not None:
        sys.stdout.flush()
        complain_of_picture(failure)
        return 1
    return code


def _find(name: str) -> Any:
    """The study of a name."""
    from ..studies import frame

    if ":" in name:
        found = named_object(name)
        if not isinstance(found, frame.Study):
            raise UsageError(f"{name} is of type {type(found).__name__}, not an openadam.studies.frame.Study")
        return found
    if name not in STUDIES:
        raise UsageError(f"there is no study {name!r}; {near(name, STUDIES)}")
    return importlib.import_module(f"..studies.{name}", __package__).STUDY


@contextlib.contextmanager
def _ended_as_if_interrupted() -> Iterator[list[int]]:
    """A program that is asked to end (SIGTERM) keeps what is done, too; the list then holds the signal."""
    ended: list[int] = []

    def end(number: int, _: object) -> None:
        ended.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield ended
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield ended
    finally:
        signal.signal(signal.SIGTERM, before)


def _cells(frame: Any, study: Any, cells: list[tuple[str, int]], given: argparse.Namespace, workers: int) -> tuple[list[Any], bool, bool]:
    """The finished cells, in the order in which they were planned; whether there was an interrupt; and whether the file holds all of them."""
    from ..views import terminal

    try:
        file = frame.CellFile(given.out, study, full=given.full, resume=given.resume) if given.out is not None else None
    except (FileExistsError, FileNotFoundError, IsADirectoryError) as error:
        raise UsageError(str(error)) from error
    done = {(cell.setting, cell.seed): cell for cell in (file.cells if file is not None else ()) if (cell.setting, cell.seed) in cells}
    left = [cell for cell in cells if cell not in done]
    interrupted, kept = False, True
    with terminal.Progress(len(left)) if left else contextlib.nullcontext() as progress:
        running = frame.run_cells(study, left, full=given.full, workers=workers)
        try:
            for count, cell in enumerate(running, 1):
                done[cell.setting, cell.seed] = cell
                if file is not None and kept:
                    try:
                        file.append(cell)
                    except OSError as error:
                        kept = False
                        complain(
                            f"error: {given.out}: {error.strerror}; the cells from here on are in no file, and the results are printed at the end"
                        )
                assert progress is not None
                progress.at(count, len(left), f"{cell.setting}, seed {cell.seed}")
        except KeyboardInterrupt:
            interrupted = True
        finally:
            with contextlib.suppress(KeyboardInterrupt):
                running.close()
    if interrupted:
        how = f"; go on with --out {given.out} --resume" if file is not None else ""
        complain(f"interrupted after {len(done)} of {len(cells)} cells{how}")
    return [done[cell] for cell in cells if cell in done], interrupted, kept
