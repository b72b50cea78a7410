# Every command of this project. `make` alone says what there is. Nothing but a Python >= 3.11 is needed.
#   make demo ARGS="--headless --duration 20 --chaos --json"      make test ARGS="tests/unit -x"
# stdout belongs to the command (the demo's last line may be JSON): all talk of the set-up goes to stderr.

MAKEFLAGS += --no-print-directory
SHELL := /bin/sh
COMMA := ,
.DEFAULT_GOAL := help
.SUFFIXES:

VENV := .venv
JOBS := 2
PY := $(VENV)/bin/python
# A virtual environment knows its own place; a checkout that was moved or copied gets a new one.
PLACE := $(shell printf '%s' '$(CURDIR)' | cksum | cut -d' ' -f1)
MADE := $(VENV)/.made-$(PLACE)
DEMO_READY := $(VENV)/.demo-$(PLACE)
DEV_READY := $(VENV)/.dev-$(PLACE)
PIP := PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1 $(PY) -m pip install -qq
SOAK := SOAK_DURATION='$(DURATION)' SOAK_SEED='$(SEED)' $(PY) -m pytest -m slow -s

.PHONY: help demo test lint format check bench bench-peers faults crashpoints soak soak-scheduler clean distclean

help: ## what there is
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(firstword $(MAKEFILE_LIST)) | awk -F'|' '{ printf "make %-15s %s\n", $$1, $$2 }'

demo: $(DEMO_READY) ## the ride-hailing demo on an embedded PostgreSQL (ARGS="--headless --chaos --json")
	@$(PY) -m pgqueue demo $(ARGS)

test: $(DEV_READY) ## the whole test suite (ARGS are pytest's; JOBS=1 for one file after the other)
	@$(PY) -m pytest -m 'not slow' -n $(JOBS) --dist loadfile $(ARGS)

lint: $(DEV_READY) ## ruff, mypy, import-linter, squawk
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@$(PY) $(VENV)/bin/lint-imports
	@$(VENV)/bin/squawk alembic/versions/*.sql

format: $(DEV_READY) ## let ruff lay out the code and mend what it can
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

check: ## what CI runs: lint, then test
	@$(MAKE) lint
	@$(MAKE) test

bench: $(DEV_READY) ## the benchmarks on an embedded PostgreSQL
	@$(PY) -m pgqueue bench $(ARGS)

bench-peers: $(DEV_READY) ## other queues in Postgres and ours, in turns, each in an environment of its own
	@$(PY) bench/peers/run.py $(ARGS)

faults: $(DEV_READY) ## interleavings, crash points and directed faults
	@$(PY) -m pytest -m 'not slow' tests/interleave tests/crashpoints tests/faults $(ARGS)

crashpoints: $(DEV_READY) ## every protocol message in every way to break it (6 minutes; `make test` takes a sample)
	@$(PY) -m pytest -m slow -n $(JOBS) --dist load tests/crashpoints $(ARGS)

soak: $(DEV_READY) ## the long storm of faults (DURATION=30m SEED=…)
	@$(SOAK) -k 'soak and not scheduler' tests/faults $(ARGS)

soak-scheduler: $(DEV_READY) ## the scheduler's long storm (DURATION=30m SEED=…)
	@$(SOAK) -k 'soak and scheduler' tests/faults $(ARGS)

clean: ## remove what builds and tests left
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .pgqueue *.egg-info
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean ## the same, and the virtual environment
	@rm -rf $(VENV)

# An environment without our mark is kept if it was made here and works, and made anew if not.
$(MADE):
	@if [ -x $(PY) ] && $(PY) -m pip --version >/dev/null 2>&1 \
		&& head -1 $(VENV)/bin/pip | grep -qF '$(CURDIR)/$(VENV)/'; then :; else \
		python=; unfit=; \
		for name in $$PYTHON python3.13 python3.12 python3.11 python3.14 python3 python; do \
			"$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || continue; \
			if "$$name" -c 'import venv, ensurepip' >/dev/null 2>&1; then python=$$name; break; fi; \
			unfit=$${unfit:-$$name}; \
		done; \
		if [ -z "$$python" ] && [ -n "$$unfit" ]; then \
			echo "make: $$unfit cannot make virtual environments: apt install python3-venv (or your system's package of that kind), then run make again" >&2; exit 1; fi; \
		if [ -z "$$python" ]; then \
			echo "make: no Python 3.11 or later on PATH: install one, or name it: make PYTHON=/path/to/python3.12 …" >&2; exit 1; fi; \
		echo "make: making $(VENV) with $$($$python -V 2>&1)" >&2; \
		"$$python" -m venv --clear $(VENV) >&2 || { echo "make: $(VENV) could not be made in $(CURDIR): look at the folder's owner and free space" >&2; exit 1; }; \
	fi
	@touch $@

define install
	@echo "make: installing $(1) (once, and after changes of pyproject.toml)" >&2
	@$(PIP) -e '$(1)' >&2 || { echo "make: pip could not install $(1): without a network, point PIP_INDEX_URL or PIP_FIND_LINKS at a mirror" >&2; exit 1; }
endef

$(DEV_READY): pyproject.toml $(MADE)
	$(call install,.[dev])
	@touch $@

# The developer's environment holds everything that the demo needs.
ifneq ($(wildcard $(DEV_READY)),)
$(DEMO_READY): $(DEV_READY)
	@touch $@
else
$(DEMO_READY): pyproject.toml $(MADE)
	$(call install,.[embedded$(COMMA)metrics$(COMMA)http])
	@touch $@
endif

