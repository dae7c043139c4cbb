#!/usr/bin/env bash
# Make the virtual environment $1 with a Python of at least 3.11, if it is not there yet.
# PYTHON=/path/to/python chooses the interpreter.
set -euo pipefail
venv="${1:?usage: ensure_venv.sh DIRECTORY}"

if [ -x "$venv/bin/python" ] && "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    exit 0
fi

usable() {
    command -v "$1" >/dev/null 2>&1 && "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

python=""
for candidate in ${PYTHON:-python3.13 python3.12 python3.11 python3.14 python3}; do
    if usable "$candidate"; then
        python="$candidate"
        break
    fi
done
if [ -z "$python" ]; then
    echo "Hoosh needs Python 3.11 or newer; none was found (looked for: ${PYTHON:-python3.13 python3.12 python3.11 python3.14 python3})." >&2
    exit 1
fi

# Debian ships venv apart from Python, so the usual way may fail on a machine that could do it otherwise.
made_by() {
    rm -rf "$venv"
    "$@" >/dev/null 2>&1 && "$venv/bin/python" -m pip --version >/dev/null 2>&1
}
by_downloaded_virtualenv() {
    local borrowed
    borrowed="$(mktemp -d)"
    "$python" -m pip install -q --disable-pip-version-check --target "$borrowed" virtualenv &&
        PYTHONPATH="$borrowed" "$python" -m virtualenv "$venv"
    local status=$?
    rm -rf "$borrowed"
    return "$status"
}
if made_by "$python" -m venv "$venv" ||
    made_by "$python" -m virtualenv "$venv" ||
    made_by uv venv -q --seed --python "$python" "$venv" ||
    made_by by_downloaded_virtualenv; then
    exit 0
fi

rm -rf "$venv"
version="$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
cat >&2 <<MESSAGE
Could not make a virtual environment with $python: neither its venv module, virtualenv, uv nor pip is at hand.
On Debian or Ubuntu:  apt install python$version-venv
MESSAGE
exit 1
