# Two commands on a fresh machine (Python >= 3.11, make, network for packages): `make demo` and `make test`.
PYTHON ?= $(shell for v in 3.12 3.11 3.13 3; do command -v python$$v >/dev/null && python$$v -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo python$$v && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= demo
# Two test processes, a file in one of them: much of the time a test waits for Ray to start or for a deadline.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test slow nightly lint all lock clean

demo: $(VENV)/.installed
	@$(BIN)/angio-ray demo --out $(DEMO)

test: $(VENV)/.installed-test lint
	$(PYTEST) -m "not slow"

slow: $(VENV)/.installed-test
	$(PYTEST) -m "slow and not nightly"

nightly: $(VENV)/.installed-test
	$(PYTEST) -m nightly

all: $(VENV)/.installed-test lint
	$(PYTEST)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/mypy

# The lock first (versions and hashes), then the project alone: nothing comes in that the lock does not name.
$(VENV)/.installed: requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "make: Python 3.11 or newer is needed" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@test -e $(VENV)/.installed-test || { echo "installing packages into $(VENV) (2-3 minutes, about 7 GB)"; \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.installed-test: requirements-test.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "make: Python 3.11 or newer is needed" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements-test.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@ $(VENV)/.installed

# Needs uv. The locks name versions and hashes, never an index.
lock:
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --extra openvino pyproject.toml -o requirements.lock
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --extra openvino --extra test -c requirements.lock pyproject.toml -o requirements-test.lock

clean:
	rm -rf $(VENV) $(DEMO) build dist *.egg-info
