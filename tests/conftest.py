"""Shared settings of the tests: examples that are the same in every run, and others for every case of a test."""

from __future__ import annotations

import importlib.util
import zlib

import pytest
from hypothesis import HealthCheck, is_hypothesis_test, seed, settings

# Derandomized, so that a run on one machine says what a run on another would; no deadline, since machines differ.
settings.register_profile("openadam", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("openadam")

collect_ignore_glob = [] if importlib.util.find_spec("torch") else ["test_torch*.py"]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """The cases of a parametrised test would all see the same few examples; seeded by their names they see more together."""
    function = getattr(item, "function", None)
    if is_hypothesis_test(function):
        seed(zlib.crc32(item.name.encode()))(function)
