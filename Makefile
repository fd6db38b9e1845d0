# Everything a developer does, from a machine with nothing but a python3 of 3.11 or later.
# Virtual environments are made on demand: .venv for daily work, .venvs/X.Y for the other Pythons found here.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
.DELETE_ON_ERROR:

VENV := .venv
PY := $(VENV)/bin/python
PIP := -m pip --disable-pip-version-check --quiet install
# Benchmarks have an environment of their own: some peers bring half a hundred packages.
BENCH := .venvs/bench
# Which questions to measure: make bench SUITES=data
SUITES ?= pool data scale auto sync
# Further words for pytest: make test ARGS="-k pool -x"
ARGS ?=

say = @printf '\n\033[1m== %s\033[0m\n' $(1)
# The requirements of one dependency group, one a line; works with a pip that knows no groups.
group = import sys, tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['dependency-groups'][sys.argv[1]], sep='\n')
# Interpreters other than the one in .venv, as X.Y.
others = .ci/pythons | cut -d' ' -f1 | grep -vx "$$($(PY) -c 'import sys; print("%d.%d" % sys.version_info[:2])')" || true

.PHONY: help venv demo article test test-main test-others lint format types bench bench-quick docs stress clean

help:
	@printf '%s\n' \
	  'make demo         run the main job on this machine: code statistics of the Python standard library' \
	  'make article      what is said of processes, in seven chapters, measured on this machine' \
  'make test         lint, types, every test; then the quick tests on every other Python found here' \
	  'make test-main    every test on the Python of .venv only (ARGS="-k name" for some)' \
	  'make lint         ruff and mypy        make format   let ruff repair what it can' \
	  'make bench        benchmarks beside other libraries        make bench-quick   two minutes of them' \
	  'make stress       the long repetitions        make docs   check the documentation' \
	  'make venv         the environment for all of this, in .venv        make clean   remove it and all caches'

# --- environments -------------------------------------------------------------------------------

$(VENV)/.made:
	@python="$$(.ci/pythons | head -n 1 | cut -d' ' -f2)"; \
	if [ -z "$$python" ]; then \
	  echo 'error: no Python of 3.11 or later that can make a virtual environment was found' >&2; \
	  echo 'hint: on Debian and Ubuntu: apt-get install python3 python3-venv' >&2; exit 1; \
	fi; \
	echo "making $(VENV) with $$python"; \
	rm -rf $(VENV); "$$python" -m venv $(VENV)
	@touch $@

# shoal itself, as a user would have it; editable, so that it is made again only when its needs change.
$(VENV)/.shoal: $(VENV)/.made pyproject.toml
	@echo 'installing shoal into $(VENV)'
	@$(PY) $(PIP) --editable .
	@touch $@

$(VENV)/.%-group: $(VENV)/.shoal
	@echo 'installing what $* needs into $(VENV)'
	@$(PY) -c "$(group)" $* > $(VENV)/$*.txt
	@$(PY) $(PIP) --requirement $(VENV)/$*.txt
	@touch $@

.venvs/%/.ready: pyproject.toml
	@python="$$(.ci/pythons | awk '$$1 == "$*" { print $$2 }')"; \
	echo "making .venvs/$* with $$python"; \
	rm -rf .venvs/$*; "$$python" -m venv .venvs/$*; \
	"$$python" -c "$(group)" test | grep -Ev '^(ruff|mypy|types-)' > .venvs/$*/test.txt; \
	.venvs/$*/bin/python $(PIP) --editable . --requirement .venvs/$*/test.txt
	@touch $@

# Ray, Dask and faster-fifo are not there for every Python; the benchmarks say so and go on without.
$(BENCH)/.ready: pyproject.toml
	@python="$$(.ci/pythons | head -n 1 | cut -d' ' -f2)"; \
	echo "making $(BENCH) with $$python"; \
	rm -rf $(BENCH); "$$python" -m venv $(BENCH); \
	"$$python" -c "$(group)" bench > $(BENCH)/bench.txt; \
	"$$python" -c "$(group)" bench-servers > $(BENCH)/servers.txt; \
	$(BENCH)/bin/python $(PIP) --editable . --requirement $(BENCH)/bench.txt; \
	while read -r peer; do \
	  $(BENCH)/bin/python $(PIP) "$$peer" || echo "not to be had for this Python: $$peer"; \
	done < $(BENCH)/servers.txt
	@touch $@

.PRECIOUS: $(VENV)/.%-group .venvs/%/.ready

venv: $(VENV)/.test-group

# --- the main job -------------------------------------------------------------------------------

demo: $(VENV)/.shoal
	@$(PY) -m examples.codestats.demo $(ARGS)

article: $(VENV)/.test-group
	@$(PY) -m examples.article $(ARGS)

# --- checks -------------------------------------------------------------------------------------

lint: $(VENV)/.test-group
	$(call say,'ruff check')
	@$(PY) -m ruff check .
	$(call say,'ruff format --check')
	@$(PY) -m ruff format --check .
	@$(MAKE) types

types: $(VENV)/.test-group
	$(call say,'mypy --strict src/shoal')
	@$(PY) -m mypy

format: $(VENV)/.test-group
	@$(PY) -m ruff check --fix-only .
	@$(PY) -m ruff format .

# What searches and computes runs side by side; what starts and kills processes has the machine for itself, and comes last
# so that its summary ends the output. With ARGS it is one run.
test-main: $(VENV)/.test-group
	@printf '\n\033[1m== pytest on Python %s (everything but stress)\033[0m\n' "$$($(PY) -c 'import platform; print(platform.python_version())')"
ifeq ($(strip $(ARGS)),)
	@$(PY) -m pytest -q -p no:cacheprovider tests/model > $(VENV)/model.log 2>&1 & model=$$!; \
	$(PY) -m pytest tests/unit tests/surface || failed=yes; \
	wait $$model || failed=yes; cat $(VENV)/model.log; test -z "$${failed:-}"
	@$(PY) -m pytest tests/process tests/crash
else
	@$(PY) -m pytest $(ARGS)
endif

# Side by side: each has little to compute and much to wait for. Workers are spawned alike everywhere, so not here.
test-others: $(VENV)/.test-group
	@for version in $$($(others)); do $(MAKE) ".venvs/$$version/.ready"; done
	$(call say,'pytest -m fast on the other Pythons')
	@running=; failed=; \
	for version in $$($(others)); do \
	  SHOAL_TEST_START_METHODS=forkserver,fork ".venvs/$$version/bin/python" -m pytest -q -m 'fast and not stress' \
	    -p no:cacheprovider > ".venvs/$$version/fast.log" 2>&1 & \
	  running="$$running $$!:$$version"; \
	done; \
	for each in $$running; do \
	  version="$${each#*:}"; \
	  if wait "$${each%%:*}"; then lines=1; else lines=400; failed="$$failed $$version"; fi; \
	  printf 'Python %s: ' "$$version"; tail -n "$$lines" ".venvs/$$version/fast.log"; \
	done; \
	test -z "$$failed"

# One after the other, stopping at the first failure. The whole suite comes last so that its summary ends the output.
test:
	@$(MAKE) lint
	@$(MAKE) test-others
	@$(MAKE) test-main

stress: $(VENV)/.test-group
	@$(PY) -m pytest -m stress $(ARGS)

# --- figures and words --------------------------------------------------------------------------

bench: $(BENCH)/.ready
	@for suite in $(SUITES); do $(BENCH)/bin/python -m "benchmarks.$$suite" $(ARGS); done

bench-quick:
	@$(MAKE) bench ARGS="--quick $(ARGS)"

docs: $(VENV)/.test-group
	$(call say,'references in comments and documents')
	@$(PY) -m pytest -q tests/surface/test_references.py

clean:
	@rm -rf $(VENV) .venvs .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
