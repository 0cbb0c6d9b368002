# The whole process of the project: CI runs these words and nothing else.
# Python >= 3.10 and make are enough; everything is installed into .venv, nothing outside this folder is written.

BIN := .venv/bin
export PYTHON

.DEFAULT_GOAL := help
.PHONY: help install demo test lint type bench docs

help:
	@echo "make demo    train an agent on many small trainings of real digits, deploy its policy, print what it gained"
	@echo "make test    run the tests"
	@echo "make lint    check the style of the code (ruff)"
	@echo "make type    check its types (mypy --strict)"
	@echo "make bench   measure its speed beside that of other libraries"
	@echo "make docs    write the generated parts of README.md and docs/ anew, and run the code in them"
	@echo
	@echo "Each installs into .venv what it needs, the first time only."
	@echo "make demo ARGS='--help' passes options on; make PYTHON=/path/to/python demo chooses the interpreter for a new .venv."

install:
	@sh scripts/install.sh dev

demo: install
	@echo "rlmix: the demo trains an agent and evaluates it; on two processor cores it takes a few minutes."
	$(BIN)/rlmix demo $(ARGS)

test: install
	@echo "rlmix: running the tests; on two processor cores they take about ten minutes."
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal $(ARGS)

lint: install
	$(BIN)/ruff check $(ARGS) .

type: install
	@echo "rlmix: checking types; the first time this takes a few minutes."
	$(BIN)/mypy -p rlmix $(ARGS)

bench:
	@sh scripts/install.sh dev,bench
	$(BIN)/python -m benchmarks $(ARGS)

docs: install
	$(BIN)/python scripts/docs.py README.md docs/*.md docs/results/*.md
	$(BIN)/python -m pytest -q tests/test_readme.py $(ARGS)
