# Everything a fresh machine needs. CPU-only users set TORCH_INDEX_URL to the CPU index that
# PyTorch's install page names; without it pip takes the default build of the same version.
PYTHON ?= python3
TORCH  := torch==2.13.0
BIN    := .venv/bin

.PHONY: grow test test-all soak lint
.DELETE_ON_ERROR:

.venv/installed: pyproject.toml
	@echo "Installing into .venv (about 1.3 GB, a few minutes) · .venv에 설치합니다(약 1.3 GB, 몇 분)"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL)) $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

grow: .venv/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" onsil grow examples/handbook --name handbook
	@echo "  (first, in this terminal · 먼저 이 터미널에서:  source .venv/bin/activate)"

lint: .venv/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

.venv/installed-all: .venv/installed-dev
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev,ray]'
	touch $@

test-all: lint .venv/installed-all
	$(BIN)/python -m pytest -m ''

soak: .venv/installed-dev
	$(BIN)/python benchmarks/soak.py
