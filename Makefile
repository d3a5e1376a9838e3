# demo, test, bench, lint: each sets up what it needs. Everything lives in .venv and .cache.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
NATIVE := CMakeLists.txt $(shell find csrc -type f)

.PHONY: demo demo-images test bench lint lock clean

demo: $(INSTALLED)
	$(BIN)/python examples/fetch.py minilm-snli
	$(BIN)/compressor compress examples/sentence-embedding.yaml

demo-images: $(INSTALLED)
	$(BIN)/python examples/fetch.py fashion-mnist
	$(BIN)/compressor compress examples/image-classification.yaml

# One thread per process: two test processes on two cores would otherwise fight over them.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope

bench: $(INSTALLED)
	@echo "python -m bench CASE --json FILE; cases:" $(basename $(notdir $(filter-out bench/_%,$(wildcard bench/*.py))))

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Pins what pip chooses today for pyproject.toml's extras.
lock: $(INSTALLED)
	{ head -n 1 requirements.lock; $(BIN)/pip freeze --exclude-editable | sed 's/+cpu//'; } > requirements.lock.new
	mv requirements.lock.new requirements.lock

$(INSTALLED): requirements.lock pyproject.toml $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
