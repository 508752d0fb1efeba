#!/bin/bash
# Installs Redirector from a checkout and applies a mapping file, on Debian, as root: now, and at each boot from then on.
# May be run again at any time.
#
#   provision.sh [--image] [CHECKOUT] [FILE]
#
# --image    this is the root of an image, in a chroot: nothing is applied, the first boot will do it
# CHECKOUT   the folder with pyproject.toml; by default the one above this script
# FILE       the mapping file to apply; by default rules/node.toml of the checkout. It is kept as
#            /etc/redirector/mappings.toml, the file that redirector takes when none is named.
set -euo pipefail

live=true
if [ "${1:-}" = --image ]; then
    live=false
    shift
fi
checkout=$(realpath "${1:-$(dirname "${BASH_SOURCE[0]}")/..}")
file=$(realpath "${2:-$checkout/rules/node.toml}")
prefix=/opt/redirector

if [ "$(id -u)" -ne 0 ]; then
    echo "provision.sh: must be run as root" >&2
    exit 77
fi
umask 022 # redirector refuses a mapping file that others than root may write

# nftables is for looking at the result (nft list ruleset): redirector itself talks to the kernel.
missing=()
command -v nft >/dev/null || missing+=(nftables)
/usr/bin/python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
if [ "${#missing[@]}" -gt 0 ]; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get -q update
    apt-get -q -y --no-install-recommends install "${missing[@]}"
fi

if ! "$prefix/bin/python" -c '' 2>/dev/null; then
    /usr/bin/python3 -m venv --clear "$prefix"
fi
# In the versions that the tests ran with; by the environment, so that the lock holds for the build of the package, too,
# and by its bare name, since pip takes a space for the end of it.
cd "$checkout"
export PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt
"$prefix/bin/python" -m pip install -q --disable-pip-version-check .
ln -sfn "$prefix/bin/redirector" /usr/local/bin/redirector

install -d -m 0755 /etc/redirector
install -m 0644 "$file" /etc/redirector/mappings.toml

cd /
if $live; then
    "$prefix/bin/redirector" apply
    "$prefix/bin/redirector" status
fi
"$prefix/bin/redirector" service install
if $live && [ -d /run/systemd/system ]; then
    systemctl start redirector.service # what it loads is there already; but from now on it follows nftables.service
fi
