# Two commands: `make demo` and `make test`. Each sets up .venv by itself.
PYTHON ?= python3
PORT ?= 7860
VOICE ?= caring
TORCH ?= torch==2.13.0
BIN := .venv/bin

.PHONY: help install demo ladder app test test-all style bench

help:
	@echo "make demo              train the demo (a few minutes on two cores), print its report, open the chat"
	@echo "make demo APP=no       end after the report;  VOICE=witty make demo  prefers another voice"
	@echo "make ladder            every step from n-gram to PPO on the same text, side by side;  DEMO=runs/... takes a finished demo"
	@echo "                       DATA=chat.csv make ladder  trains it on questions with answers, or plain text, of your own"
	@echo "make app               chat with the newest run at http://127.0.0.1:$(PORT)"
	@echo "make test              tests that need no network: a few minutes on two cores"
	@echo "make test-all          also the slow tests: whole recipes, and that each algorithm learns"
	@echo "make install           only set up .venv: then .venv/bin/rlhf lists every command"
	@echo "make style             lint and check the format"
	@echo "make bench             list the benchmarks;  make bench NAME=demo ARGS='--voice witty'  runs one"

install: .venv/.runtime

# Pinned: a range would take the newest build, on Linux with gigabytes of CUDA. TORCH=... make install chooses another.
.venv/.created:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'Python 3.10 or newer is needed: make PYTHON=python3.11')"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet $(TORCH)
	@touch $@

.venv/.runtime: .venv/.created requirements.txt pyproject.toml
	$(BIN)/pip install --quiet -r requirements.txt
	@touch $@

.venv/.dev: .venv/.runtime requirements-dev.txt
	$(BIN)/pip install --quiet -r requirements-dev.txt
	@touch $@

demo: install
	@PATH="$(CURDIR)/$(BIN):$$PATH" VOICE=$(VOICE) bash recipes/demo.sh
ifneq ($(APP),no)
	@$(MAKE) --no-print-directory app
endif

ladder: install
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash recipes/ladder.sh

app: install
	@$(BIN)/python app.py --runs runs --port $(PORT)

# Two processes, each with whole files, since fixtures of a file are expensive. Prints the ten slowest tests and the total.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --durations=10

test: .venv/.dev
	$(PYTEST) -m "not slow"

test-all: .venv/.dev
	$(PYTEST)

style: .venv/.dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

bench: .venv/.dev
	@$(BIN)/python benchmarks $(NAME) $(ARGS)
