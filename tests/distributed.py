"""Tests whose body runs in several processes at once, which form a group over gloo: all must end well, and in time."""

from __future__ import annotations

import faulthandler
import functools
import importlib
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

LIMIT = 60  # seconds, after which a process says where it hangs and ends
PATIENCE = timedelta(seconds=20)  # of a collective whose partners do not come


@functools.cache
def _context() -> Any:
    """Where processes come from: forks of one that has imported everything and done nothing, so that a start takes no second."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["pytest", "torch", "torch.distributed.fsdp", "torch.distributed.checkpoint.state_dict", "torch.distributed.optim", "openadam.torch"]
    )
    return context


def launch(check: Callable[..., None], size: int, **given: Any) -> None:
    """Run a function of a test module, found there by its name, in so many processes; raise if it fails in any, with what that one said."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        pytest.skip("no forkserver here")
    context = _context()
    with TemporaryDirectory() as folder:
        started = [
            context.Process(target=_take_part, args=(rank, size, Path(folder), check.__module__, check.__name__, given), daemon=True)
            for rank in range(size)
        ]
        for process in started:
            process.start()
        deadline = time.monotonic() + LIMIT + 10
        try:
            for process in started:
                process.join(max(0.0, deadline - time.monotonic()))
        finally:
            for process in started:
                process.kill()
        failures = [rank for rank, process in enumerate(started) if process.exitcode != 0]
        said = {rank: (Path(folder) / f"{rank}.txt").read_text(errors="replace") for rank in failures}
        # Those whose partner failed say so, too; what matters is what the others say.
        failures.sort(key=lambda rank: "Gloo" in said[rank] or "Connection" in said[rank])
        assert not failures, "\n".join(f"--- process {rank} of {size}, exit code {started[rank].exitcode}\n{said[rank][-3000:]}" for rank in failures)


def processes(size: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A test that runs in so many processes; what pytest gives it must be fit to be sent there."""

    def decorate(check: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(check)
        def test(**given: Any) -> None:
            launch(check, size, **given)

        return test

    return decorate


def _take_part(rank: int, size: int, folder: Path, module: str, name: str, given: dict[str, Any]) -> None:
    with open(folder / f"{rank}.txt", "w", buffering=1) as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
        faulthandler.dump_traceback_later(LIMIT, exit=True, file=said)
        import torch

        torch.set_num_threads(1)
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=size, timeout=PATIENCE)
        try:
            check = getattr(importlib.import_module(module), name)
            getattr(check, "__wrapped__", check)(**given)
            torch.distributed.barrier()  # nobody leaves while others still speak
        except BaseException:
            traceback.print_exc()
            said.flush()
            os._exit(1)  # at once, so that nobody waits for this one
        torch.distributed.destroy_process_group()
        sys.stdout.flush()
