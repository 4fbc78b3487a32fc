#!/bin/sh
# A few commands of the last commit where everything around them is strange: a path with
# spaces, a clone with core.autocrlf=true, variables and modules of other programs, and
# four locales. What is tried is told; the first failure ends it.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
unset MAKEFLAGS MAKELEVEL ARGS PROMPT CORPUS OUT MODEL MINE

fail() { printf 'hostile: %s\n' "$1" >&2; exit 1; }

# make, with the environment that is there already, or a failure that says where.
try() {
    make -s -o .venv/.ready "$@" >"$scratch/said" 2>&1 && return
    cat "$scratch/said" >&2
    fail "make $* failed in the locale ${LC_ALL:-$LANG}"
}

git -c core.autocrlf=true clone -q "$root" "$scratch/with spaces"
cd "$scratch/with spaces"
ln -s "$root/.venv" .venv
if grep -q "$(printf '\r')" setup.sh simple_llm.md; then
    fail "git wrote CR LF in spite of .gitattributes"
fi

mkdir "$scratch/theirs"
for module in json random numpy argparse typing pytest; do
    echo "raise SystemExit('this is not the $module that was meant: ' + __file__)" |
        tee "$scratch/theirs/$module.py" >"$module.py"
done
export PYTHONPATH="$scratch/theirs" PYTHONHOME="$scratch" PYTHONSAFEPATH=1 PYTHONOPTIMIZE=2
export PYTHONWARNINGS=error LANG=C LOCPATH="$scratch/locales"

mkdir "$LOCPATH"
for locale in C C.UTF-8 en_US.UTF-8 en_US.ISO-8859-1; do
    case $locale in en_*)
        if ! localedef -i en_US -f "${locale#en_US.}" "$LOCPATH/$locale" 2>/dev/null; then
            echo "hostile: $locale cannot be made here (localedef), and is passed over" >&2
            continue
        fi ;;
    esac
    export LC_ALL="$locale"
    echo "hostile: tangle, tokenize, chat in $locale" >&2
    try tangle
    try tokenize MODEL=tests/trained PROMPT="$(printf 'anna took d\351j\340 \303\251')"
    printf 'anna took the key .\nwhat about anna ?\nd\351j\340 vu ?\nwhat about anna ?\n' |
        try chat MODEL=tests/trained
    test "$(grep -c '^the key$' "$scratch/said")" -ge 2 || fail "chat forgets in $locale"
done
echo "hostile: info, captions, chapter, set-up and some tests in ${LC_ALL}" >&2
try info MODEL=tests/trained
try captions
try chapter N=2
export HOSTILE=1
try test ARGS="-k 'set_up_ends or emoji or tokenize_shows or captions_stand'"
