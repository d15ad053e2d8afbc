"""How good the doctor is on runs made to order: of each disease, whether it was found, and what else was; of healthy runs, what was found at all.

``python benchmarks/doctor.py`` prints what docs/doctor.md shows. An alarm is an error or a warning; a hint is none.
``--seeds N`` trains every optimizer on digits with N seeds instead, and counts alarms.
"""

from __future__ import annotations

import functools
import itertools
import logging
import sys
import tempfile
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from patients import HEALTHY, SICK, Run, learn_digits

from openadam import record
from openadam.family import MEMBERS
from openadam.studies import digits


def seen(path: Path, run: Run) -> tuple[set[str], set[str], str]:
    """The rules of a recorded run's alarms, and those of its hints; and the first alarm of each rule that was raised while it went on."""
    run(path)
    session = record.load(path)
    findings = session.diagnose()
    live: dict[str, int] = {}
    for alarm in (alarm for track in session.tracks.values() for alarm in track.alarms):
        live.setdefault(alarm.evidence.get("rule", alarm.what), alarm.step)
    told = " ".join(f"{rule}@{step}" for rule, step in live.items())
    return {each.id for each in findings if each.severity != "hint"}, {each.id for each in findings if each.severity == "hint"}, told


def show(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        print("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    print()


def other_seeds(seeds: int) -> None:
    """How often healthy runs of the digits network alarm, for every optimizer at its swept rate, densely recorded and sparsely."""
    runs = alarming = 0
    with tempfile.TemporaryDirectory() as folder:
        for seed, (name, lr), (epochs, every) in itertools.product(range(11, 11 + seeds), digits.RATES.items(), ((4, 1), (15, 10))):
            run = functools.partial(learn_digits, member=MEMBERS[name], epochs=epochs, seed=seed, every=every, lr=lr)
            alarms, _, live = seen(Path(folder, f"{runs}.oadam"), run)
            runs += 1
            alarming += bool(alarms or live)
            if alarms or live:
                print(f"{name}, seed {seed}, {epochs} epochs: {' '.join(sorted(alarms))} {live}")
    print(f"Of {runs} healthy runs on digits {alarming} have an alarm.")


def main() -> None:
    found = ill = well = alarms_all = alarms_other = 0
    sick, healthy = [], []
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, (id, run)) in enumerate(SICK.items()):
            alarms, hints, live = seen(Path(folder, f"sick{number}.oadam"), run)
            found += id in alarms | hints
            ill += bool(alarms)
            alarms_all += len(alarms)
            alarms_other += len(alarms - {id})
            told = "alarm" if id in alarms else "hint" if id in hints else "NO"
            sick.append((name, id, told, " ".join(sorted(alarms - {id})), " ".join(sorted(hints - {id})), live))
        for number, (name, run) in enumerate(HEALTHY.items()):
            alarms, hints, live = seen(Path(folder, f"healthy{number}.oadam"), run)
            well += bool(alarms or live)
            healthy.append((name, " ".join(sorted(alarms)) or "none", " ".join(sorted(hints)), live or "none"))
    show(("disease", "rule", "found by", "other alarms", "other hints", "raised at step"), sick)
    show(("healthy run", "alarms", "hints", "raised"), healthy)
    print(f"Recall: {found} of {len(SICK)} diseases. Precision: of {ill + well} runs with an alarm {ill} are ill.")
    print(f"Of the {alarms_all} alarms in these, {alarms_other} are of other rules than the one that was meant, mostly for consequences.")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    if sys.argv[1:2] == ["--seeds"]:
        other_seeds(int(sys.argv[2]))
    else:
        main()
