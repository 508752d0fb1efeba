# `make demo` and `make test` work in a fresh clone: each does all the set-up that it needs, and only once.
# As root on Debian, packages that are missing come by apt-get; anybody else is told which ones to install.

VENV  := .venv
STAMP := $(VENV)/.stamp
# For the venv. By default the first Python that is new enough and can make one: see the recipe of $(STAMP).
PYTHON ?=
# For pytest, make test ARGS='-k codec'; or the harness, make fuzz ARGS='--seed 7'.
ARGS ?=
# Two processes for each core, as most of them wait for others. Not for a plain user: its tests need a process without threads (tests/kernel/conftest.py).
PARALLEL := $(if $(filter 0,$(shell id -u)),-n $(shell echo $$((2 * $$(nproc)))) --dist worksteal)

# nft and ip are in sbin, which Debian leaves out of a plain user's PATH.
export PATH := $(PATH):/usr/sbin:/sbin

# Shell: install the Debian packages $missing. No daemon is started by it (policy-rc.d), and those that come with it,
# $daemons, are not enabled either: tests run them in boxes of their own.
define INSTALL
if [ -z "$$missing" ]; then \
		:; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "installing$$missing"; \
		export DEBIAN_FRONTEND=noninteractive; \
		if ! [ -e /usr/sbin/policy-rc.d ]; then \
			trap 'rm -f /usr/sbin/policy-rc.d' EXIT; \
			printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d; \
			chmod 755 /usr/sbin/policy-rc.d; \
		fi; \
		apt-get -q update || echo "apt-get update failed: going on with the lists that are here" >&2; \
		apt-get -q -y --no-install-recommends install $$missing && \
		{ [ -z "$$daemons" ] || ! command -v systemctl >/dev/null || systemctl --quiet disable $$daemons; }; \
	else \
		echo "missing, and only root can install it: apt-get install$$missing" >&2; \
	fi
endef

.PHONY: setup packages boot-packages bench-packages demo test faults fuzz stress boot-test lint bench bench-full \
	bench-figures clean always

setup: packages $(STAMP)

demo: setup
	$(VENV)/bin/redirector demo

test: setup
	$(VENV)/bin/python -m pytest $(PARALLEL) $(ARGS)

# The commands killed, and failing, at every system call that matters: some minutes. A sample is part of `make test`.
faults: setup
	$(VENV)/bin/python -m tests.kernel.faults
	$(VENV)/bin/python -m tests.kernel.faults_children

# 200,000 damaged mapping files and netlink answers: some minutes. A sample is part of `make test`.
fuzz: setup
	$(VENV)/bin/python -m tests.fuzz $(ARGS)

# 500 parallel applies, and 500 applies and 500 statuses beside somebody else who commits all the time: some minutes. A
# sample is part of `make test`.
stress: setup
	$(VENV)/bin/python -m tests.kernel.stress

# Redirector at boot, in a virtual machine: two minutes or so, and one more the first time. Root only.
boot-test: setup boot-packages
	$(VENV)/bin/python -m vagrant.boot_test

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy --strict redirector tests vagrant
	MYPYPATH=bench $(VENV)/bin/mypy --strict bench/*.py bench/experiments/*.py
	$(VENV)/bin/lint-imports

# About three minutes; the table, the numbers and the charts go to build/bench. Root only.
bench: setup
	$(VENV)/bin/python bench/bench.py $(ARGS)

# Every experiment, at every size, with more rounds, next to firewalld and all proxies: half an hour or so. It writes
# docs/bench, and from that the figures of README.md and docs/. Let nothing else run meanwhile. Root only.
bench-full: setup bench-packages
	$(VENV)/bin/python bench/bench.py --full --out docs/bench --publish $(ARGS)

# The figures once more, from what docs/bench has: after a change of the pages around them.
bench-figures: setup
	$(VENV)/bin/python bench/bench.py --out docs/bench --republish

# The distribution's own python3 is the one that can have the nftables binding: tests run it as a child process.
packages:
	@missing=; daemons=; \
	command -v nft >/dev/null || missing="$$missing nftables"; \
	command -v ip >/dev/null || missing="$$missing iproute2"; \
	command -v iptables-nft-restore >/dev/null || missing="$$missing iptables"; \
	command -v strace >/dev/null || missing="$$missing strace"; \
	command -v curl >/dev/null || missing="$$missing curl"; \
	command -v authbind >/dev/null || missing="$$missing authbind"; \
	command -v setcap >/dev/null || missing="$$missing libcap2-bin"; \
	command -v pgrep >/dev/null || missing="$$missing procps"; \
	[ -x /lib/systemd/systemd ] || missing="$$missing systemd"; \
	command -v nginx >/dev/null || { missing="$$missing nginx-light"; daemons="$$daemons nginx"; }; \
	[ -e /usr/lib/nginx/modules/ngx_stream_module.so ] || missing="$$missing libnginx-mod-stream"; \
	command -v haproxy >/dev/null || { missing="$$missing haproxy"; daemons="$$daemons haproxy"; }; \
	command -v caddy >/dev/null || { missing="$$missing caddy"; daemons="$$daemons caddy"; }; \
	/usr/bin/python3 -c 'import nftables' 2>/dev/null || missing="$$missing python3-nftables"; \
	/usr/bin/python3 -c 'import ensurepip' 2>/dev/null || missing="$$missing python3-venv"; \
	$(INSTALL)

boot-packages:
	@missing=; daemons=; \
	command -v mmdebstrap >/dev/null || missing="$$missing mmdebstrap"; \
	command -v qemu-system-x86_64 >/dev/null || missing="$$missing qemu-system-x86"; \
	command -v qemu-img >/dev/null || missing="$$missing qemu-utils"; \
	command -v mkfs.ext4 >/dev/null || missing="$$missing e2fsprogs"; \
	$(INSTALL)

# Never installed: the packages would start a firewall and web servers on this machine. See bench/peers.py.
BENCH_PACKAGES := firewalld dbus-daemon socat haproxy nginx libnginx-mod-stream
bench-packages:
	@command -v apt-get >/dev/null || { echo "no apt-get: programs that are missing are not measured" >&2; exit 0; }; \
	mkdir -p .bench-packages/archives/partial && cd .bench-packages && apt-get -q update; \
	apt-get -q -y --no-install-recommends --download-only -o Dir::Cache::archives="$$PWD/archives" \
		install $(BENCH_PACKAGES) && \
	for archive in archives/*.deb; do [ ! -e "$$archive" ] || dpkg-deb -x "$$archive" root || exit 1; done

# The lock holds for the build of our own package, too: pip builds in a place apart, which knows no -c, only the
# environment (PIP_CONSTRAINT up to pip 25.2, PIP_BUILD_CONSTRAINT from there on).
$(STAMP): pyproject.toml constraints.txt $(shell $(VENV)/bin/python -c '' 2>/dev/null || echo always) | packages
	@rm -f $@; \
	if ! $(VENV)/bin/python -c '' 2>/dev/null; then \
		for python in $(PYTHON) python3 /usr/bin/python3 python3.14 python3.13 python3.12 python3.11 none; do \
			"$$python" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; \
		done; \
		if [ "$$python" = none ]; then \
			echo "no Python from 3.11 on that can make a venv: install python3-venv, or say make PYTHON=…" >&2; \
			exit 1; \
		fi; \
		echo "making $(VENV) with $$("$$python" --version)"; \
		"$$python" -m venv --clear $(VENV) || exit 1; \
	fi; \
	PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
		$(VENV)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]' && touch $@

clean:
	rm -rf $(VENV) dist build fuzz-failures .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache \
		vagrant/.boot-test .bench-packages
