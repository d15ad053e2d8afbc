"""What several files of tests share: what must not change in a refused step, and scripts run in processes of their own."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import openadam


def fingerprint(optimizer: openadam.Optimizer, *, skipped: bool = True) -> str:
    """A digest of every byte that a step may change: parameters, states, counters, and of groups, steps and skipped."""
    digest = hashlib.sha256(repr((optimizer.groups, optimizer.steps, optimizer.skipped if skipped else None)).encode())
    for name, array in optimizer.params.items():
        digest.update(repr((name, array.dtype.str, array.shape)).encode() + array.tobytes())
    for name, state in optimizer.state.items():
        for key, value in state.items():
            digest.update(repr((name, key)).encode() + (value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode()))
    return digest.hexdigest()


def refuses(optimizer: openadam.Optimizer, action: Callable[[], Any], error: type[Exception], *texts: str) -> Exception:
    """The action is refused, twice, by an error that holds these texts, and leaves every byte of the optimizer as it was."""
    before = fingerprint(optimizer)
    for _ in range(2):  # what was refused once must not be trusted the next time
        with pytest.raises(error) as caught:
            action()
        assert type(caught.value) is error
        for text in texts:
            assert text in str(caught.value)
        assert fingerprint(optimizer) == before
    return caught.value


def python(script: str, *arguments: str, timeout: float = 60, warnings: str = "error", **environment: str) -> str:
    """What a script prints in a process of its own, which must end well and in time; environment variables are added."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OPENADAM_")}
    command = [sys.executable, "-W", warnings, "-c", script, *arguments]
    done = subprocess.run(command, env={**clean, **environment}, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout
