# Everything a person or CI calls. `make` lists the targets; each installs what it needs and says so.

PYTHON  ?= python3
PREFIX  ?= /usr/local
DESTDIR ?=
ARGS    ?=
COMPILED ?=

venv     := .venv
home     := $(PREFIX)/lib/tnat64d
units    := $(notdir $(wildcard systemd/*.service))
compiled := $(filter-out 0,$(COMPILED))
pages    := $(notdir $(wildcard man/*.[1-8]))

.DEFAULT_GOAL := help
.NOTPARALLEL: # prerequisites are made in the order in which they are written
.DELETE_ON_ERROR:
.PHONY: help demo test bench packages-bench check install uninstall clean root python

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: root python packages-demo .stamps/venv ## show an IPv4-only connection with and without tnat64d (root)
	@$(venv)/bin/python -m tests.lab.demo $(ARGS)

test: root python packages-test .stamps/venv .stamps/compiled ## run all tests, or some: ARGS="-k name"; one after the other: ARGS="-n 0" (root)
	@echo "==> tests"
	@sh tests/lab/readable.sh $(venv)/bin/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder $(ARGS)

bench: root python packages-bench .stamps/bench .stamps/compiled ## compare with other proxies, QUICK=1: in 3 minutes, ARGS="--help" (root)
	@$(venv)/bin/python -m benchmarks.run $(if $(filter-out 0,$(QUICK)),--quick) $(ARGS)

check: python packages-check .stamps/venv ## format, lint, types, unit files, direction of imports
	@echo "==> ruff"
	@$(venv)/bin/python -m ruff check --quiet .
	@$(venv)/bin/python -m ruff format --quiet --check .
	@echo "==> mypy --strict"
	@$(venv)/bin/python -m mypy tnat64d tests benchmarks
	@echo "==> unit files, direction of imports"
	@$(venv)/bin/python -m pytest -q tests/test_systemd_units.py tests/test_layering.py

install: python packages-install $(if $(compiled),packages-compile) ## install under PREFIX (/usr/local), DESTDIR before it; COMPILED=1: needs gcc, saves CPU
	@$(PYTHON) -c 'import sys; sys.exit(sys.base_prefix.startswith(("/root/", "/home/")))' \
		|| { echo "$(PYTHON) is in a home directory, which the service cannot read: make install PYTHON=/usr/bin/python3" >&2; exit 1; }
	@echo "==> $(DESTDIR)$(home): the program, in a virtual environment of its own"
	@$(PYTHON) -m venv --clear $(DESTDIR)$(home)
	@copy=$$(mktemp -d) && trap 'rm -rf "$$copy"' EXIT && cp -r pyproject.toml README.md LICENSE tnat64d "$$copy" && \
		$(if $(compiled),HATCH_BUILD_HOOKS_ENABLE=1) \
		$(DESTDIR)$(home)/bin/python -m pip install --quiet --disable-pip-version-check "$$copy"
	@sed -i '1s|^#!.*|#!$(home)/bin/python|' $(DESTDIR)$(home)/bin/tnat64d
	@install -d $(DESTDIR)$(PREFIX)/bin && ln -sfn $(home)/bin/tnat64d $(DESTDIR)$(PREFIX)/bin/tnat64d
	@for file in tnat64.conf tnat64d.toml; do \
		if [ -e $(DESTDIR)/etc/$$file ]; then echo "==> $(DESTDIR)/etc/$$file: kept as it is"; \
		else echo "==> $(DESTDIR)/etc/$$file" && install -D -m 644 etc/$$file $(DESTDIR)/etc/$$file; fi || exit 1; \
	done
	@echo "==> $(DESTDIR)$(PREFIX): unit files, system user, manual pages"
	@for unit in $(units); do \
		install -D -m 644 systemd/$$unit $(DESTDIR)$(PREFIX)/lib/systemd/system/$$unit && \
		sed -i 's|/usr/local/bin/tnat64d|$(PREFIX)/bin/tnat64d|' $(DESTDIR)$(PREFIX)/lib/systemd/system/$$unit || exit 1; \
	done
	@install -D -m 644 systemd/tnat64d.sysusers $(DESTDIR)$(PREFIX)/lib/sysusers.d/tnat64d.conf
	@for page in $(pages); do \
		install -D -m 644 man/$$page $(DESTDIR)$(PREFIX)/share/man/man$${page##*.}/$$page || exit 1; \
	done
	@echo "Next: systemd-sysusers && systemctl daemon-reload && systemctl enable --now tnat64d"

uninstall: ## remove what install put there, except the configuration
	@echo "==> removing tnat64d from $(DESTDIR)$(PREFIX); $(DESTDIR)/etc/tnat64.conf and tnat64d.toml stay"
	@rm -rf $(DESTDIR)$(home)
	@rm -f $(DESTDIR)$(PREFIX)/bin/tnat64d $(DESTDIR)$(PREFIX)/lib/sysusers.d/tnat64d.conf
	@for unit in $(units); do rm -f $(DESTDIR)$(PREFIX)/lib/systemd/system/$$unit; done
	@for page in $(pages); do rm -f $(DESTDIR)$(PREFIX)/share/man/man$${page##*.}/$$page; done

clean: ## remove all that make and the tools made here
	@echo "==> removing $(venv), stamps, caches, builds"
	@rm -rf $(venv) .stamps build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -prune -exec rm -rf {} +

.stamps/venv: pyproject.toml
	@echo "==> $(venv): virtual environment with tnat64d and its development tools"
	@$(venv)/bin/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear $(venv)
	@$(venv)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@mkdir -p $(@D) && touch $@

# mypyc leaves what it makes beside the sources, so it is given others.
.stamps/compiled: .stamps/venv pyproject.toml $(wildcard tnat64d/*.py tnat64d/*/*.py)
	@echo "==> $@: tnat64d with its data plane compiled"
	@rm -rf $@ $@.src && mkdir -p $@.src && cp -r pyproject.toml README.md LICENSE tnat64d $@.src
	@HATCH_BUILD_HOOKS_ENABLE=1 $(venv)/bin/python -m pip install --quiet --disable-pip-version-check \
		--no-deps --target $@ ./$@.src
	@rm -rf $@.src && touch $@

.stamps/bench: .stamps/venv
	@echo "==> $(venv): what the benchmark needs beside it"
	@$(venv)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	@touch $@

packages-bench:
	@bash benchmarks/packages.sh $(PYTHON)

packages-%:
	@bash tests/lab/packages.sh $(PYTHON) $*

root:
	@[ "$$(id -u)" = 0 ] || { echo "make $(MAKECMDGOALS) makes network namespaces and needs root: sudo make $(MAKECMDGOALS)" >&2; exit 77; }

python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		|| { echo "tnat64d needs Python 3.11 or newer; $(PYTHON) is not: make PYTHON=python3.x names another" >&2; exit 1; }
