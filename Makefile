PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: help train test types site docs format results clean

help:  ## list what there is
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

train: $(STAMP)  ## set up if needed, then train experiment=quickstart
	$(BIN)/python train.py experiment=quickstart

export NO_MKDOCS_2_WARNING = 1
test: export OMP_NUM_THREADS = 1
test: $(STAMP)  ## set up if needed, then check format, lint, types and documentation and run the tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	@$(MAKE) --no-print-directory -j 2 types site
	$(BIN)/pytest -n 2 --dist worksteal --durations=20 --durations-min=2

types: $(STAMP)
	$(BIN)/mypy lightning_t2drl callbacks

site: $(STAMP)
	$(BIN)/python -m mkdocs build --strict --quiet

docs: site  ## build the documentation as a site, in build/site
	@echo "open build/site/index.html"

format: $(STAMP)  ## format the code and mend what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

results: $(STAMP)  ## run the headline suite on a small budget
	$(BIN)/python benchmark.py suite=headline budget=small

clean:  ## remove the virtual environment and caches
	rm -rf .venv build .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(STAMP): requirements.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { \
		rm -rf .venv; \
		echo "cannot create .venv with $(PYTHON); on Debian or Ubuntu: apt install python3-venv"; exit 1; }
	@echo "installing the locked dependencies into .venv; this takes some minutes the first time"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@
