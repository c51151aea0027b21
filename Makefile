# make demo    set everything up in .venv and run the main job on the built-in world
# make test    set everything up, then linters, type checker and tests
# make soak    the kill and fuzz loops in their long form, with their counts
# make horovod build horovod for this torch (3 to 8 minutes on two cores, once: the wheel is kept in ~/.cache)
# make lint    linters and type checker alone
# make clean   remove what building and testing left (runs/ and .venv stay)
#
# TORCH chooses the build of torch; pip takes it from where the user's pip configuration says (see README.md).

VENV   = .venv
PYTHON = python3
TORCH ?= torch==2.13.0
PYTEST_FLAGS ?= -n 2 --dist loadscope

BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed
HOROVOD := $(VENV)/.horovod

# One thread for each process, so that two test workers and the processes they start share two cores peacefully.
test soak: export OMP_NUM_THREADS = 1

.PHONY: install horovod system test soak demo lint clean
.DEFAULT_GOAL := install

install: $(STAMP)

# The stamp holds the torch that was asked for: another TORCH installs anew.
ifneq ($(TORCH),$(shell cat $(STAMP) 2>/dev/null))
.PHONY: $(STAMP)
endif

$(STAMP): setup.py pyproject.toml
	@rm -f $@
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "crossmodal needs Python 3.10 or newer; say which with make PYTHON=/path/to/python3" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "no virtual environment could be made (on Debian: apt-get install python3-venv)" >&2; exit 1; }
	$(BIN)/python -m pip install '$(TORCH)'
	@$(BIN)/python -c 'from importlib.metadata import version; print("torch==" + version("torch"))' \
	  > $(VENV)/constraints.txt
	$(BIN)/python -m pip install -c $(VENV)/constraints.txt -e '.[dev]'
	@echo '$(TORCH)' > $@

# The wheel is built for one torch: a new installation of torch takes or builds another.
$(HOROVOD): $(STAMP)
	PYTHON=$(BIN)/python scripts/build_horovod.sh
	@touch $@

horovod: system $(HOROVOD)

# Debian packages that building and the tests need, each named after its command.
SYSTEM := git make g++ zsh ip
PACKAGE_ip := iproute2

system:
	@missing="$(strip $(foreach name,$(SYSTEM),$(if $(shell command -v $(name)),,$(or $(PACKAGE_$(name)),$(name)))))"; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -yq --no-install-recommends $$missing; \
	else \
	  echo "the tests need these system packages; install them and run again:$$missing" >&2; exit 1; \
	fi

lint: install
	$(BIN)/ruff check .
	$(BIN)/mypy

test: system lint horovod
	$(BIN)/python -m pytest -q $(PYTEST_FLAGS)

soak: install horovod
	$(BIN)/python -m pytest -q $(PYTEST_FLAGS) -m soak --soak

demo: install
	$(BIN)/crossmodal demo

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
