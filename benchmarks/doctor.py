"""How good the doctor is on runs made to order: of each disease, whether it was found, and what else was; of healthy runs, what was found at all.

``python benchmarks/doctor.py`` prints what docs/doctor.md shows, in half a minute. An alarm is an error or a warning; a hint is none.
``--seeds N`` trains every optimizer on digits with N seeds instead, and counts alarms; ``--studies N`` does so with the networks of the
package's studies, about two minutes a seed. Nothing was set by their seeds, from 11 on.
"""

from __future__ import annotations

import argparse
import functools
import gc
import itertools
import logging
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from patients import HEALTHY, SICK, Run, learn_digits

from openadam import record
from openadam.family import MEMBERS
from openadam.studies import digits, gan, nlp, rl
from openadam.studies.frame import Setting, Study

FIRST_SEED = 11

JUMPS = "a Q-network whose target jumps"  # under its moments: there a surprise is what there is

# Of the players all, not the toy that circles; of language what Adam's kind learns, with its bias correction.
STUDIES: list[tuple[str, Study, list[str]]] = [
    ("two players", gan.STUDY, ["betas (0.9, 0.999)", "betas (0.5, 0.999)", "betas (0, 0.9)", "betas (0.9, 0.9)"]),
    ("a word model", nlp.STUDY, ["RMSProp", "Adagrad", "Adam", "lazy Adam"]),
    ("a transformer", nlp.STUDY, ["AdamW", "AdamW, no warm-up", "AdamW, beta2 0.999"]),
    ("a Q-network, begun anew when its target jumps", rl.STUDY, ["reset all", "reset t"]),
    (JUMPS, rl.STUDY, ["Adam", "eps 3.125e-4"]),
]


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
        for seed, (name, lr), (epochs, every) in itertools.product(range(FIRST_SEED, FIRST_SEED + seeds), digits.RATES.items(), ((4, 1), (15, 10))):
            run = functools.partial(learn_digits, member=MEMBERS[name], epochs=epochs, seed=seed, every=every, lr=lr)
            alarms, _, live = seen(Path(folder, f"{runs}.oadam"), run)
            runs += 1
            alarming += bool(alarms or live)
            if alarms or live:
                print(f"{name}, seed {seed}, {epochs} epochs: {' '.join(sorted(alarms))} {live}")
    print(f"Of {runs} healthy runs on digits {alarming} have an alarm.")


def learn(path: Path, study: Study, setting: Setting, seed: int) -> None:
    """Run a cell of a study, which knows nothing of recordings."""
    os.environ["OPENADAM_RECORD"] = str(path)
    try:
        study.run(setting, seed, False)
    finally:
        del os.environ["OPENADAM_RECORD"]
    gc.collect()  # the recording ends with its optimizers, and is whole when it says so
    while record.load(path).ended is None:
        time.sleep(0.1)


def other_networks(seeds: int) -> None:
    """How often the studies' networks alarm, which learn what they are to."""
    rows: list[tuple[str, ...]] = []
    runs, alarming = ({True: 0, False: 0} for _ in range(2))  # by whether the target jumps
    with tempfile.TemporaryDirectory() as folder:
        for what, study, settings in STUDIES:
            for name in settings:
                told: list[tuple[set[str], set[str], str]] = []
                for seed in range(FIRST_SEED, FIRST_SEED + seeds):
                    path = Path(folder, f"{len(rows)} {seed}.oadam")
                    told.append(seen(path, functools.partial(learn, study=study, setting=study.setting(name), seed=seed)))
                alarms, hints = (sorted(set().union(*(own[kind] for own in told))) for kind in (0, 1))
                count = sum(bool(own[0] or own[2]) for own in told)
                runs[what == JUMPS] += seeds
                alarming[what == JUMPS] += count
                rows.append(
                    (what, name, f"{count} of {seeds}", " ".join(alarms) or "none", " ".join(hints), " / ".join(own[2] for own in told if own[2]))
                )
    show(("network", "setting", "alarming runs", "alarms", "hints", "raised at step"), rows)
    print(f"Healthy runs with an alarm: {alarming[False]} of {runs[False]}. Runs with an alarm whose target jumps: {alarming[True]} of {runs[True]}.")


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
    logging.disable(logging.WARNING)  # alarms that are raised are told below
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, metavar="N", help="digits by every optimizer, N seeds of each")
    parser.add_argument("--studies", type=int, metavar="N", help="the networks of the studies, N seeds of each")
    given = parser.parse_args()
    if given.seeds:
        other_seeds(given.seeds)
    if given.studies:
        other_networks(given.studies)
    if not (given.seeds or given.studies):
        main()
