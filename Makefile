# mia-fast: the few commands of this project. Each does its own set-up in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench docs sessions torture train networks clean

help: ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1|\2/' | column -t -s '|'

demo: $(VENV)/.core ## Replay two simulated sessions through everything (offline once installed, under a minute)
	$(BIN)/mia-fast demo

test: $(VENV)/.dev ## Run the test suite; warnings are errors
	$(BIN)/mia-fast warmup
	$(BIN)/python -m pytest -W error -n $(WORKERS)

lint: $(VENV)/.dev ## ruff and mypy, as the pre-commit hooks run them
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.dev ## Prove parity with the peers, then time both in one run and print the ratios
	$(BIN)/mia-fast warmup
	$(BIN)/python -m pytest benchmarks --benchmark-columns=median,iqr,rounds --benchmark-sort=name -p no:cacheprovider

docs: $(VENV)/.core ## Write the generated pages again: tables, risk codes, features
	$(BIN)/python -m mia_fast.tables.page docs/tables.md
	$(BIN)/python -m mia_fast.risk.document > docs/risk-codes.md
	$(BIN)/python -m mia_fast.features.page docs/features.md
	$(BIN)/python -m mia_fast.bars.page docs/bars.md

sessions: $(VENV)/.dev ## Generate the CME session table again, three years ahead
	$(BIN)/python -m mia_fast.session_table 2013-10-01 $$(( $$(date +%Y) + 2 ))-12-31 config/sessions_cme_equity.csv

torture: $(VENV)/.dev ## The whole of the slow tests: all real data, many rounds of kill -9
	$(BIN)/mia-fast warmup
	MIA_TORTURE_ROUNDS=200 MIA_WHOLE=1 $(BIN)/python -m pytest -W error -n $(WORKERS)

DATA ?= ../shared/data
train: $(VENV)/.train ## Train the shipped model again, in place (needs the real data; DATA=folder)
	$(BIN)/mia-fast train predicted_vix --out models/mia_models/artifacts \
	  $(foreach y,2019 2020 2021 2022h1,--bars $(DATA)/bars/es_1m_$(y).parquet) \
	  --vix $(DATA)/vol/vix_family_daily_to_202206.parquet --index $(DATA)/cross/daily_prices_to_202206.parquet

HISTORY ?= build/history
FILES := --vix $(DATA)/vol/vix_family_daily_to_202206.parquet --index $(DATA)/cross/daily_prices_to_202206.parquet
YIELDS := $(DATA)/cross/fred_yields_daily_to_202206.parquet
EVENTS := $(DATA)/macro/us_high_impact_2014_202206.parquet
networks: $(VENV)/.train ## Choose the features, then train the shipped networks again, in place (DATA=folder)
	$(BIN)/python -m pip install --quiet -e '.[select]'
	mkdir -p $(HISTORY)
	MIA_WORKSPACE=$(HISTORY) $(BIN)/mia-fast features $(foreach y,2019 2020 2021,$(DATA)/bars/es_1m_$(y).parquet) $(HISTORY)/es \
	  --cross $(word 2,$(FILES)) --cross $(word 4,$(FILES)) --cross $(YIELDS) --events $(EVENTS) \
	  --dtype float32 --compression uncompressed < /dev/null
	MIA_WORKSPACE=$(HISTORY) $(BIN)/mia-fast select $(HISTORY)/es --target cnn_pressure --until 2022-01-01
	MIA_WORKSPACE=$(HISTORY) $(BIN)/mia-fast train networks --out models/mia_models/artifacts \
	  $(foreach y,2019 2020 2021 2022h1,--bars $(DATA)/bars/es_1m_$(y).parquet) $(FILES) --cross $(YIELDS) --events $(EVENTS)
	cp $(HISTORY)/data/features/selection.json models/mia_models/artifacts/selection.json
	rm -rf models/mia_models/artifacts/checkpoints

clean: ## Remove the environment and what tools left behind
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: pyproject.toml | $(BIN)/python
	$(PIP) -e .
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.core

$(VENV)/.train: pyproject.toml | $(BIN)/python
	$(PIP) -e '.[dev,train]'
	@touch $@ $(VENV)/.dev $(VENV)/.core
