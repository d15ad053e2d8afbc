"""Forks, threads, signals and exits: a step is completed or not begun, and nothing hangs.

Labels such as C6 are the case numbers of docs/faults.md.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import os
import signal
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import ThreadPool
from typing import Any

import numpy as np
import pytest
from family import ENGINES, PLAIN, Variant
from support import fingerprint, python, refuses

import openadam
from openadam import ConcurrentStepError, HyperparameterError

LARGE = 400_000  # elements: enough work for several threads

every_engine = pytest.mark.parametrize("engine", ENGINES)


# --- C1: forks ---------------------------------------------------------------------------------------------------------

FORK = """
import os, sys
import numpy as np
import openadam

engine, threads = sys.argv[1], int(sys.argv[2])
w = np.linspace(-1, 1, 1_000_000, dtype=np.float32)
optimizer = openadam.Adam(w, threads=threads, engine=engine)
gradient = np.cos(w)
optimizer.step(gradient)
pids = []
for child in range(2):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        for _ in range(2):
            optimizer.step(gradient)
        with os.fdopen(write, "wb") as out:
            out.write(w.tobytes())
        os._exit(0)
    os.close(write)
    pids.append((pid, read))
for _ in range(2):
    optimizer.step(gradient)
for pid, read in pids:
    with os.fdopen(read, "rb") as stream:
        assert stream.read() == w.tobytes()
    assert os.waitpid(pid, 0)[1] == 0
print(optimizer.steps)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize(("engine", "threads"), [(engine, threads) for engine in ENGINES for threads in ((1, 4) if engine == "native" else (1,))])
def test_c1_a_forked_child_steps_as_its_parent(engine: str, threads: int) -> None:
    """After a step on several threads, which a child does not inherit."""
    assert python(FORK, engine, str(threads), warnings="ignore::DeprecationWarning").strip() == "3"


FORK_MEANWHILE = """
import os, threading
import numpy as np
import openadam

inside, go_on = threading.Event(), threading.Event()

def schedule(t):
    inside.set()
    assert go_on.wait(30)
    return 0.1

busy, free = openadam.Adam(np.ones(3), lr=schedule), openadam.Adam(np.ones(300_000), lr=0.1, threads=2)
thread = threading.Thread(target=busy.step, args=(np.ones(3),))
thread.start()
assert inside.wait(30)
pid = os.fork()
if pid == 0:
    free.step(np.ones(300_000))
    try:
        busy.step(np.ones(3))
    except openadam.ConcurrentStepError:
        os._exit(0 if free.steps == 1 else 2)
    os._exit(1)
status = os.waitpid(pid, 0)[1]
go_on.set()
thread.join()
print(status, busy.steps)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_c1_a_fork_in_the_middle_of_a_step_is_refused_and_does_not_hang() -> None:
    """The child has the optimizer as it was in the middle; it can use any other."""
    assert python(FORK_MEANWHILE, warnings="ignore::DeprecationWarning").split() == ["0", "1"]


# --- C3, C5: threads ---------------------------------------------------------------------------------------------------


def run(member: type[openadam.Optimizer], engine: str, steps: int = 5, size: int = LARGE, threads: int = 2) -> str:
    """The fingerprint of a run that depends on nothing but its arguments."""
    random = np.random.default_rng(0)
    optimizer = member([random.standard_normal(size).astype(np.float32), random.standard_normal(7)], engine=engine, threads=threads, clip_norm=1.0)
    for _ in range(steps):
        optimizer.step([random.standard_normal(size).astype(np.float32), random.standard_normal(7)])
    return fingerprint(optimizer)


MEMBERS_AT_ONCE = [openadam.Adam, openadam.AMSGrad, openadam.RMSProp, openadam.Momentum]


@every_engine
def test_c3_different_optimizers_on_different_threads(engine: str) -> None:
    size = LARGE if engine == "native" else 20_000
    work = functools.partial(run, engine=engine, size=size)
    serial = list(map(work, MEMBERS_AT_ONCE))
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, MEMBERS_AT_ONCE)) == serial


class Held:
    """A schedule in which a step waits, so that another thread meets it there."""

    def __init__(self) -> None:
        self.entered, self.released = threading.Event(), threading.Event()

    def __call__(self, t: int) -> float:
        self.entered.set()
        assert self.released.wait(30)
        return 0.1


@every_engine
def test_c3_one_optimizer_on_two_threads(engine: str) -> None:
    """The second use is refused, whatever it is; the first goes on as if nothing had happened."""
    held = Held()
    optimizer, alone = (openadam.Adam({"w": np.ones(4)}, lr=lr, engine=engine) for lr in (held, 0.1))
    gradients = {"w": np.ones(4)}
    thread = threading.Thread(target=optimizer.step, args=(gradients,))
    thread.start()
    try:
        assert held.entered.wait(30)
        uses: list[Callable[[], Any]] = [
            lambda: optimizer.step(gradients),
            lambda: optimizer.add_group({"params": {"b": np.zeros(1)}}),
            lambda: optimizer.state_dict(),
            lambda: optimizer.load_state_dict({}),
        ]
        for use in uses:
            refuses(optimizer, use, ConcurrentStepError, "another thread", "one optimizer per thread")
    finally:
        held.released.set()
        thread.join()
    alone.step(gradients)
    assert optimizer.steps == 1
    for name, value in alone.state["w"].items():
        assert np.array_equal(optimizer.state["w"][name], value)
    assert np.array_equal(optimizer.params["w"], alone.params["w"])
    optimizer.step(gradients)


@every_engine
def test_c3_many_threads_on_one_optimizer(engine: str) -> None:
    """Whatever gets through, gets through whole: the parameter counts the steps that were not refused."""
    w = np.zeros(50_000)
    optimizer = openadam.SGD(w, lr=1.0, engine=engine, threads=2)
    gradient = np.ones_like(w)

    def step(_: int) -> bool:
        try:
            optimizer.step(gradient)
        except ConcurrentStepError:
            return False
        return True

    with ThreadPool(4) as pool:
        through = sum(pool.map(step, range(200), chunksize=5))
    assert through >= 1
    assert optimizer.steps == through
    assert (w == -through).all()


def test_a_step_from_within_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer: openadam.Optimizer

    def schedule(t: int) -> float:
        optimizer.step(np.ones(2))
        return 0.1

    optimizer = openadam.Adam(np.ones(2), lr=schedule)
    refuses(optimizer, lambda: optimizer.step(np.ones(2)), ConcurrentStepError, "the call that led here")
    optimizer.groups[0]["lr"] = 0.1
    optimizer.step(np.ones(2))


@every_engine
def test_c5_gradients_that_others_let_go_of_during_the_step(engine: str) -> None:
    """The step holds what it was given: a caller's list may be emptied, and an array not resized, while it runs."""
    gradients = [np.ones(3), np.ones(2)]
    refused = []

    def schedule(t: int) -> float:
        try:
            gradients[0].resize(1)
        except ValueError as error:
            refused.append(str(error))
        gradients.clear()
        return 0.5

    optimizer, plain = (openadam.Adam([np.ones(3), np.ones(2)], lr=lr, engine=engine) for lr in (schedule, 0.5))
    plain.step(list(gradients))
    optimizer.step(gradients)
    assert not gradients
    assert "cannot resize" in refused[0]
    assert all(np.array_equal(optimizer.params[name], plain.params[name]) for name in plain.params)


@every_engine
def test_c5_gradients_that_others_write_during_the_step(engine: str) -> None:
    """No promise about the numbers, but each is one that was there: nothing crashes, nothing else is touched."""
    w, gradient = np.zeros(LARGE, np.float32), np.ones(LARGE, np.float32)
    optimizer = openadam.SGD(w, lr=1.0, engine=engine, threads=2, nonfinite="propagate")
    over = threading.Event()

    def scribble() -> None:
        while not over.is_set():
            gradient[...] = 1
            gradient[...] = 2

    thread = threading.Thread(target=scribble)
    thread.start()
    try:
        for _ in range(10):
            optimizer.step(gradient)
    finally:
        over.set()
        thread.join()
    assert optimizer.steps == 10
    assert ((w >= -20) & (w <= -10)).all()


# --- C6, C7: signals and exceptions ------------------------------------------------------------------------------------


class Interrupt(Exception):
    """What a handler raises, as Python's own raises KeyboardInterrupt."""


CHECKED = ("CALL", "RESUME", "JUMP_BACKWARD", "JUMP_ABSOLUTE")
"""The instructions after which the interpreter runs signal handlers, by how their names begin."""
PURE = ("run", "join", "look_up", "joined")
"""Functions of the reference engine that keep nothing, so that places in them are all alike."""


@functools.cache
def _operations(code: types.CodeType) -> dict[int, str]:
    return {instruction.offset: instruction.opname for instruction in dis.get_instructions(code)}


def at_place(place: int, event: Callable[[], Any], action: Callable[[], Any]) -> str | None:
    """Act, and let the event happen at the given one of all places where a signal handler, or another thread, could come in.

    Returns:
        The function and line of that place, or None if the action has fewer.
    """
    count, where = 0, None
    previous: dict[types.FrameType, tuple[str, int]] = {}

    def trace(frame: types.FrameType, kind: str, argument: Any) -> Any:
        nonlocal count, where
        if f"{os.sep}openadam{os.sep}" not in frame.f_code.co_filename or frame.f_code.co_name in PURE:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if kind == "call":
            previous[frame] = "RESUME", frame.f_lineno
        elif kind == "opcode":
            (last, line), previous[frame] = previous[frame], (_operations(frame.f_code).get(frame.f_lasti, ""), frame.f_lineno)
            # What a handler raises belongs to the instruction before this one. On another line this one may already stand outside
            # of the `try` or `with` that the other was in; such places are left out.
            if last.startswith(CHECKED) and (last == "RESUME" or line == frame.f_lineno) and where is None:
                if count == place:
                    where = f"{frame.f_code.co_name}, line {frame.f_lineno}"
                    event()
                count += 1
        return trace

    outer = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    except Interrupt:
        pass
    finally:
        sys.settrace(outer)
    return where


def interrupt() -> None:
    raise Interrupt


@openadam.rule
def counting(g: Any, s: Any, h: Any) -> openadam.Step:
    """The smallest rule with a state of each kind, for the engine whose every operation is a place."""
    k = s.k + 1
    m = s.m + k * g
    return openadam.Step(m, m=m, k=k)


class Run:
    """A short run in the middle of which something may be interrupted: a step that changes all that is kept, or a load."""

    def __init__(self, engine: str, use: str) -> None:
        self.use = use
        member = openadam.NAdam if engine == "native" else functools.partial(openadam.Optimizer, rule=counting)
        self.optimizer = member([np.arange(1.0, 6.0), np.arange(3.0)], lr=0.01, weight_decay=0.0, clip_norm=1.0, engine=engine)
        self.optimizer.step([np.ones(5), np.ones(3)])
        self.loaded = self.optimizer.state_dict()
        self.loaded["groups"][0]["lr"] = 0.2
        self.loaded["state"]["1"]["step"] = self.loaded["steps"] = self.loaded["skipped"] = 7
        self.optimizer.groups[0].update(lr=0.5, weight_decay=0.1)

    def second(self) -> None:
        if self.use == "step":
            self.optimizer.step([np.ones(5), None])
        else:
            self.optimizer.load_state_dict(self.loaded)

    def rest(self) -> str:
        """What the next steps make of it."""
        self.optimizer.step([np.full(5, 2.0), np.ones(3)])
        self.optimizer.groups[0]["weight_decay"] = 0.0
        self.optimizer.step([np.ones(5), np.ones(3)])
        return fingerprint(self.optimizer)


def begun_or_not(make: Callable[[], Any]) -> dict[str, str]:
    """From the fingerprint right after the second step, done or not begun, to that at the end of the run."""
    ends = {}
    for done in (False, True):
        each = make()
        if done:
            each.second()
        state = fingerprint(each.optimizer)
        ends[state] = each.rest()
    return ends


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="places are those of CPython's interpreter")
@pytest.mark.parametrize("use", ["step", "load_state_dict"])
@every_engine
def test_c6_an_interrupt_at_every_place(engine: str, use: str) -> None:
    """A step, or a load, that a signal handler interrupts is complete or not begun, and the run goes on as from there."""
    ends = begun_or_not(lambda: Run(engine, use))
    broken: list[str] = []
    for place in range(10_000):
        each = Run(engine, use)
        where = at_place(place, interrupt, each.second)
        if where is None:
            break
        try:
            if ends.get(fingerprint(each.optimizer)) != each.rest():
                broken.append(where)
        except ConcurrentStepError:
            broken.append(f"{where}: still locked")
    assert place > 100
    assert not broken, f"{len(broken)} of {place} places:\n" + "\n".join(sorted(set(broken)))


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="places are those of CPython's interpreter")
def test_c3_another_thread_at_every_place() -> None:
    """Wherever one thread stands in a step, for however long, the step of another is refused, or comes wholly before or after."""
    ends = []
    for count in (1, 2):
        alone = openadam.NAdam(np.arange(3.0), lr=0.1)
        for _ in range(count):
            alone.step(np.ones(3))
        ends.append(fingerprint(alone))
    broken: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        for place in range(10_000):
            optimizer = openadam.NAdam(np.arange(3.0), lr=0.1)
            refused: list[BaseException | None] = []
            step = functools.partial(optimizer.step, np.ones(3))
            try:
                where = at_place(place, lambda: refused.append(pool.submit(step).exception(timeout=30)), step)
                if where is None:
                    break
                through = 2 - isinstance(refused[0], ConcurrentStepError)
                if fingerprint(optimizer) != ends[through - 1]:
                    broken.append(f"{where}: {through} steps")
                step()
            except Exception as error:
                broken.append(f"place {place}: {error!r}")
    assert place > 50
    assert not broken, "\n".join(broken)


class Gate:
    """A schedule in which another thread than the main one waits; it notes how many steps are in it at once."""

    def __init__(self) -> None:
        self.entered, self.open = threading.Semaphore(0), threading.Semaphore(0)
        self.within = self.most = 0

    def __call__(self, t: int) -> float:
        self.within += 1
        self.most = max(self.most, self.within)
        if threading.current_thread() is not threading.main_thread():
            self.entered.release()
            assert self.open.acquire(timeout=30)
        self.within -= 1
        return 0.1


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="places are those of CPython's interpreter")
def test_c3_the_other_thread_ends_its_step_and_begins_the_next_at_every_place() -> None:
    """Whatever the second thread has seen of the first one's step by then, there are never two steps at once."""
    broken: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        for place in range(1000):
            gate = Gate()
            optimizer = openadam.SGD(np.ones(3), lr=gate, engine="reference")
            steps = pool.submit(lambda: [optimizer.step(np.ones(3)) for _ in range(2)])
            assert gate.entered.acquire(timeout=30)

            def next_step() -> None:
                gate.open.release()
                assert gate.entered.acquire(timeout=30)

            def attempt() -> None:
                with contextlib.suppress(ConcurrentStepError):
                    optimizer.step(np.ones(3))

            where = at_place(place, next_step, attempt)
            gate.open.release(2)
            try:
                steps.result(timeout=30)
            except Exception as error:
                broken.append(f"{where}: {error!r}")
            if gate.most > 1:
                broken.append(f"{where}: {gate.most} steps at once")
            if where is None:
                break
    assert place > 0
    assert not broken, "\n".join(broken)


class Alarm:
    """A timer whose signal raises Interrupt, once, and only while it is armed."""

    armed = False

    def set(self, seconds: float) -> None:
        self.armed = True
        signal.setitimer(signal.ITIMER_REAL, seconds)

    def __call__(self, number: int, frame: Any) -> None:
        if self.armed:
            self.armed = False
            raise Interrupt


@pytest.fixture
def alarm() -> Iterator[Alarm]:
    timer = Alarm()
    before = signal.signal(signal.SIGALRM, timer)
    yield timer
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers here")
@every_engine
def test_c6_a_signal_at_any_time(engine: str, alarm: Alarm) -> None:
    """Real signals at random moments: the parameters show as many steps as the counters say."""
    size = 20_000 if engine == "reference" else LARGE
    w, gradient = np.zeros(size, np.float32), np.ones(size, np.float32)
    optimizer = openadam.Momentum({"w": w, "b": np.zeros(1)}, lr=1.0, momentum=0.5, engine=engine, threads=2)
    random = np.random.default_rng(0)
    interrupts = 0
    for _ in range(200):
        try:
            alarm.set(random.uniform(1e-5, 1.5e-3))
            for _ in range(4):
                optimizer.step({"w": gradient, "b": np.ones(1)})
        except Interrupt:
            interrupts += 1
        finally:
            alarm.armed = False
        assert optimizer.state["w"]["step"] == optimizer.state["b"]["step"] == optimizer.steps
        before = w[0]
        assert (w == before).all()
        assert (optimizer.state["w"]["momentum_buffer"] == optimizer.state["b"]["momentum_buffer"]).all()
        assert before == optimizer.params["b"][0] == expected_position(optimizer.steps)
        if optimizer.steps >= 8:  # while every number is exact in float32
            w[...] = optimizer.params["b"][...] = 0
            optimizer.load_state_dict(openadam.Momentum({"w": w, "b": np.zeros(1)}, lr=1.0, momentum=0.5).state_dict())
    assert interrupts > 20


def expected_position(steps: int) -> float:
    """Where momentum 0.5 arrives from 0 with gradients of 1: the sum of 1, 1.5, 1.75, ..."""
    return -sum(2 - 0.5**k for k in range(steps))


@every_engine
def test_c7_exceptions_of_the_callers_code(engine: str) -> None:
    """In a schedule or in reading a gradient: it comes through as it is, nothing has changed, and the next step works."""
    fails = {"now": False}

    def schedule(t: int) -> float:
        if fails["now"]:
            raise KeyError("mine")
        return 0.1

    optimizer, plain = (openadam.Adam({"w": np.ones(2)}, lr=lr, engine=engine) for lr in (schedule, 0.1))
    gradients = {"w": np.ones(2)}
    for each in (optimizer, plain):
        each.step(gradients)
    fails["now"] = True
    refuses(optimizer, lambda: optimizer.step(gradients), KeyError, "mine")
    fails["now"] = False

    def generated() -> Iterator[Any]:
        yield from ()
        raise LookupError("mine too")

    single = openadam.Adam([np.ones(2)], engine=engine)
    refuses(single, lambda: single.step(generated()), LookupError, "mine too")
    for each in (optimizer, plain):
        each.step(gradients)
    assert np.array_equal(optimizer.params["w"], plain.params["w"])


# --- C8: the end of the interpreter ------------------------------------------------------------------------------------

EXIT = """
import sys, threading, time
import numpy as np
import openadam

engine, size, delay = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
w, gradient = np.zeros(size, np.float32), np.ones(size, np.float32)
optimizer = openadam.Adam(w, threads=2, engine=engine)
started = threading.Event()

def work():
    while True:
        optimizer.step(gradient)
        started.set()

threading.Thread(target=work, daemon=True).start()
started.wait()
time.sleep(delay)
print("done")
"""


SIZES = {
    "native": ("native", 3_000_000),
    "interpreter": ("interpreter", 1_000_000),
    "reference": ("reference", 100_000),
}


@pytest.mark.parametrize(("engine", "size"), [SIZES[engine] for engine in ENGINES])
def test_c8_a_daemon_thread_in_the_middle_of_a_step_at_exit(engine: str, size: int) -> None:
    for delay in (0.0, 0.003, 0.007, 0.013):
        assert python(EXIT, engine, str(size), str(delay)) == "done\n"


def test_c8_helpers_do_not_keep_the_process() -> None:
    """The threads of a step that is over sleep; the process ends without them."""
    script = "import numpy as np, openadam; w = np.zeros(1_000_000); openadam.Adam(w, threads=4).step(w + 1); print(w[0] < 0)"
    assert python(script, timeout=30) == "True\n"


# --- C9: parallelism around and beside ---------------------------------------------------------------------------------


def test_c9_pools_of_threads() -> None:
    joblib = pytest.importorskip("joblib")
    engine = ENGINES[0]
    expected = run(openadam.Adam, engine, 3)
    with ThreadPool(3) as pool:
        assert pool.map(lambda _: run(openadam.Adam, engine, 3), range(6)) == [expected] * 6
    assert joblib.Parallel(n_jobs=3, prefer="threads")(joblib.delayed(run)(openadam.Adam, engine, 3) for _ in range(6)) == [expected] * 6


PROCESSES = """
import multiprocessing, sys
import numpy as np
import openadam

def work(seed):
    w = np.ones(300_000, np.float32)
    optimizer = openadam.Adam(w, threads=2)
    for _ in range(3):
        optimizer.step(np.cos(w))
    return w.tobytes()

if __name__ == "__main__":
    expected = work(0)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        print(pool.map(work, range(4)) == [expected] * 4)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_c9_a_pool_of_forked_processes() -> None:
    assert python(PROCESSES, warnings="ignore::DeprecationWarning") == "True\n"


BESIDE_TORCH = """
import threading
import numpy as np
import torch
import openadam

w = np.ones(500_000, np.float32)
optimizer = openadam.Adam(w, threads=2)
a = torch.ones(300, 300)
over = threading.Event()

def multiply():
    while not over.is_set():
        torch.mm(a, a)

thread = threading.Thread(target=multiply)
thread.start()
for _ in range(20):
    torch.mm(a, a)
    optimizer.step(np.cos(w))
over.set()
thread.join()
print(optimizer.steps)
"""


def test_c9_beside_the_threads_of_torch() -> None:
    pytest.importorskip("torch")
    assert python(BESIDE_TORCH, warnings="ignore") == "20\n"


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted in /proc")
@pytest.mark.skipif("native" not in ENGINES, reason="the reference has no threads")
def test_c9_threads_are_shared_and_not_multiplied() -> None:
    """However many optimizers step at once, there are no more helpers than one step may have."""
    script = """
import os, time
from concurrent.futures import ThreadPoolExecutor
import numpy as np
import openadam

before = len(os.listdir("/proc/self/task"))

def work(_):
    w = np.ones(1_000_000, np.float32)
    optimizer = openadam.Adam(w, threads=3)
    for _ in range(5):
        optimizer.step(w + 1)

with ThreadPoolExecutor(4) as pool:
    list(pool.map(work, range(4)))
deadline = time.monotonic() + 10
while (helpers := len(os.listdir("/proc/self/task")) - before) > 2 and time.monotonic() < deadline:
    time.sleep(0.01)  # the pool's own threads take a moment to be gone
print(helpers)
"""
    assert python(script) == "2\n"


# --- C10: how many threads ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [0, -1, 65, 10**6, 10**30, "2", 2.0, True, np.nan, [2]], ids=repr)
def test_c10_numbers_of_threads_that_are_refused(threads: Any) -> None:
    with pytest.raises(HyperparameterError, match=r"threads=.* is not a whole number from 1 to 64"):
        openadam.Adam(np.zeros(1), threads=threads)


@pytest.mark.parametrize("threads", [1, 2, 64, np.int64(3)], ids=repr)
def test_c10_numbers_of_threads(threads: Any) -> None:
    assert run(openadam.Adam, ENGINES[0], 1, threads=threads) == run(openadam.Adam, ENGINES[0], 1, threads=1)


@pytest.mark.parametrize("value", ["0", "-1", "65", "1000000", "two", "2.0", " 2", "1e1", "²"])
def test_c10_garbage_in_the_environment_is_ignored_with_a_warning(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENADAM_NUM_THREADS", value)
    with pytest.warns(UserWarning, match=rf"OPENADAM_NUM_THREADS={value!r} is not a whole number from 1 to 64; ignored") as caught:
        optimizer = openadam.Adam(np.zeros(1))
    assert caught[0].filename == __file__
    assert 1 <= optimizer._threads <= 64


def test_c10_the_environment_and_the_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENADAM_NUM_THREADS", "5")
    assert openadam.Adam(np.zeros(1))._threads == 5
    assert openadam.Adam(np.zeros(1), threads=3)._threads == 3
    monkeypatch.setenv("OPENADAM_NUM_THREADS", "")
    if hasattr(os, "sched_getaffinity"):
        assert openadam.Adam(np.zeros(1))._threads == min(len(os.sched_getaffinity(0)), 64)


@every_engine
@pytest.mark.parametrize("subject", PLAIN, ids=str)
def test_any_member_after_an_exception(subject: Variant, engine: str) -> None:
    """One body for all: a refused step, then the same step with good gradients, is as if the first had not been."""
    tried, plain = (subject.make({"w": np.ones(5, np.float32)}, engine=engine) for _ in range(2))
    for _ in range(3):
        with pytest.raises(openadam.NonFiniteGradientError):
            tried.step({"w": np.full(5, np.nan, np.float32)})
        for each in (tried, plain):
            each.step({"w": np.ones(5, np.float32)})
    assert fingerprint(tried) == fingerprint(plain)


SUB_INTERPRETER = """
import numpy
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
own = interpreters.create()
left = interpreters.run_string(own, "try:\\n import openadam\\nexcept ImportError as error:\\n print('refused:', error, flush=True)")
assert left is None, left
interpreters.destroy(own)
import openadam
openadam.Adam(numpy.ones(3)).step(numpy.ones(3))
print("done")
"""


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="interpreters of CPython")
def test_c11_a_sub_interpreter_is_refused_at_import() -> None:
    done = subprocess.run([sys.executable, "-c", SUB_INTERPRETER], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("refused: openadam cannot run in a sub-interpreter")
    assert "WSGIApplicationGroup" in done.stdout
    assert done.stdout.endswith("done\n")
