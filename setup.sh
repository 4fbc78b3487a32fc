#!/bin/sh
# Make a virtual environment in $1 with what requirements.txt (or $2) asks for.
# With uv if there is one; else with python3 -m venv and its pip, or, where that is missing
# (as on a bare Debian), with the system's pip. The end is an import from the new environment:
# that an installer reports no error proves little.
set -eu
venv=$1
requirements=${2:-requirements.txt}
python=${PYTHON3:-python3}

# Settings that were made for other programs would send packages elsewhere, or let an
# installer find them elsewhere. Those that name an index or a proxy stay. What stands in
# pip.conf is overruled by a variable, or, where that cannot be, by an option (see below).
unset PYTHONPATH PYTHONHOME PYTHONPLATLIBDIR PYTHONOPTIMIZE PYTHONINSPECT PYTHONWARNINGS \
    VIRTUAL_ENV CONDA_PREFIX
unset PIP_TARGET PIP_PREFIX PIP_ROOT PIP_REQUIREMENT PIP_EDITABLE \
    PIP_PLATFORM PIP_ABI PIP_IMPLEMENTATION PIP_PYTHON_VERSION
unset UV_SYSTEM_PYTHON UV_PYTHON UV_PROJECT UV_WORKING_DIRECTORY UV_WORKING_DIR UV_REQUIRE_HASHES
export PIP_USER=0 PIP_REQUIRE_VIRTUALENV=0 PIP_DRY_RUN=0 PIP_NO_DEPS=0 PIP_REQUIRE_HASHES=0
export UV_VENV_CLEAR=1 PIP_QUIET=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_PYTHON="$venv/bin/python"

fail() { printf 'setup: %s\n' "$1" >&2; exit 1; }

newline='
'
# Run a tool in silence. If it fails, its last line is in $said, and $all is all it said.
try() {
    all=$("$@" 2>&1) && return
    said=${all##*"$newline"}
    case $said in *"Resource temporarily unavailable"* | *"start new thread"* | *"annot fork"*)
        said="no more processes can be started here (ulimit -u): $said" ;;
    esac
    return 1
}

# Make the directory anew, which is how one learns whether it can be written.
fresh() {
    try rm -rf "$venv" && try mkdir "$venv" || fail "cannot write $venv in $(pwd): $said"
}

# Import, without this directory or anybody's variables, each package of the list.
works() {
    try "$venv/bin/python" -I -c '
import importlib.metadata, re, sys
for line in open(sys.argv[1], encoding="utf-8"):
    if name := re.match(r"[\w.-]+", line):
        for file in importlib.metadata.files(name[0]):
            if file.parts[1:] == ("__init__.py",):
                __import__(file.parts[0])
' "$requirements"
}

with_uv() {
    try uv venv --quiet --python "$python" "$venv" &&
        try uv pip install --quiet --python "$venv/bin/python" -r "$requirements" && works
}

command -v "$python" >/dev/null 2>&1 || fail "there is no $python here: install Python 3.10 or newer"
try "$python" -c 'import sys; sys.version_info < (3, 10) and sys.exit(sys.version.split()[0])' ||
    fail "Python 3.10 or newer is needed, and $python says: $said"
python=$("$python" -I -c 'import sys; print(sys._base_executable)')  # $venv may be in use

fresh
trap 'test $? = 0 || rm -rf "$venv"' EXIT
if command -v uv >/dev/null 2>&1; then
    if with_uv; then
        exit
    fi
    printf 'setup: with uv this failed, so pip is tried: %s\n' "$said" >&2
    fresh
fi
try "$python" -I -m venv --without-pip "$venv" || fail "python -m venv cannot make $venv: $said"
if try "$python" -I -c 'import ensurepip'; then
    try "$venv/bin/python" -I -m ensurepip --default-pip || fail "there is no pip in $venv: $said"
    set -- "$venv/bin/python" -I -m pip
elif try "$python" -I -m pip --version; then
    set -- "$python" -I -m pip --python "$venv/bin/python"
else
    fail "this Python has neither ensurepip nor pip (on Debian: sudo apt install python3-venv): $said"
fi
prefix=$("$venv/bin/python" -I -c 'import sys; print(sys.prefix)')
if ! try "$@" install --target= --root=/ --prefix="$prefix" -r "$requirements"; then
    printf '%s\n' "$all" >&2
    fail "pip could not install what $requirements lists: $said"
fi
works || fail "pip reported no error, but $venv lacks what $requirements lists: $said"
