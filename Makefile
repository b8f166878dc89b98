# Each target sets itself up: a bare clone needs only make and Python 3.11 or later.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# What only runs gliofed does not need the tools that test it.
RUNNABLE := $(VENV)/.runnable
BEGAN := $(shell date +%s)
DATA ?=
DEMO ?= .demo
HOURS ?= 6
CORES ?= auto
WHEELHOUSE ?= wheelhouse
GPU_WHEELS ?= .gpu-wheels
GPU_PYTHON ?= 3.12
TURN ?=
MINUTES ?=
COVERAGE ?=
PYTEST = $(BIN)/python -m pytest
WORKERS = -n $(CORES) --dist loadfile --no-loadscope-reorder
# What is installed is compiled as it is imported, which that variable would have every process do again.
unexport PYTHONDONTWRITEBYTECODE
export FLWR_TELEMETRY_ENABLED = 0
export FLWR_DISABLE_UPDATE_CHECK = 1
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION = 1

.PHONY: demo test test-fast test-slow slow-seconds bench bench-accuracy gpu-check gpu-wheels check initial \
	wheelhouse clean

# Three phantom hospitals train one model together, on real processes; see deploy/demo/demo.sh.
# make demo DATA=FOLDER takes one hospital per subfolder of FOLDER instead of phantoms; DEMO_FULL=1 compares
# with training without privacy too.
demo: $(or $(wildcard $(INSTALLED)),$(RUNNABLE))
	DEMO_BEGAN=$(BEGAN) PATH="$(CURDIR)/$(BIN):$$PATH" bash deploy/demo/demo.sh $(DEMO) $(DATA)

# COVERAGE=1 measures coverage too, which takes longer; CI does.
test: $(INSTALLED)
	$(PYTEST) -m "not slow" $(WORKERS) $(if $(COVERAGE),--cov --cov-report=term --cov-fail-under=90)

# In about a minute, of every package: the cheapest files, as tests/file_seconds.py chooses them.
test-fast: $(INSTALLED)
	$(PYTEST) -m "not slow" --fast $(WORKERS)

# TURN=N runs one part of them, another for each N; no test is begun too late for MINUTES.
test-slow: $(INSTALLED)
	$(PYTEST) -m slow $(if $(TURN),--slow-turn $(TURN)) $(if $(MINUTES),--slow-minutes $(MINUTES))

# Measures how long each slow test takes: hours.
slow-seconds: $(INSTALLED)
	$(PYTEST) -m slow --slow-seconds

bench: $(INSTALLED)
	$(BIN)/python -m tests.benchmarks

# What a GPU computes, compared with the CPU, and what it costs there; see tests/gpu.
gpu-check: $(INSTALLED)
	$(BIN)/python -m tests.gpu

# For a machine with PyTorch, a GPU and no network: all else that the check needs, for its Python.
gpu-wheels:
	rm -rf $(GPU_WHEELS)
	$(PYTHON) -m pip wheel --quiet --no-deps --wheel-dir $(GPU_WHEELS) .
	$(PYTHON) -m pip download --quiet --no-deps --only-binary=:all: --python-version $(GPU_PYTHON) \
		--platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 \
		--constraint deploy/constraints.txt --requirement tests/gpu/needs.txt --dest $(GPU_WHEELS)

# Hours on two cores; goes on where it was broken off. DATA=FOLDER adds the runs on your own hospitals.
bench-accuracy: $(INSTALLED)
	GLIOFED_BENCH_DATA=$(DATA) $(BIN)/python -m tests.benchmarks.accuracy --hours $(HOURS)

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# All that an installation without a network needs, for this Python and processor: wheels of gliofed and of
# what it depends on, the versions, their digests. It fills anew; see deploy/README.md.
wheelhouse:
	rm -rf $(WHEELHOUSE)
	$(PYTHON) -m pip wheel --quiet --constraint deploy/constraints.txt --wheel-dir $(WHEELHOUSE) \
		".[server,site,clinic]"
	cp deploy/constraints.txt $(WHEELHOUSE)
	cd $(WHEELHOUSE) && sha256sum *.whl constraints.txt > SHA256SUMS

# The starting weights that ship with the demo, of each network: trained on phantoms only.
NETWORKS := segresnet segresnet_mingru dynunet unet
initial: $(NETWORKS:%=deploy/demo/initial-%.safetensors)
deploy/demo/initial-%.safetensors: $(INSTALLED)
	mkdir -p .demo-pretraining
	sed 's/^name = "[a-z_]*"/name = "$*"/' deploy/demo/protocol.toml > .demo-pretraining/$*.toml
	$(BIN)/gliofed-site pretrain .demo-pretraining/$*.toml --out $@ --work .demo-pretraining/phantoms

# pip would compile all that is installed, which takes a core longer than unpacking it; Python compiles what is
# imported.
$(INSTALLED): pyproject.toml deploy/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile \
		--constraint deploy/constraints.txt --editable ".[dev]"
	touch $@

# What the demo imports is compiled once now, not later in several processes at a time.
$(RUNNABLE): pyproject.toml deploy/constraints.txt
	@echo "Installing gliofed and what it needs into $(VENV), once: a minute or two."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile \
		--constraint deploy/constraints.txt --editable ".[server,site]"
	$(BIN)/python -W ignore -c "import client.worker, client.views.cohort_check, client.clinic.segment, server.executor"
	touch $@

clean:
	rm -rf $(VENV) .venv-brats .venv-tools $(DEMO) .demo-pretraining $(WHEELHOUSE) \
		$(GPU_WHEELS)
