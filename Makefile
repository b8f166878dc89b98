# Each target sets itself up: a bare clone needs only make and Python 3.11 or later.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DATA ?=
DEMO ?= .demo
HOURS ?= 6
CORES ?= auto
WHEELHOUSE ?= wheelhouse
TURN ?=
MINUTES ?=
COVERAGE ?=
PYTEST = $(BIN)/python -m pytest
WORKERS = -n $(CORES) --dist loadfile --no-loadscope-reorder
export FLWR_TELEMETRY_ENABLED = 0
export FLWR_DISABLE_UPDATE_CHECK = 1
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION = 1

.PHONY: demo test test-fast test-slow slow-seconds bench bench-accuracy check initial wheelhouse clean

# Three phantom hospitals train one model together, on real processes; see deploy/demo/demo.sh.
# make demo DATA=FOLDER takes one hospital per subfolder of FOLDER instead of phantoms.
demo: $(INSTALLED)
	PATH="$(CURDIR)/$(BIN):$$PATH" bash deploy/demo/demo.sh $(DEMO) $(DATA)

# COVERAGE=1 measures coverage too, which takes longer; CI does.
test: $(INSTALLED)
	$(PYTEST) -m "not slow" $(WORKERS) $(if $(COVERAGE),--cov --cov-report=term --cov-fail-under=90)

# In a minute, of every package: the cheapest files, as tests/file_seconds.py chooses them.
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

$(INSTALLED): pyproject.toml deploy/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint deploy/constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) .venv-brats .venv-tools $(DEMO) .demo-pretraining $(WHEELHOUSE)
