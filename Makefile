# The two commands: `make sweep` and `make test`. Both set up what they need once, then use what is there.
# Paths are relative or quoted, so that a clone in a folder with spaces works.

VENV := .venv
PYTHON_IN := $(VENV)/bin/python
EXTRAS := train,test

.PHONY: help setup sweep test test-all test-fast test-slurm test-containers lint house bench clean
help:
	@echo "make sweep      set up, then run the beta sweep on this machine and compare the three betas"
	@echo "make test       set up, then lint, and run all tests but those marked slow (20 to 30 minutes)"
	@echo "make test-all   those too that take minutes each"
	@echo "make test-fast  the unit tests alone, 5 minutes"
	@echo "make test-slurm SLURM=24.11"
	@echo "                all of tests/slurm on that Slurm (22.05, 24.11, 26.05), in a Debian root (needs root; 1 GB, 2 minutes)"
	@echo "make test-containers"
	@echo "                trials in a real Apptainer and in a stand-in for pyxis, on Slurm 26.05 (the same, with a root of 3 GB)"
	@echo "make bench      figures beside others', each in one run: command to sbatch and stock hydra-submitit-launcher, training"
	@echo "                and stock NeMo-Aligner, pairs prepared and datasets.map, answers and transformers' generate, conversion at"
	@echo "                Llama-3-8B's shape (an hour);"
	@echo "                HH_RLHF_FILE=pairs.jsonl.gz names real pairs in Anthropic's format, else the project's own are taken"
	@echo "make lint       ruff, mypy --strict and the import contracts"
	@echo "make house      measure the source: import circles, contracts kept, \`Any\` in signatures, lines, test cases"
	@echo "make setup      virtual environment, small models and sample data; nothing is done twice"
	@echo "make clean      remove what make made (not your runs)"

setup: $(VENV)/.installed models/smollm2_135m.nemo data/sample/dataset.json

# A stamp, so that a second run asks no package index.
$(VENV)/.installed: pyproject.toml requirements/lock.txt requirements/install.sh
	@requirements/install.sh $(VENV) $(EXTRAS)
	@touch $@

models/%.nemo: | $(VENV)/.installed
	@echo "== model $*: models/$*.nemo"
	@$(PYTHON_IN) data_prep/convert_checkpoint.py $*

data/sample/dataset.json: data_prep/sample/pairs.jsonl | $(VENV)/.installed
	@echo "== data: the project's own sample pairs"
	@$(PYTHON_IN) data_prep/prepare_data.py sample

sweep: setup
	$(PYTHON_IN) launcher/main.py -m model.dpo.ref_policy_kl_penalty=0.05,0.1,0.5 cluster=local

# The tests on Slurm in one process, those with NeMo in the other, then the rest in whichever is free (tests/conftest.py).
TWO_AT_ONCE := --numprocesses 2 --dist loadscope --durations 25

test: setup models/tiny.nemo lint
	$(PYTHON_IN) -m pytest -m "not slow" $(TWO_AT_ONCE)

test-all: setup models/tiny.nemo lint
	$(PYTHON_IN) -m pytest

# The version of Slurm: 22.05, 24.11 or 26.05. One that is not this machine's runs in a Debian root that tests/roots builds.
SLURM := 24.11
test-slurm: setup models/tiny.nemo
	$(PYTHON_IN) -m tests.roots $(SLURM) -- $(PYTHON_IN) -m pytest tests/slurm $(PYTEST_ARGS)

test-containers: setup models/tiny.nemo
	$(PYTHON_IN) -m tests.containers $(PYTEST_ARGS)

test-fast: $(VENV)/.installed
	$(PYTHON_IN) -m pytest tests/unit

bench: setup models/tiny.nemo
	$(PYTHON_IN) -m tests.benchmarks.submit
	$(PYTHON_IN) -m tests.benchmarks.prepare
	$(PYTHON_IN) -m tests.benchmarks.convert
	$(PYTHON_IN) -m tests.benchmarks.answers
	$(PYTHON_IN) -m tests.benchmarks.training

lint: $(VENV)/.installed
	$(PYTHON_IN) -m ruff check .
	$(PYTHON_IN) -m ruff format --check .
	$(PYTHON_IN) -m mypy
	$(VENV)/bin/lint-imports

house: $(VENV)/.installed
	$(PYTHON_IN) -m tests.house

clean:
	rm -rf $(VENV) models data cache build *.egg-info .pytest_cache .ruff_cache .mypy_cache
