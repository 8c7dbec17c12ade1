# `make demo` and `make test` do all set-up on a fresh machine. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
VENV ?= .venv
# How many processes share the tests. PyTorch's threads must not wait awake: they would keep a core from the other one.
WORKERS ?= 2
PIP = $(VENV)/bin/python -m pip install --quiet --constraint constraints.txt
RUN = $(VENV)/bin/python -m
TEST = OMP_WAIT_POLICY=PASSIVE $(RUN) pytest --numprocesses $(WORKERS) --dist loadfile
SOURCES = pyproject.toml constraints.txt setup.py $(wildcard native/*)

.PHONY: demo install test test-all sanitize lint docs bench clean

demo: $(VENV)/.train
	$(VENV)/bin/labelsmooth train digits --smoothing 0.1

install: $(VENV)/.test

test: install
	$(TEST) -m "not slow"

test-all: install
	$(TEST)

sanitize:
	mkdir -p build
	for sanitizer in address,undefined thread; do \
		$(CXX) -std=c++17 -O1 -g -Wno-psabi -pthread -fsanitize=$$sanitizer -fno-sanitize-recover=all -Inative \
			native/kernel*.cpp native/threads.cpp native/buffers.cpp native/tests/sanitized.cpp -o build/sanitized \
			&& build/sanitized || exit 1; \
	done

lint: install
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) pyright

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build --quiet --strict
	@echo "the documentation is at build/docs/index.html; its search needs a server: $(RUN) http.server --directory build/docs"

bench: install
	$(RUN) benchmarks.bench_start
	$(RUN) benchmarks.bench_targets
	$(RUN) benchmarks.bench_smooth
	$(RUN) benchmarks.bench_loss
	$(RUN) benchmarks.bench_linear
	$(RUN) benchmarks.bench_scale
	$(RUN) benchmarks.bench_methods
	$(RUN) benchmarks.bench_train
	$(RUN) benchmarks.bench_folder
	$(RUN) benchmarks.bench_evaluate

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("labelsmooth needs Python 3.11 or newer; $(PYTHON) is %d.%d: make PYTHON=python3.11 ..." % v[:2])'
	$(PYTHON) -m venv $(VENV)

# torch is named first, so that its pinned version is chosen before anything else can ask for another.
$(VENV)/.train: $(VENV)/bin/python $(SOURCES)
	@echo "installing labelsmooth and what training needs into $(VENV) ..."
	$(PIP) torch --editable '.[train]'
	@touch $@

$(VENV)/.docs: $(VENV)/bin/python $(SOURCES)
	@echo "installing labelsmooth and what its documentation needs into $(VENV) ..."
	$(PIP) --editable '.[docs]'
	@touch $@

$(VENV)/.test: $(VENV)/bin/python $(SOURCES)
	@echo "installing labelsmooth and what its tests need into $(VENV) ..."
	$(PIP) torch --editable '.[test]'
	@touch $@ $(VENV)/.train $(VENV)/.docs
