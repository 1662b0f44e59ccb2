# make demo and make test do all of their own set-up in .venv; they need Python >= 3.10 with its venv
# module, a C++ compiler and make. TORCH may name any torch that pip can install, for example a CPU
# build: make test TORCH=/path/to/torch-2.13.0+cpu-....whl
TORCH  ?= torch==2.13.0
PYTHON ?= python3
VENV   ?= .venv
JOBS   ?= 2

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# Each stamp is one finished step of the set-up: what it depends on decides when it is done again.
TORCH_STAMP  := $(VENV)/.torch
DEPS_STAMP   := $(VENV)/.deps
NATIVE_STAMP := $(VENV)/.native
DEV_STAMP    := $(VENV)/.dev
BENCH_STAMP  := $(VENV)/.bench

LIBMTL := LibMTL==1.1.5

CXX_FILES      := $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' 2>/dev/null)
NATIVE_SOURCES := CMakeLists.txt setup.py $(wildcard cmake/*) $(shell find csrc -type f 2>/dev/null)

.PHONY: help demo test peers bench bench-quality gpu-check lint format types docs figures build clean FORCE
.DEFAULT_GOAL := help

help: ## show this list
	@echo "Targets (each sets up $(VENV) by itself):"
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo "Variables: TORCH=$(TORCH) PYTHON=$(PYTHON) VENV=$(VENV) JOBS=$(JOBS) (processes of make test) ARGS= (passed on to demo, test and bench)"

demo: $(NATIVE_STAMP) ## train MultiDigits with equal weights, PCGrad, CAGrad and GradNorm
	@$(BIN)/mtlfast demo $(ARGS)

test: $(NATIVE_STAMP) ## run the tests
	@$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

peers: $(NATIVE_STAMP) $(BENCH_STAMP) ## compare with the other libraries
	@$(BIN)/python -m pytest tests/test_peers.py tests/test_bench_peers.py tests/test_docs.py $(ARGS)

bench: $(NATIVE_STAMP) $(BENCH_STAMP) ## measure speed and memory beside the peers (ARGS=--quick)
	@$(BIN)/mtlfast bench --out benchmarks/results/cpu.json --plots build/bench $(ARGS)

bench-quality: $(NATIVE_STAMP) $(BENCH_STAMP) ## train three jobs with all methods, most of an hour
	@$(BIN)/mtlfast bench quality --out benchmarks/results/quality.json --plots build/bench $(ARGS)

# With the Python at hand, whose torch knows the GPU: nothing is installed and no network is used.
gpu-check: ## build, test, sanitize and measure on a GPU (OUT= PARTS= WHEELS= FIBERS=1)
	@$(PYTHON) benchmarks/gpu_check.py --out '$(or $(OUT),build/gpu-check)' $(if $(PARTS),--parts '$(PARTS)') \
	  $(if $(WHEELS),--wheels '$(WHEELS)') $(if $(filter-out 0,$(FIBERS)),--fibers) $(ARGS)

lint: $(DEV_STAMP) ## check style: ruff and clang-format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

format: $(DEV_STAMP) ## rewrite the sources in the project's style
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format .
	@$(BIN)/clang-format -i $(CXX_FILES)

types: $(DEV_STAMP) ## check the types: mypy --strict
	@$(BIN)/mypy $(wildcard mtlfast tests docs benchmarks examples)

docs: $(NATIVE_STAMP) ## write docs/methods from the docstrings
	@$(BIN)/python docs/generate.py $(ARGS)

figures: $(NATIVE_STAMP) ## write the figures of README.md and docs from benchmarks/results
	@$(BIN)/python -m benchmarks.figures $(ARGS)

build: $(NATIVE_STAMP) $(DEV_STAMP) ## build sdist and wheel in dist/
	@rm -rf dist
	@$(BIN)/python -m build --no-isolation --outdir dist .

clean: ## remove everything that was built, .venv too
	rm -rf $(VENV) build dist demo_results bench_results *.egg-info mtlfast/_C*.so

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "$(PYTHON) was not found: install Python >= 3.10, or run make with PYTHON=/path/to/python3."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "$$($(PYTHON) --version) is too old: run make with PYTHON=/path/to/python3.10 or newer."; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "$(PYTHON) lacks the venv module: install it (on Debian and Ubuntu 'apt-get install python3-venv')."; exit 1; }
	@echo "Creating $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# The stamp holds the requirement, so that another TORCH= is installed and the same one is not. Torch
# comes first and alone: nothing installed after it may choose another build.
ifneq ($(shell cat $(TORCH_STAMP) 2>/dev/null),$(TORCH))
$(TORCH_STAMP): FORCE
endif
$(TORCH_STAMP): | $(BIN)/python
	@echo "Installing $(TORCH)"
	@$(PIP) '$(TORCH)'
	@echo '$(TORCH)' > $@

# The package comes without its extension here; the next step builds that, and again when csrc changes.
$(DEPS_STAMP): pyproject.toml $(TORCH_STAMP)
	@echo "Installing build tools, test tools and the package"
	@$(PIP) 'setuptools>=77' wheel 'cmake>=3.21' ninja pybind11
	@MTLFAST_NO_EXTENSION=1 $(PIP) --no-build-isolation -e '.[test]'
	@touch $@

$(NATIVE_STAMP): $(NATIVE_SOURCES) $(DEPS_STAMP)
	@echo "Building the C++ extension"
	@$(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

$(DEV_STAMP): $(DEPS_STAMP)
	@echo "Installing lint and build tools"
	@MTLFAST_NO_EXTENSION=1 $(PIP) --no-build-isolation -e '.[dev]'
	@touch $@

# LibMTL alone: its torchvision would bring a torch of its own. Where it cannot be had, the benchmarks
# name it as missing.
$(BENCH_STAMP): $(DEPS_STAMP)
	@echo "Installing what the benchmarks compare with"
	@MTLFAST_NO_EXTENSION=1 $(PIP) --no-build-isolation -e '.[bench]'
	@$(PIP) --no-deps '$(LIBMTL)' || echo "$(LIBMTL) cannot be had: nothing is compared with it"
	@touch $@
