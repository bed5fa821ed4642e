# make report    sets everything up, trains, measures, and writes perf_reports/out/index.html
# make test      the whole suite, on the CPU and through Triton's interpreter
# make check     ruff, pyright, import-linter
# make gate      what our kernels cost beside perf_baseline.json; no GPU needed
# make docs      the documentation as a site: site/index.html; a warning is an error
# make setup     the environment alone; TORCH_INDEX=URL takes PyTorch from that index (its CPU build, say)
# make clean     removes what these made

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TORCH_INDEX ?=
REPORT_FLAGS ?=
PYTEST_FLAGS ?=
SITE ?= site

.PHONY: report test check gate docs setup clean

report: setup
	$(BIN)/tropigrad report $(REPORT_FLAGS)

test: setup
	$(BIN)/pytest -n auto $(PYTEST_FLAGS)

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

gate: setup
	$(BIN)/tropigrad perf gate

docs: $(VENV)/.docs-installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir $(SITE)
	@echo "open $(SITE)/index.html; the search answers behind a server: $(BIN)/python -m http.server -d $(SITE)"

setup: $(VENV)/.installed

# not in `setup`: nothing but the site needs it
$(VENV)/.docs-installed: $(VENV)/.installed
	$(BIN)/pip install --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "tropigrad needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Run: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(BIN)/pip install --disable-pip-version-check --index-url $(TORCH_INDEX) "$$(grep '^torch==' constraints.txt)")
	$(BIN)/pip install --disable-pip-version-check -c constraints.txt -e '.[all]'
	@touch $@

clean:
	rm -rf $(VENV) site perf_reports/out dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
