# Everything is set up in .venv by the targets themselves; nothing else on the machine is used but Python, a C++ compiler and make.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
SOURCES := $(shell find src native -type f \( -name '*.py' -o -name '*.pyi' -o -name '*.?pp' -o -name 'CMakeLists.txt' \)) pyproject.toml


.PHONY: help demo test test-integrations bench lint format notebooks documents mutants sanitize wheel clean

help:
	@echo "make demo               train the same network with six optimizers on real digits, and compare"
	@echo "make test               the whole test suite, against the installed package"
	@echo "make test-integrations  whole runs in Lightning, transformers, Accelerate and torch.compile, beside torch's AdamW"
	@echo "make bench              speed against named peers, in one run"
	@echo "make lint               ruff, mypy, clang-format"
	@echo "make format             rewrite the sources in the project's format"
	@echo "make notebooks          the practices as notebooks, in docs/practice"
	@echo "make documents          run the commands that documents with such output quote, and put in what they print"
	@echo "make mutants            seeded faults that the test suite must catch"
	@echo "make sanitize           the native tests under AddressSanitizer and UndefinedBehaviorSanitizer"
	@echo "make wheel              a wheel in dist/"

.venv/bin/python:
	$(PYTHON) -m venv .venv

# What the build needs, and the package itself with what the demo needs.
.venv/.demo: .venv/bin/python constraints.txt $(SOURCES)
	$(PIP) install -c constraints.txt "scikit-build-core>=0.11" "nanobind>=2.4" hatch-fancy-pypi-readme numpy ninja
	$(PIP) install -c constraints.txt --no-build-isolation ".[demo]"
	@touch $@

.venv/.dev: .venv/.demo
	$(PIP) install -c constraints.txt --no-build-isolation ".[dev]"
	@touch $@

# The frameworks that people train with; a few hundred megabytes, so that only who asks for them gets them.
.venv/.integrations: .venv/.dev
	$(PIP) install -c constraints.txt --no-build-isolation ".[integrations]"
	@touch $@

demo: .venv/.demo
	$(BIN)/openadam compare digits

test: .venv/.dev
	$(BIN)/python -m pytest -n auto --doctest-modules --pyargs tests openadam

test-integrations: .venv/.integrations
	$(BIN)/python -m pytest -n auto tests/integrations

bench: .venv/.dev
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/torch_step.py
	$(BIN)/python benchmarks/small_step.py
	$(BIN)/python benchmarks/lazy_rows.py
	$(BIN)/python benchmarks/own_rules.py
	$(BIN)/python benchmarks/observe.py

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror native/*.cpp native/*.hpp

format: .venv/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i native/*.cpp native/*.hpp

notebooks: .venv/.dev
	$(BIN)/python -m openadam.practice.notebooks docs/practice

documents: .venv/.dev
	$(BIN)/python docs/refresh.py docs/applications.md docs/doctor.md docs/tutorial-dead-transformer.md docs/own-rules.md

mutants: .venv/.dev
	$(BIN)/python tests/mutants.py

sanitize: .venv/.dev
	rm -rf build/sanitized
	$(PIP) install --no-build-isolation --no-deps --target build/sanitized --config-settings build-dir=build/sanitize --config-settings cmake.define.OPENADAM_SANITIZE=ON .
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 PYTHONMALLOC=malloc \
	  PYTHONPATH=build/sanitized $(BIN)/python -m pytest -q -p no:cacheprovider tests/test_native.py tests/test_tensors.py tests/test_torch_stateful.py tests/test_inputs.py tests/test_contract.py tests/test_row_sparse.py tests/test_torch_sparse.py tests/test_inside.py

wheel: .venv/.demo
	OPENADAM_REQUIRE_NATIVE=1 $(PIP) wheel --no-build-isolation --no-deps -w dist .

clean:
	rm -rf build dist .venv
