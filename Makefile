# A fresh Debian machine needs python3 (3.11 or newer), python3-venv and make; the rest is set up here.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-all test-fast check parity claims reproduce text text-costs meta augmentation drift \
	bench bench-attention bench-checkpoints bench-generation bench-meta bench-models bench-online bench-search \
	bench-strategies scaling clean

demo: .venv/demo
	$(BIN)/jcl run configs/quickstart.py --method naive
	$(BIN)/jcl run configs/quickstart.py --method replay_ewc
	$(BIN)/jcl report runs/quickstart/naive runs/quickstart/replay_ewc

test: .venv/test
	$(BIN)/python -m pytest --numprocesses 2 --dist loadgroup --durations 30

test-all: .venv/test
	JCL_ALL_TESTS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadgroup

test-fast: .venv/test
	$(BIN)/python -m pytest -m "not slow"

check: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# The tests that compare with PyTorch.
PARITY := $(patsubst %,tests/test_%.py,bert generate gpt2 hf llama meta_benchmark translator)
parity: .venv/parity
	$(BIN)/python -m pytest $(PARITY)

claims: .venv/demo
	$(BIN)/python benchmarks/quickstart.py

# The published tables, in parts of at most 90 minutes by the wall times in docs/reproduction.md; a
# cell that fails holds up none of the others.
PARTS := permuted-1 permuted-2 permuted-3 permuted_small rotated-1 rotated-2 rotated-3 split \
	mnist_360 scenarios-1 scenarios-2 scenarios-3
reproduce:
	$(MAKE) --keep-going --jobs=1 $(PARTS:%=reproduce-%)

# make reproduce-permuted-1; make reproduce-permuted; make reproduce-permuted METHODS="der derpp"
permuted-1 := sgd joint oewc si er gem agem
permuted-2 := der derpp
permuted-3 := la_maml
rotated-1 := sgd joint oewc si der
rotated-2 := er gem agem
rotated-3 := derpp
scenarios-1 := adam l2 ewc online_ewc
scenarios-2 := si mas lwf
scenarios-3 := rehearsal gem offline
REPRODUCE := $(addprefix reproduce-,$(PARTS) permuted rotated scenarios)
.PHONY: $(REPRODUCE)
$(REPRODUCE): reproduce-%: .venv/demo
	$(BIN)/python benchmarks/reproduce.py $(firstword $(subst -, ,$*)) \
		$(if $(METHODS)$($*),--only $(or $(METHODS),$($*)))

# The table of the text configs, 90 minutes at a time; make text STREAMS=banking77 METHODS="replay best"
text: .venv/demo
	$(BIN)/python benchmarks/text.py $(STREAMS) $(if $(METHODS),--only $(METHODS))

# Its columns of what a step and the memory of every row are on this machine.
text-costs: .venv/demo
	$(BIN)/python benchmarks/text_costs.py $(STREAMS) $(if $(METHODS),--only $(METHODS))

# The tables of meta-learning, 90 minutes at a time; make meta TABLES=omniglot METHODS="maml anil"
meta: .venv/demo
	$(BIN)/python benchmarks/meta_tables.py $(TABLES) $(if $(METHODS),--only $(METHODS))

# The table of augmentations, 90 minutes at a time; make augmentation TEXTS=banking77
augmentation: .venv/demo
	$(BIN)/python benchmarks/augmentation.py $(TEXTS) $(if $(METHODS),--only $(METHODS))

# The tables of streams that drift, in docs/online.md; goes on where it was stopped.
drift: .venv/bench
	$(BIN)/python benchmarks/drift_table.py

bench: .venv/bench
	$(BIN)/python benchmarks/step.py

bench-attention: .venv/demo
	$(BIN)/python benchmarks/attention.py

bench-checkpoints: .venv/demo
	$(BIN)/python benchmarks/checkpoints.py

bench-meta: .venv/bench
	$(BIN)/python benchmarks/meta.py

bench-generation: .venv/bench
	$(BIN)/python benchmarks/generation.py

bench-models: .venv/bench
	$(BIN)/python benchmarks/models.py

bench-online: .venv/bench
	$(BIN)/python benchmarks/online.py

bench-search: .venv/bench
	$(BIN)/python benchmarks/search.py

bench-strategies: .venv/bench .venv-avalanche/made
	$(BIN)/python benchmarks/strategies.py

# The tables of docs/scaling.md; goes on where it was stopped.
scaling: .venv/demo
	$(BIN)/python benchmarks/scaling.py

# The peer's own environment: Avalanche and a CPU build of PyTorch.
.venv-avalanche/made:
	$(PYTHON) -m venv .venv-avalanche
	.venv-avalanche/bin/python -m pip install --quiet torch==2.13.0 avalanche-lib==0.6.0
	touch $@

clean:
	rm -rf .venv .venv-avalanche runs

.venv/bin/python:
	$(PYTHON) -m venv .venv

# One stamp for each extra: made when it is installed, made anew when the versions change.
.venv/demo .venv/test .venv/parity .venv/ci .venv/bench: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) -e ".[$(notdir $@)]"
	touch $@
