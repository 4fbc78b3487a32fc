#!/bin/sh
# Make a virtual environment in $1 with what requirements.txt (or $2) asks for.
# With uv if there is one; else with python3 -m venv; else, where that lacks pip (as on
# a bare Debian), with the system's pip.
set -eu
venv=$1
requirements=${2:-requirements.txt}
python=${PYTHON3:-python3}

fail() { printf 'setup: %s\n' "$1" >&2; exit 1; }

command -v "$python" >/dev/null 2>&1 || fail "there is no python3 here: install Python 3.10 or newer"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    fail "Python 3.10 or newer is needed, and this is $("$python" --version 2>&1)"

rm -rf "$venv"
if command -v uv >/dev/null 2>&1 && uv venv --quiet --python "$python" "$venv" &&
    uv pip install --quiet --python "$venv/bin/python" -r "$requirements"; then
    exit 0
fi
rm -rf "$venv"
if "$python" -m venv "$venv" >/dev/null 2>&1; then
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        -r "$requirements" || fail "could not install what $requirements lists: is there a network?"
elif "$python" -m pip --version >/dev/null 2>&1 &&
    rm -rf "$venv" && "$python" -m venv --without-pip "$venv"; then
    "$python" -m pip --python "$venv/bin/python" install --quiet \
        --disable-pip-version-check -r "$requirements" ||
        fail "could not install what $requirements lists: is there a network?"
else
    rm -rf "$venv"
    fail "python3 cannot make virtual environments here: sudo apt install python3-venv"
fi
