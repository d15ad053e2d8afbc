"""Settings of the tests inside frameworks: nothing is fetched, and the frameworks' own warnings are no errors here.

`make test` leaves this folder alone (norecursedirs in pyproject.toml); `make test-integrations` installs the frameworks and runs it.
"""

from __future__ import annotations

import os

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # compile in this process: no pool of helpers that outlives a test
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"  # for processes that are forked; here torch has read it already

FILTERS = (
    r"ignore:.isinstance\(treespec, LeafSpec\). is deprecated:FutureWarning:lightning\.pytorch\.utilities\._pytree",
    r"ignore:.training_step. returned .None.:UserWarning:lightning\.pytorch\.loops\.optimization\.automatic",
    r"ignore:.gradient_checkpointing:FutureWarning:transformers\.modeling_utils",  # renamed in 5.23, and needed by the versions before
    r"ignore:The \.grad attribute of a Tensor that is not a leaf:UserWarning:torch\.",  # dynamo looks at all tensors
    r"ignore:.torch\.jit\.script_method. is deprecated:DeprecationWarning:torch\.jit\._script",  # used by inductor itself
    r"ignore:This process .* is multi-threaded, use of fork:DeprecationWarning:multiprocessing\.popen_fork",  # from Python 3.12 on; that is the test
)


pytest.register_assert_rewrite("peers")


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)  # the tensors are small, and the workers of xdist would fight over the cores
    for line in FILTERS:
        config.addinivalue_line("filterwarnings", line)


@pytest.fixture(scope="session")
def compiled_code(tmp_path_factory):
    return tmp_path_factory.mktemp("inductor")  # one for all tests: the same model is compiled once


@pytest.fixture(autouse=True)
def everything_in_its_own_place(tmp_path, compiled_code, monkeypatch):
    """Files go to pytest's own folders, whatever a framework's defaults are."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(compiled_code))
