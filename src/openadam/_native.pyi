"""The native part, as Python sees it; see native/module.cpp."""

from typing import Any

import numpy as np
import numpy.typing as npt

COLUMNS: int
MAX_STATES: int
MAX_THREADS: int

def isas() -> list[str]: ...
def updates(isa: int) -> list[tuple[str, str, int, int]]: ...
def measures(isa: int) -> list[tuple[str, str]]: ...
def run(
    isa: int,
    table: npt.NDArray[np.int64],
    scalars: npt.NDArray[np.float64],
    layouts: npt.NDArray[np.int64],
    measures: npt.NDArray[np.int64],
    update: bool,
    tallies: npt.NDArray[np.float64],
    threads: int,
    counters: npt.NDArray[np.int64],
    counters_after: npt.NDArray[np.int64],
    memory: npt.NDArray[np.float64],
    memory_after: npt.NDArray[np.float64],
) -> None: ...
def read_gradients(
    gradients: list[Any],
    parameters: list[Any],
    table: npt.NDArray[np.int64],
    starts: npt.NDArray[np.int64],
    ends: npt.NDArray[np.int64],
    recheck: bool,
) -> tuple[list[int], list[int]]: ...
def allocate(bytes: int) -> npt.NDArray[np.uint8]: ...
