# Each target sets itself up: a bare clone needs only make and Python 3.11 or later.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# What only runs gliofed does not need the tools that test it.
RUNNABLE := $(VENV)/.runnable
# In order: what builds, torch (the CPU's where pip is told of one), all else; deploy/lock.py writes them.
LOCK := deploy/lock
LOCKS := $(wildcard $(LOCK)/*.txt)
PIP = $(BIN)/python -m pip --quiet --disable-pip-version-check
LOCKED = $(PIP) install --no-compile --no-deps --no-build-isolation --require-hashes
define INSTALL
	$(PYTHON) -m venv $(VENV)
	$(LOCKED) -r $(LOCK)/build.txt
	$(LOCKED) -r $(LOCK)/torch-cpu.txt 2> $(VENV)/torch-cpu.log || { tail -n 3 $(VENV)/torch-cpu.log; \
		echo "No torch for CPUs of the locked digest where pip looks: torch with CUDA is installed."; \
		$(LOCKED) -r $(LOCK)/torch.txt -r $(LOCK)/cuda.txt; }
endef
BEGAN := $(shell date +%s)
DATA ?=
DEMO ?= .demo
HOURS ?= 6
CORES ?= auto
WHEELHOUSE ?= wheelhouse
GPU_WHEELS ?= .gpu-wheels
GPU_PYTHON ?= 3.12
SIGN_KEY ?=
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
	wheelhouse lock audit clean

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
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive server client common deploy

# All that an installation without a network needs, for this Python and processor: wheels of gliofed and of
# what it depends on, the versions, their digests, and the list of all parts (CycloneDX). It fills anew; see
# deploy/README.md. SIGN_KEY=FILE, a key of ssh-keygen, signs the digests.
wheelhouse: VENV := .venv-wheels
wheelhouse: BIN := .venv-wheels/bin
wheelhouse: WHEEL = $(PIP) wheel --no-deps --no-build-isolation --wheel-dir $(WHEELHOUSE)
wheelhouse:
	rm -rf $(WHEELHOUSE)
	$(PYTHON) -m venv --clear $(VENV)
	$(LOCKED) -r $(LOCK)/build.txt
	$(WHEEL) --require-hashes -r $(LOCK)/torch-cpu.txt 2> /dev/null || \
		$(WHEEL) --require-hashes -r $(LOCK)/torch.txt -r $(LOCK)/cuda.txt
	$(WHEEL) --require-hashes -r $(LOCK)/run.txt
	$(WHEEL) .
	cp deploy/constraints.txt $(WHEELHOUSE)
	$(BIN)/python deploy/sbom.py $(WHEELHOUSE) > $(WHEELHOUSE).cdx.json
	mv $(WHEELHOUSE).cdx.json $(WHEELHOUSE)/sbom.cdx.json
	cd $(WHEELHOUSE) && sha256sum *.whl constraints.txt sbom.cdx.json > SHA256SUMS
	$(if $(SIGN_KEY),ssh-keygen -q -Y sign -f $(SIGN_KEY) -n gliofed-wheelhouse $(WHEELHOUSE)/SHA256SUMS)
	rm -rf $(VENV)

# Renews deploy/lock from deploy/constraints.txt; needs the package index.
lock: $(INSTALLED)
	$(BIN)/python deploy/lock.py

# Asks a public database for vulnerabilities of what is locked; says "not run" where none is reached.
audit:
	$(PYTHON) deploy/audit.py $(LOCK)/run.txt $(LOCK)/torch.txt $(LOCK)/build.txt $(LOCK)/dev.txt

# The starting weights that ship with the demo, of each network: trained on phantoms only.
NETWORKS := segresnet segresnet_mingru dynunet unet
initial: $(NETWORKS:%=deploy/demo/initial-%.safetensors)
deploy/demo/initial-%.safetensors: $(INSTALLED)
	mkdir -p .demo-pretraining
	sed 's/^name = "[a-z_]*"/name = "$*"/' deploy/demo/protocol.toml > .demo-pretraining/$*.toml
	$(BIN)/gliofed-site pretrain .demo-pretraining/$*.toml --out $@ --work .demo-pretraining/phantoms

# pip would compile all that is installed, which takes a core longer than unpacking it; Python compiles what is
# imported.
$(INSTALLED): pyproject.toml $(LOCKS)
	$(INSTALL)
	$(LOCKED) -r $(LOCK)/run.txt -r $(LOCK)/dev.txt
	$(PIP) install --no-compile --no-deps --no-build-isolation --editable .
	touch $@

# What the demo imports is compiled once now, not later in several processes at a time.
$(RUNNABLE): pyproject.toml $(LOCKS)
	@echo "Installing gliofed and what it needs into $(VENV), once: a minute or two."
	$(INSTALL)
	$(LOCKED) -r $(LOCK)/run.txt
	$(PIP) install --no-compile --no-deps --no-build-isolation --editable .
	$(BIN)/python -W ignore -c "import client.worker, client.views.cohort_check, client.clinic.segment, server.executor"
	touch $@

clean:
	rm -rf $(VENV) .venv-brats .venv-tools .venv-wheels $(DEMO) .demo-pretraining $(WHEELHOUSE) \
		$(GPU_WHEELS)
