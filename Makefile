# Two commands set everything up: `make serve` and `make test`.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --no-compile --disable-pip-version-check --no-deps
PIP_INSTALL := $(PIP) --require-hashes
LOCKS := requirements.lock requirements-dev.lock extras.lock cpu.lock cuda.lock gateway.lock triton.lock
INSTALLED := $(VENV)/.installed
PRETRAINED := $(VENV)/.pretrained
SOURCES := setup.py src docs examples export handlers loadtest benchmarks serving_config tests
# Folders of files that are loaded by path, whose names may clash: mypy takes them as one tree.
TYPED := benchmarks docs examples export handlers loadtest

.PHONY: serve stop browser screenshots unit test test-long test-triton check reference format bench bench-scale bench-endurance clean

# Whatever is installed has the sha256 of its lock, or nothing of that lock is installed. PyTorch's own
# build for the CPU is imported in half of the time and asks for no CUDA libraries. The package index does
# not have it; it comes from where pip is told of it, as by PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL.
$(INSTALLED): pyproject.toml setup.py $(LOCKS)
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) -r gateway.lock
	if ! said=$$($(PIP_INSTALL) -r cpu.lock 2>&1); then case "$$said" in \
		*"No matching distribution"*) echo "PyTorch's CPU build is not at hand: the index's is taken" ;; \
		*) echo "$$said" >&2; exit 1 ;; esac; fi
	$(PIP_INSTALL) -r requirements.lock -r requirements-dev.lock -r extras.lock
	if $(BIN)/pip show torch | grep -q nvidia; then $(PIP_INSTALL) -r cuda.lock; fi
	$(PIP) --no-build-isolation --editable .
	if $(BIN)/python -m vlserve.stack.triton_program; then $(PIP_INSTALL) -r triton.lock; fi
	touch $@

$(PRETRAINED): $(INSTALLED) pretrained.lock clients.lock kubernetes.lock
	$(PIP_INSTALL) -r pretrained.lock -r clients.lock -r kubernetes.lock
	touch $@

serve: $(INSTALLED)  ## install, start the stack, release a demo tagger, tag a cover
	$(BIN)/vlserve up
	$(BIN)/vlserve demo

stop:  ## stop the stack; leaves no process behind
	@if [ -x $(BIN)/vlserve ]; then $(BIN)/vlserve down; fi

# Three processes, one thread each: a test that waits for a server leaves two cores to the others.
# In the order that tests/conftest.py gives, what takes longest first. Python keeps its bytecode also
# where the environment says otherwise: hundreds of processes import torch, in 2 s instead of 5.
TESTS := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

# Pretrained weights too, 100 MB, others' clients, kubectl and Helm: nothing else needs them.
unit: $(PRETRAINED)  ## tests of pure parts: no export, no training, no server
	$(TESTS) -m "not export and not training and not server and not long and not triton" tests/unit benchmarks/tests

# Tests of the console click through it in the Chromium on the PATH.
browser:
	@if [ -z "$$VLSERVE_NO_BROWSER" ] && ! command -v chromium >/dev/null; then \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			apt-get -qq update && apt-get -qq --yes --no-install-recommends install chromium fonts-wqy-microhei >/dev/null; \
		else echo "the tests need Chromium on the PATH (apt-get install chromium), or VLSERVE_NO_BROWSER=1"; exit 1; fi; fi

test: $(PRETRAINED) browser  ## all that the README promises
	$(TESTS) -m "not long and not triton"

test-long: $(PRETRAINED)  ## what takes minutes a test: CONTRIBUTING.md lists it
	$(TESTS) -m "long and not triton"

test-triton: $(PRETRAINED)  ## on Triton, what starts a stack of its own in the other tiers
	$(TESTS) -m triton

screenshots: $(INSTALLED) browser  ## docs/pictures/ anew, of the console
	PYTHONPATH=tests $(BIN)/python tests/browser/screenshots.py

check: $(INSTALLED)  ## format, lint, types, import contracts, hashes of the locks
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/mypy --explicit-package-bases $(TYPED)
	$(BIN)/lint-imports
	$(BIN)/pytest -q -p no:xdist -p no:cacheprovider tests/unit/test_locks.py
	$(BIN)/python docs/generate.py --check

reference: $(INSTALLED)  ## write docs/reference/ anew from the code
	$(BIN)/python docs/generate.py

format: $(INSTALLED)
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

bench: $(INSTALLED)  ## served speed as ratios to the in-process limit; PEERS=all for other servers too
	$(BIN)/python -m benchmarks.serving.speed --peers "$(PEERS)"

bench-scale: $(INSTALLED)  ## what more models, larger images and longer texts cost
	$(BIN)/python -m benchmarks.serving.scale

bench-endurance: $(INSTALLED)  ## an hour: soak, versions that come and go, many operators, fuzzing, slow bodies
	$(BIN)/python -m benchmarks.endurance.soak
	$(BIN)/python -m benchmarks.release.hot_update --rounds 200 --rate 15
	$(BIN)/python -m benchmarks.endurance.operators
	$(BIN)/python -m benchmarks.endurance.fuzz
	$(BIN)/python -m benchmarks.serving.hostile
	$(BIN)/python -m benchmarks.endurance.slow_bodies
	$(BIN)/python -m benchmarks.endurance.slow_bodies --drip-s 0.5

clean: stop
	rm -rf $(VENV) .vlserve
