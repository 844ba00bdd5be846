#!/bin/sh
# Makes the virtual environment and installs the project with everything that its tests need.
# Usage: tools/setup.sh PYTHON VENV. On Debian, as root, it also installs the system packages that are missing.
set -eu
python=$1
venv=$2

apt_install() {
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "missing system package(s): $* -- install them, then run make again" >&2
        return 1
    fi
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$@"
}

if ! command -v "$python" >/dev/null; then
    apt_install python3
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "$python is $("$python" -V): spoolagent needs Python 3.11 or later; give another with make PYTHON=..." >&2
    exit 1
fi
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    apt_install python3-venv
fi
# One step of the tests asks systemd itself whether the units are right; they say so where it is missing.
command -v systemd-analyze >/dev/null || apt_install systemd || true

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --editable '.[dev]'
# Bytecode now: importing a writer must not wait for the compiler, also where PYTHONDONTWRITEBYTECODE is set.
"$venv/bin/python" -m compileall -q spoolagent writers receivers || true
