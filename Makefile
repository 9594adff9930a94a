# `make run` starts a chat, `make test` runs all checks; both install their dependencies into .venv.
# Installation writes to standard error and reads nothing, so that `make run` works in a pipe.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --constraint constraints.txt
# On a terminal pip shows what it downloads; in a pipe only errors.
QUIET := $(shell [ -t 2 ] || echo --quiet)
PYTHONS := $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python)

# With it, each process of the tests, a worker or a bot, would compile all sources again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test suite coverage docs lossless reliability weights-test image image-test chaos-cluster cluster ray-test release sbom lint format words migration clean

run: $(VENV)/run-installed
	@$(BIN)/python -m bot run $(ARGS)

# At the same time: mypy takes a minute on one core, and some tests wait.
test: $(VENV)/test-installed
	@$(MAKE) --no-print-directory --jobs=2 lint suite

suite: $(VENV)/test-installed
	@$(BIN)/python -m pytest --numprocesses auto --dist worksteal $(ARGS)

# Not in CI: tracing lines doubles the CPU time, and on Python 3.11 a thread's end can then loop for ever in the
# interpreter, where greenlets are traced too.
coverage: $(VENV)/test-installed
	@$(BIN)/python -m pytest --numprocesses auto --dist worksteal --cov --cov-fail-under=90 $(ARGS)

lint: $(VENV)/test-installed
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m tests.project.prose

format: $(VENV)/test-installed
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

# Long answers on each platform under rate limits and errors, and their latency: docs/LOSSLESS.md.
# make lossless ARGS="slack --cases 30"
lossless: $(VENV)/test-installed
	@$(BIN)/python -m tests.adapters.lossless $(ARGS)

# Fault injection: kills, cut connections, full disks and more, docs/RELIABILITY.md.  A single experiment:
# make reliability ARGS="R4 --seed 3"
reliability: $(VENV)/test-installed
	@$(BIN)/python -m tests.reliability $(ARGS)

# Of these, the faults of several bots on one PostgreSQL server: docs/SCALING.md.
chaos-cluster: $(VENV)/test-installed
	@$(BIN)/python -m tests.reliability takeover replicas $(ARGS)

# Checkpoints of the real size with random weights, loaded under a memory limit: 13 GB of disk, 10 minutes.
weights-test: $(VENV)/test-installed
	@$(BIN)/python -m tests.weights

# The container image, with docker or podman and buildah; CPU build:
# make image ARGS="--build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu"
image: $(VENV)/test-installed
	@$(BIN)/python -m tests.image $(ARGS)

# Build the image, start it hardened, ask it, restart it, inject faults.
image-test: $(VENV)/test-installed
	@$(BIN)/python -m tests.image --test $(ARGS)

# A local Ray with two demo engines, and a bot on them in this terminal: docs/SCALING.md.
cluster: $(VENV)/ray-installed
	@$(BIN)/python -m deploy.ray.cluster $(ARGS)

# Two engines on a local Ray: asked, left, killed.
ray-test: $(VENV)/test-installed $(VENV)/ray-installed
	@$(BIN)/python -m tests.ray

# Wheel, sources, bill of materials and checksums in dist/, reproducible per commit.
release: export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct)
release: sbom
	@rm -f dist/*.whl dist/*.tar.gz dist/SHA256SUMS
	@$(BIN)/python -m build --no-isolation --outdir dist . >&2
	@cd dist && { command -v sha256sum >/dev/null && sha256sum *.whl *.tar.gz sbom.cdx.json || \
	    shasum -a 256 *.whl *.tar.gz sbom.cdx.json; } >SHA256SUMS
	@cat dist/SHA256SUMS

# Bill of materials (CycloneDX) of the packages in .venv, with versions and licences, without those of the tests.
sbom: $(VENV)/release-installed
	@mkdir -p dist
	@$(BIN)/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --output-reproducible | \
	    $(BIN)/python -m release.sbom >dist/sbom.cdx.json.part && mv dist/sbom.cdx.json.part dist/sbom.cdx.json

# The documentation as a website in dist/site; a link or anchor that leads nowhere is an error.
docs: export NO_MKDOCS_2_WARNING = 1
docs: $(VENV)/docs-installed
	@$(BIN)/mkdocs build --strict
	@echo "dist/site/index.html"

# Collect the bot's sentences from the code into the catalogues, and compile those.
words: $(VENV)/test-installed
	@$(BIN)/python -m bot.chat.locale.update

# Write a migration from the difference to schema.py:  make migration NAME="what it does"
migration: $(VENV)/test-installed
	@$(BIN)/python -m bot.storage.migrate "$(NAME)"
	@$(BIN)/ruff format --quiet migrations && $(BIN)/ruff check --quiet --fix migrations

clean:
	@rm -rf $(VENV) dist .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

$(VENV)/run-installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing the bot into $(VENV) (on Linux with the CUDA build of torch: gigabytes; README.md has the line for the CPU build) …" >&2
	@$(PIP) $(QUIET) --editable '.' </dev/null >&2
	@touch $@

$(VENV)/test-installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing the bot and its tests into $(VENV) …" >&2
	@$(PIP) $(QUIET) --editable '.[postgres,test]' </dev/null >&2
	@touch $@ $(VENV)/run-installed

$(VENV)/ray-installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing Ray into $(VENV) …" >&2
	@$(PIP) $(QUIET) --editable '.[ray]' </dev/null >&2
	@touch $@ $(VENV)/run-installed

$(VENV)/docs-installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing what builds the documentation into $(VENV) …" >&2
	@$(PIP) $(QUIET) --editable '.[docs]' </dev/null >&2
	@touch $@ $(VENV)/run-installed

$(VENV)/release-installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing the release tools into $(VENV) …" >&2
	@$(PIP) $(QUIET) --editable '.[postgres,transformers,release]' </dev/null >&2
	@touch $@ $(VENV)/run-installed

$(BIN)/python:
	@echo "Creating $(VENV) …" >&2
	@for python in $(PYTHONS); do \
	    $$python -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	    $$python -m venv $(VENV) </dev/null >&2 && exit 0; \
	done; \
	echo "No Python 3.11 or newer with venv is among: $(PYTHONS). Install one (Debian, Ubuntu:" >&2; \
	echo "apt install python3-venv), or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; exit 1
