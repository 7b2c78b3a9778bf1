# make demo | smoke | test | test-quick | fuzz | lint | bench | bench-samplers | bench-exploration | bench-training | bench-uq | bench-plumed | bench-fes | bench-biases | bench-directions | bench-attacks | bench-neighbours | bench-models | docs | gpu | clean
# Everything is installed into .venv from PyPI; set PYTHON to choose the interpreter it is made with. LIGHT=1: into .venv-light, with
# the newest torch for the CPU alone (1.5 GB in place of 7) and the backend pythonforce.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

LIGHT ?=
# openmmtorch has wheels for these two; nothing else sets a limit.
FITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < $(if $(LIGHT),(3, 15),(3, 13)))
PYTHON ?= $(shell for p in python3.11 python3.12 $(if $(LIGHT),python3.13 python3.14); do \
	"$$p" -c '$(FITS)' 2>/dev/null && echo $$p && break; done)
VENV := $(if $(LIGHT),.venv-light,.venv)
EXTRAS := $(if $(LIGHT),test,torchforce,dev)
BIN := $(VENV)/bin
RUN := runs/alanine_dipeptide
SMOKE := tests/cli/test_cli.py tests/cli/test_new_command.py tests/app/test_bias_acts.py tests/model/test_export_devices.py
FUZZ ?= 30000
# Small models run fastest on one thread, and two libraries' threads would fight for the cores.
ONE := OMP_NUM_THREADS=1
# Tests run in two processes, a file in one of them, so that its fixtures are made once.
TWO := --numprocesses=2 --dist=loadfile

# A torch without CUDA libraries: wheels of PIP_FIND_LINKS, or torch's own index, and no other that pip knows; else PyPI's.
CPU_INDEX := https://download.pytorch.org/whl/cpu
CPU_TORCH = $(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/python -m pip install -q --no-index --no-deps 'torch>=2.9' 2>/dev/null || \
	PIP_CONFIG_FILE=/dev/null $(BIN)/python -m pip install -q --retries 1 --timeout 30 --no-deps --index-url $(CPU_INDEX) 'torch>=2.9' 2>/dev/null || \
	echo "no torch for the CPU alone ($(CPU_INDEX) does not answer): PyPI's, with CUDA libraries, 6 GB"

.PHONY: help demo smoke test test-quick fuzz lint bench bench-samplers bench-exploration bench-training bench-uq bench-plumed bench-fes bench-biases bench-directions bench-attacks bench-neighbours bench-models docs gpu clean

help:
	@echo "make demo            the campaign on alanine dipeptide, report at the end (about a quarter of an hour)"
	@echo "make demo LIGHT=1    the same with 1.5 GB in place of 7: newest torch for the CPU, without openmmtorch; LIGHT=1 goes with test, too"
	@echo "make smoke LIGHT=1   doctor and a choice of tests in that environment (about two minutes)"
	@echo "make test            all tests"
	@echo "make test-quick      tests of the rooms without the slow ones (at most three minutes on two cores)"
	@echo "make fuzz            30000 damaged files for the readers of files (about ten minutes); FUZZ=90000 for more"
	@echo "make lint            ruff and mypy"
	@echo "make bench           cost of an MD step, against the ordinary way"
	@echo "make bench-samplers  samplers at equal labels on four systems, five seeds (hours)"
	@echo "make bench-exploration  exploration against the simplest things, five molecules, three seeds (a day; resumable)"
	@echo "make bench-training  force error after two minutes of training on one core"
	@echo "make bench-uq        every uncertainty kind on three data sets (an hour and a half)"
	@echo "make bench-plumed    cost of PLUMED's CV: bridge and plugin (needs a PLUMED kernel)"
	@echo "make bench-fes       free energies of double wells and alanine dipeptide, cost of each bias (five hours)"
	@echo "make bench-biases    which CV under which bias crosses and which only heats (an hour and a half)"
	@echo "make bench-attacks   time of 500 adversarial attacks of 100 iterations, three judges (five minutes)"
	@echo "make bench-neighbours  cost of tables of neighbours, 216 and 1728 atoms of silica (five minutes)"
	@echo "make bench-models    judges on a frozen ANI-1x, cost of a MACE against its own calculator (five minutes; installs both)"
	@echo "make bench-directions  where the error grows, trained on energies or forces too (seven minutes)"
	@echo "make docs            the documentation as a site, docs/_build/index.html; warnings are errors"
	@echo "make gpu             the tests that need OpenMM's CUDA platform"
	@echo "make clean           remove .venv and caches; runs/ stays"

# The stamp is newer than pyproject.toml when nothing is to be installed.
$(VENV)/.installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "make: needs python3.11 or python3.12 (LIGHT=1: to 3.14), found none; install one or set PYTHON=/path/to/it" >&2; exit 1; }
	@"$(PYTHON)" -c '$(FITS)' || { echo "make: PYTHON=$(PYTHON) is not Python 3.11 or 3.12 (LIGHT=1: to 3.14)" >&2; exit 1; }
	@echo "installing into $(VENV) (PyPI, $(if $(LIGHT),1.5 GB with a torch for the CPU,about 7 GB with torch's CUDA libraries), a few minutes)"
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	@$(if $(LIGHT),$(CPU_TORCH))
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]'
	@touch $@

demo: $(VENV)/.installed
	@$(BIN)/uqbias run systems/alanine_dipeptide/campaign.yaml -o $(RUN)
	@echo "open $(CURDIR)/$(RUN)/report.html in a browser"

test: $(VENV)/.installed
	@$(ONE) $(BIN)/python -m pytest $(TWO)

# The command line, forces in OpenMM, exports and a campaign: what other versions of torch and OpenMM break first.
smoke: $(VENV)/.installed
	@$(BIN)/uqbias doctor --quick
	@$(ONE) $(BIN)/python -m pytest $(TWO) -m "not slow" $(SMOKE)

# Dynamics, campaigns and commands end to end are left to `make test`.
test-quick: $(VENV)/.installed
	@$(ONE) $(BIN)/python -m pytest $(TWO) -m "not slow" --ignore=tests/integration --ignore=tests/physics

fuzz: $(VENV)/.installed
	@$(ONE) $(BIN)/python tests/fuzz/fuzzing.py --inputs $(FUZZ)

lint: $(VENV)/.installed
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: $(VENV)/.installed
	@$(ONE) $(BIN)/python tests/benchmarks/step_cost.py

bench-samplers: $(VENV)/.installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[torchforce,xtb,dev]'
	@$(ONE) $(BIN)/python tests/benchmarks/samplers.py

bench-exploration: $(VENV)/.installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[torchforce,xtb,dev]'
	@$(ONE) $(BIN)/python tests/benchmarks/exploration.py

bench-training: $(VENV)/.installed
	@$(ONE) $(BIN)/python tests/benchmarks/training.py

bench-uq: $(VENV)/.installed
	@$(ONE) $(BIN)/python tests/benchmarks/uq_kinds.py

bench-plumed: $(VENV)/.installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[torchforce,plumed,dev]'
	@$(ONE) $(BIN)/python tests/benchmarks/plumed.py

bench-fes: $(VENV)/.installed
	@$(ONE) $(BIN)/python tests/benchmarks/free_energy.py

bench-biases: $(VENV)/.installed
	@$(ONE) $(BIN)/python tests/benchmarks/cv_and_bias.py

bench-attacks: $(VENV)/.installed
	@$(ONE) $(BIN)/python tests/benchmarks/attack_cost.py

bench-directions: $(VENV)/.installed
	@$(ONE) $(BIN)/python tests/benchmarks/directions.py

bench-neighbours: $(VENV)/.installed
	@$(ONE) $(BIN)/python tests/benchmarks/neighbours.py

bench-models: $(VENV)/.installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[mace,ani,dev]'
	@$(ONE) $(BIN)/python tests/benchmarks/models.py

docs: $(VENV)/.installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	@$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build
	@echo "open $(CURDIR)/docs/_build/index.html in a browser"

gpu: $(VENV)/.installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[torchforce,dev,cuda12]' 'openmmtorch[cuda12]==1.5'
	@$(BIN)/python -m pytest tests/gpu
	@$(BIN)/python tests/gpu/throughput.py

clean:
	@rm -rf .venv .venv-light .mypy_cache .ruff_cache .pytest_cache build dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
