# `make demo` and `make test` do everything on a machine that has Python 3.11 or newer.
PYTHON ?= python3
VENV ?= .venv

BIN := $(abspath $(VENV))/bin
# The bytecode of what is imported is written then; that of all modules would take pip longer than to unpack them.
PIP := $(BIN)/python -m pip install --quiet --no-compile
MADE := $(VENV)/.made
FOR_DEMO := $(VENV)/.installed-for-demo
STAMP := $(VENV)/.installed

# Threads that wait for one another sleep: where other programs run, spinning takes twice the time.
export OMP_WAIT_POLICY := passive

.PHONY: venv demo test test-all test-oldest lint clean
.NOTPARALLEL:

venv: $(STAMP)

$(MADE):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "wrangan needs Python 3.11 or newer; name one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || \
	    { echo "this Python cannot make virtual environments (Debian: apt install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	touch $@

$(FOR_DEMO): $(MADE) pyproject.toml
	$(PIP) -e '.[demo]'
	touch $@

# It holds what the demo needs, too.
$(STAMP): $(MADE) pyproject.toml
	$(PIP) -e '.[all,dev]'
	$(BIN)/wrangan fetch inception
	touch $(FOR_DEMO) $@

demo: $(FOR_DEMO)
	$(BIN)/wrangan fetch ffhq
	PATH="$(BIN):$$PATH" bash examples/demo.sh demo

# A process a core, and each with one thread: more threads would only fight.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadgroup

# All but what compiles the CUDA sources, which takes as long as half of the rest.
test: lint
	$(PYTEST) -m "not cuda_build"

test-all: lint
	$(PYTEST)

# The fast tests with the lowest version of everything that is required (torch and torchvision, several GB, among
# them). With OLDEST_TORCH=no these two are those of $(VENV).
OLDEST := $(VENV)-oldest
OLDEST_TORCH ?= yes

test-oldest: venv
	$(PYTHON) -m venv --clear $(OLDEST)
ifeq ($(OLDEST_TORCH),no)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	    > "$$($(OLDEST)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/newest.pth"
	$(BIN)/python tests/lower_bounds.py --but torch torchvision > $(OLDEST)/constraints.txt
else
	$(BIN)/python tests/lower_bounds.py > $(OLDEST)/constraints.txt
endif
	$(OLDEST)/bin/python -m pip install --quiet --no-compile --constraint $(OLDEST)/constraints.txt -e '.[all,dev]'
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -n auto --maxprocesses 8 -m "not slow and not cuda_build"

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(OLDEST) build dist *.egg-info demo .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
