# Commands to start with (`make results/vgg16_tucker.json`, `make test`), the two handovers between
# Snakemake and DVC, and shortcuts for developers. Each command makes the environment first.

PYTHON ?= python3
CORES ?= all
VENV := .venv
INSTALLED := $(VENV)/installed
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: all fast test slow report plots study compare coverage line-coverage env record adopt lint format clean FORCE

all: $(INSTALLED)
	snakemake --cores $(CORES)

# Snakemake decides what is out of date, not make.
results/%.json: FORCE $(INSTALLED)
	snakemake --cores $(CORES) $@

# Each test file runs in one process. tests/conftest.py puts the longest files first. The processes
# share the cores: with more than one thread each, training of tiny networks takes three times the
# processor time, because threads wait for each other.
TESTS := OMP_NUM_THREADS=1 python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# The tests that take less than about two seconds each: less than two minutes on two cores.
fast: $(INSTALLED)
	$(TESTS) -m "not slow and not seconds" --ignore tests/workflow

test: $(INSTALLED)
	$(TESTS) -m "not slow"

# Tests that take minutes, such as runs that are killed at random moments. Those of tests/container,
# which download the whole environment, run on demand: docs/container.md.
slow: $(INSTALLED)
	$(TESTS) -m slow --ignore tests/container

# The lines of the package that no test of `make test` runs.
line-coverage: $(INSTALLED)
	$(TESTS) -m "not slow" --cov --cov-report=term

env: $(INSTALLED)

# Out of date when a pin or the package's metadata is newer than the last installation.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0])'
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# One HTML file with every picture of the matrix.
report: all
	snakemake --report report.html

# DVC's plots as one page that works offline: dvc_plots/index.html.
plots: $(INSTALLED)
	lowrank plots

# The comparisons under `studies` in params.yaml. They take about five hours on two cores.
study: $(INSTALLED)
	snakemake --cores $(CORES) studies

# The gain of a target over the papers' ranks at the same MACs, and the gain of training alone.
compare: $(INSTALLED)
	snakemake --cores $(CORES) results/studies/compare.svg

# Run all classifiers of torchvision through the whole pipeline, and all networks of torchvision as
# ONNX files. Writes docs/coverage.md and docs/onnx-coverage.md. Takes hours.
coverage: $(INSTALLED)
	python benchmarks/all_classifiers.py
	python benchmarks/onnx_coverage.py

# The container image `lowrank:cpu` or `lowrank:cuda`: docs/container.md. ENGINE names
# another program, SOURCE the address of the project, EXTRAS other extras.
ENGINE ?= podman
LABEL := --label org.opencontainers.image
image-%: FORCE
	$(ENGINE) build --target $* $(if $(EXTRAS),--build-arg EXTRAS=$(EXTRAS)) --file Containerfile --tag lowrank:$* \
	  $(LABEL).version=$(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml) \
	  $(LABEL).revision=$(shell git rev-parse HEAD) $(if $(SOURCE),$(LABEL).source=$(SOURCE)) .

# Record in dvc.lock what Snakemake has built.
record: $(INSTALLED)
	lowrank record

# Mark files that DVC has restored (pull, checkout, exp apply) as current for Snakemake.
adopt: $(INSTALLED)
	lowrank adopt

# tests/workflow/test_lint.py runs `snakemake --lint` and lists the accepted warnings.
# No cache: it would not notice that a module which a file imports has moved.
lint: $(INSTALLED)
	ruff check --no-cache
	ruff format --check --no-cache
	snakefmt --check Snakefile workflow
	mypy
	python -m pytest -q tests/workflow/test_lint.py

format: $(INSTALLED)
	ruff check --fix
	ruff format
	snakefmt Snakefile workflow

# Remove the files that runs have made, except those that Git tracks.
clean: $(INSTALLED)
	lowrank clean

# The picture in the README. Needs graphviz.
docs/rulegraph.svg: workflow/Snakefile $(wildcard workflow/rules/*.smk) $(INSTALLED)
	snakemake --rulegraph dot | dot -Tsvg -o $@
