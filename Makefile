# demo, test, test-ort-matrix, hostile, fuzz, sanitize, sanitize-threads, kills, bench, lint: each sets up what it
# needs. Everything lives in .venv and .cache.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
NATIVE := CMakeLists.txt $(shell find csrc -type f)

SANITIZED := build/sanitize
THREADS := build/sanitize-threads

.PHONY: demo demo-images test test-ort-matrix hostile fuzz sanitize sanitize-threads kills bench lint lock clean

demo: $(INSTALLED)
	$(BIN)/python examples/fetch.py minilm-snli
	$(BIN)/compressor compress examples/sentence-embedding.yaml

demo-images: $(INSTALLED)
	$(BIN)/python examples/fetch.py fashion-mnist
	$(BIN)/compressor compress examples/image-classification.yaml

# One thread per process: two test processes on two cores would otherwise fight over them.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope

# Every minor version of ONNX Runtime from the oldest supported one on, each fetched once into .cache.
test-ort-matrix: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python tests/ort_matrix

# Every hostile file, each refused by the command in a process whose memory and time are measured; `test` has some.
hostile: $(INSTALLED)
	OMP_NUM_THREADS=1 COMPRESSOR_HOSTILE=all $(BIN)/python -m pytest -n 2 tests/hostile

# Mutants of models, manifests and recipes; ends where one of them ends this process. MUTANTS=N says how many, instead.
SECONDS ?= 60
fuzz: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python tests/hostile/fuzz.py --seconds $(SECONDS) $(if $(MUTANTS),--mutants $(MUTANTS))

# The native code once more, in a folder of its own, where the first memory error or undefined behaviour ends the run.
# The interpreter below .venv with PYTHONPATH leaves out .venv's start-up files, which would find the other module.
# Python keeps memory until its end, so leaks are not looked for; libstdc++ must be there before the first exception; a
# report that pytest captures would be lost with the process. Left out: what is not this module, Arm and Triton (slow);
# and that memory does not grow, since the sanitizer holds it back. Of tests/benchmark those that call the module; the
# others start the measuring program, as tests/native does.
sanitize: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --upgrade \
	  --target $(SANITIZED)/site --config-settings build-dir=$(SANITIZED)/cmake \
	  --config-settings cmake.build-type=RelWithDebInfo --config-settings cmake.define.COMPRESSOR_SANITIZE=ON .
	set -e; \
	export OMP_NUM_THREADS=1 PYTHONSAFEPATH=1 COMPRESSOR_BUILD=$(CURDIR)/$(SANITIZED)/cmake; \
	packages=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	export PYTHONPATH=$(CURDIR)/$(SANITIZED)/site:$$packages; \
	python=$$($(BIN)/python -c 'import sys; print(sys._base_executable)'); \
	export LD_PRELOAD=$$($(CXX) -print-file-name=libasan.so):$$($(CXX) -print-file-name=libstdc++.so); \
	export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1; \
	$$python -c 'from compressor import native; assert "/$(SANITIZED)/" in native.load().__file__'; \
	$$python -m pytest --capture=sys -p no:cacheprovider -n 2 --dist loadscope -m "not slow" \
	  --ignore=tests/native/test_neon.py --ignore=tests/native/test_native_endurance.py tests/native tests/kernels \
	  $(addprefix tests/benchmark/test_,$(addsuffix .py,json_text machine native_session npy timing_statistics))

# The measuring program alone, which ends at the first data race that ThreadSanitizer sees. ONNX Runtime is compiled
# without it and so not looked into; it has given no false report, so nothing is suppressed.
sanitize-threads: $(INSTALLED)
	$(BIN)/python -m cmake -S . -B $(THREADS) -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCOMPRESSOR_MODULE=OFF \
	  -DCOMPRESSOR_SANITIZE=thread
	$(BIN)/python -m cmake --build $(THREADS) --target compressor_runner
	COMPRESSOR_RUNNER=$(CURDIR)/$(THREADS)/compressor-runner TSAN_OPTIONS=exitcode=66:halt_on_error=1 \
	  $(BIN)/python -m pytest -p no:cacheprovider tests/native/test_runner_threads.py

# A run in all its stages, and updates of a device, killed at 200 random moments and resumed; KILLS says how often.
KILLS ?= 200
kills: $(INSTALLED)
	$(BIN)/python tests/kills --kills $(KILLS)

bench: $(INSTALLED)
	@echo "python -m bench CASE [--json FILE]; cases:" $(basename $(notdir $(filter-out bench/_%,$(wildcard bench/*.py))))

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
