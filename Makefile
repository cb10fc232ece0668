# make run: install, look for devices, train on pretrained weights.
# make run BANKING77=FOLDER: trains on the published Banking77 (a folder with train.csv and test.csv), too.
# make check: lint and types; make lint, make types: one of them; make format: mends what it can.
# make quick: what check does, and the tests marked `core`, fast ones of each room; under 90 s on 2 cores.
# make test: every test, one on each core; ARGS="tests/data -k windows": a part.
# make test-tpu: the TPU tests, on a CPU build of PJRT in the place of a TPU; skipped where pip finds no wheels of it.
# make test-xla: the XLA and Tenstorrent tests, with the older torch that torch-xla pins (make xla-environment).
# make judge-tt: ttnn on a simulated Tenstorrent card, as the judge of the exact emulation; ARGS=--short: a part of it.
# make storm: kill, interrupt, starve and corrupt runs, hours of it; ARGS="--only kills --variant whole --tries 20": a part.
# make gate-trial: plant slowdowns and faults, and count what bench --against says; ARGS="--plant 10% --busy": a part.
# make gpu-check: isotrain gpu-check on a machine with a GPU; ARGS="--seconds 540".
# make conformance BACKEND=cpu: what the backend must do, check by check; xla and tpu in their environments.
# make docs: the documents checked, and the site of them in build/site.
# make wheels: the wheel for Linux, the one without C++ for every platform, and the sources, checked, in dist/.
# make wheel-trial: dist's wheel for Linux installed without a compiler by each of PYTHONS, its doctor, size and start.
# make bench-suite: time every kernel and backend here with pytest-benchmark; ARGS=--benchmark-compare: against the last.
# make bench-training JOB=albert-8 (albert-32, minilm-mrpc): training steps beside transformers' Trainer; MRPC=FOLDER.
# TORCH=cpu, cu130, rocm7.2, ...: the build of torch wherever one is installed, from its own index. The package index's
# x86-64 build has CUDA's libraries with it: 5 GB on the disk.
# make clean: remove what builds and tools left, the environments aside.
PYTHON ?= python3
VENV ?= .venv
TORCH ?=
BACKEND ?= cpu
XLA_VENV ?= .venv-xla
JUDGE_VENV ?= .venv-judge-tt
TPU_SITE := build/tpu-site
BANKING77 ?= $(wildcard ../shared/data/banking77)
MRPC ?= $(wildcard ../shared/data/mrpc)
BIN := $(VENV)/bin
NATIVE := $(wildcard kernels/*/native/* kernels/include/*)
XLA_BIN := $(XLA_VENV)/bin
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check
# A process a core; the tests of a file share one (tests/support/scheduling.py).
PARALLEL := --numprocesses auto --no-loadscope-reorder
PIP := $(BIN)/python $(PIP_INSTALL) --constraint constraints.txt
# TORCH's build of the version in the file $(1). Whatever else it needs comes from the index that pip knows.
torch_build = $(if $(TORCH),"$$(grep ^torch== $(1))+$(TORCH)" --extra-index-url https://download.pytorch.org/whl/$(TORCH))
# libstdc++ inside, and no newer glibc than that of 2012: what manylinux2014 asks of a library.
CROSS := $(BIN)/python -m ziglang c++ -target x86_64-linux-gnu.2.17 -fno-sanitize=all

.PHONY: run check lint types quick format test xla-environment test-xla storm test-tpu judge-tt gate-trial gpu-check conformance docs wheels wheel-trial bench-suite bench-training clean help

help:
	@grep -E '^# make' Makefile | cut -c3-

$(BIN)/python $(XLA_BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "isotrain needs Python 3.11 or newer; set PYTHON=python3.11 (found: $$($(PYTHON) --version 2>&1))"; exit 2; }
	$(PYTHON) -m venv $(@D:/bin=)

$(VENV)/.torch: constraints.txt $(BIN)/python
	$(if $(TORCH),$(PIP) $(call torch_build,constraints.txt))
	@touch $@

$(VENV)/.installed: pyproject.toml setup.py constraints.txt $(NATIVE) $(VENV)/.torch
	$(PIP) --editable '.[demo]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml setup.py constraints.txt $(NATIVE) $(VENV)/.torch
	$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.installed

# In two steps: the first builds nothing in this folder, so that it can run beside what uses the native libraries here.
# torch's x86-64 build on the package index comes with CUDA's libraries, without which it can't be imported.
$(XLA_VENV)/.packages: pyproject.toml constraints.txt constraints-xla.txt $(XLA_BIN)/python
	@$(if $(TORCH),,echo "the XLA environment, $(XLA_VENV): 8 GB on the disk, because torch 2.9 brings CUDA's libraries; TORCH=cpu does without")
	@mkdir -p build && grep -v -E '^(torch|triton)==' constraints.txt > build/constraints-common.txt
	@$(XLA_BIN)/python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	  extra = p["optional-dependencies"]; \
	  print(*p["dependencies"], *extra["xla"], *extra["lora"], sep="\n")' > build/requirements-xla.txt
	$(XLA_BIN)/python $(PIP_INSTALL) --constraint build/constraints-common.txt --constraint constraints-xla.txt \
	  --requirement build/requirements-xla.txt $(call torch_build,constraints-xla.txt) pytest pytest-benchmark pytest-xdist jsonschema
	@touch $@

$(XLA_VENV)/.installed: setup.py $(XLA_VENV)/.packages $(NATIVE)
	$(XLA_BIN)/python $(PIP_INSTALL) --no-deps --editable .
	@touch $@

run: $(VENV)/.installed
	$(BIN)/isotrain doctor
ifneq ($(BANKING77),)
	$(BIN)/isotrain train banking77 --set 'dataset_id=$(BANKING77)' --set model_name=demo:minilm
endif
	$(BIN)/isotrain train quickstart

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

# With what torch_tpu imports; of its other requirements, only a TPU needs libtpu.
$(TPU_SITE)/.installed: tests/tpu/requirements.txt $(VENV)/.installed-dev
	rm -rf $(TPU_SITE)
	$(BIN)/python $(PIP_INSTALL) --no-deps --require-hashes --only-binary :all: --target $(TPU_SITE) \
	  --requirement $< || { rm -rf $(TPU_SITE); mkdir -p $(TPU_SITE); echo "torch_tpu can't be installed here (above)"; }
	@touch $@

test-tpu: $(TPU_SITE)/.installed
	PYTHONPATH=$(CURDIR)/tests/tpu/stand:$(CURDIR)/$(TPU_SITE) TORCH_DEVICE_BACKEND_AUTOLOAD=0 \
	  $(BIN)/python -m pytest $(PARALLEL) tests/tpu $(ARGS)

# ttnn has wheels for Python 3.10 and 3.12 only. It finds its kernel compiler beside its own files, or the system's.
JUDGE_PYTHON ?= $(shell for python in python3.12 python3.10 $$HOME/.pyenv/versions/3.1[02].*/bin/python3; do \
  "$$python" -c "" 2>/dev/null && { echo "$$python"; break; }; done)
JUDGE_PIP := $(JUDGE_VENV)/bin/python $(PIP_INSTALL) --no-deps --require-hashes --only-binary :all:

$(JUDGE_VENV)/.installed: $(wildcard tests/judge_tt/*.txt)
	rm -rf $(JUDGE_VENV)
	$(or $(JUDGE_PYTHON),$(error make judge-tt needs Python 3.10 or 3.12: set JUDGE_PYTHON)) -m venv $(JUDGE_VENV)
	$(JUDGE_PIP) --requirement tests/judge_tt/requirements.txt
	test -d /opt/tenstorrent/sfpi || { $(JUDGE_PIP) --ignore-requires-python --target $(JUDGE_VENV)/compiler \
	  --requirement tests/judge_tt/compiler.txt && $(JUDGE_VENV)/bin/python tests/judge_tt/compiler.py \
	  $(JUDGE_VENV)/compiler/jax_plugins/libtt/libtt.so && rm -r $(JUDGE_VENV)/compiler; }
	@touch $@

judge-tt: $(VENV)/.installed-dev
	@$(MAKE) --no-print-directory $(JUDGE_VENV)/.installed || echo "the judge can't be installed here (above)"
	PYTHONPATH=tests$${PYTHONPATH:+:$$PYTHONPATH} $(BIN)/python -m judge_tt --python $(JUDGE_VENV)/bin/python $(ARGS)

storm: $(VENV)/.installed-dev
	PYTHONPATH=tests$${PYTHONPATH:+:$$PYTHONPATH} $(BIN)/python -m storm $(ARGS)

gate-trial: $(VENV)/.installed-dev
	PYTHONPATH=tests$${PYTHONPATH:+:$$PYTHONPATH} $(BIN)/python -m support.gate_trial $(ARGS)

gpu-check: $(VENV)/.installed
	$(BIN)/isotrain gpu-check $(ARGS)

bench-suite: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -p isotrain.benchmarks.suites.plugin --pyargs isotrain.benchmarks.suites \
	  -o python_files='bench_*.py' -o addopts=--import-mode=importlib --benchmark-autosave $(ARGS)

# As many processes and blocks as a committed result needs: a quarter of an hour a job.
TRAINING := --workload full_step --vs trainer --kernel native --kernel transformers --layout packed --layout dynamic \
  --seconds 6
albert-8 := --batch-size 8 --layout bucketed --vs trainer-compile
albert-32 := --batch-size 32 --texts 64
minilm-mrpc := --batch-size 8 --model demo:minilm --dataset $(MRPC)
JOB ?= albert-8
bench-training: $(VENV)/.installed-dev
	$(BIN)/isotrain bench $(TRAINING) $($(JOB)) \
	  --out benchmarks/results/$(shell date +%F)-training-$(JOB).json $(ARGS)

xla-environment: $(XLA_VENV)/.installed

test-xla: xla-environment
	$(XLA_BIN)/python -m pytest $(PARALLEL) tests/xla $(ARGS)

conformance: $(if $(filter xla,$(BACKEND)),xla-environment,$(VENV)/.installed $(if $(filter tpu,$(BACKEND)),$(TPU_SITE)/.installed))
	$(if $(filter tpu,$(BACKEND)),PYTHONPATH=$(CURDIR)/tests/tpu/stand:$(CURDIR)/$(TPU_SITE) TORCH_DEVICE_BACKEND_AUTOLOAD=0) \
	  $(if $(filter xla,$(BACKEND)),$(XLA_BIN),$(BIN))/isotrain conformance --backend $(BACKEND) $(ARGS)

$(VENV)/.installed-docs: pyproject.toml constraints.txt $(VENV)/.installed-dev
	$(BIN)/python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb")); \
	  print(*p["project"]["optional-dependencies"]["docs"], sep="\n")' > $@.txt
	$(PIP) --requirement $@.txt
	@touch $@

# First what pages and workflows name: commands, keys, files, links. Then the site, whose build holds its links, too.
docs: $(VENV)/.installed-docs
	@PYTHONPATH=tests $(BIN)/python -m support.pages
	@# The packages alone: all folders beneath a package are read, and the checkout has environments beside them.
	@rm -rf build/documented && mkdir -p build/documented/isotrain
	@ln -s $(CURDIR)/__init__.py $(patsubst %/__init__.py,$(CURDIR)/%,$(wildcard */__init__.py)) build/documented/isotrain
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs --quiet build --site-dir build/site
	@echo "the site: build/site/index.html"

$(VENV)/.installed-release: pyproject.toml setup.py constraints.txt $(BIN)/python
	$(BIN)/python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb")); \
	  print(*p["project"]["optional-dependencies"]["release"], *p["build-system"]["requires"], sep="\n")' > $@.txt
	$(PIP) --requirement $@.txt
	@touch $@

# The wheels are built from what the source distribution holds.
wheels: $(VENV)/.installed-release
	rm -rf dist build/wheels
	$(BIN)/python -m build --no-isolation --sdist --outdir dist .
	mkdir -p build/wheels && tar --extract --strip-components 1 --directory build/wheels --file dist/isotrain-*.tar.gz
	ISOTRAIN_PURE=1 $(BIN)/python -m build --no-isolation --wheel --outdir dist build/wheels
	rm -rf build/wheels/build
	CC="$(CURDIR)/$(CROSS)" CXX="$(CURDIR)/$(CROSS)" \
	  $(BIN)/python -m build --no-isolation --wheel --outdir build/wheels/linux build/wheels
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair --plat manylinux2014_x86_64 --wheel-dir dist build/wheels/linux/*.whl
	@ls -l dist

# pip's options in ARGS: make wheel-trial PYTHONS="python3.11 python3.12" ARGS="--constraint constraints.txt".
PYTHONS ?= $(PYTHON)
wheel-trial:
	$(PYTHON) tests/support/wheel_trial.py dist/*-manylinux*.whl --pythons $(PYTHONS) --pip='$(ARGS)'

check: lint types

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	@# The checkout's folder may have any name; under this one its modules are called isotrain.*, as when installed.
	@mkdir -p build/types && ln -sfn ../.. build/types/isotrain
	$(BIN)/mypy

quick: check
	$(BIN)/python -m pytest $(PARALLEL) -m core $(ARGS)

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
