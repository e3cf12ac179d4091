#!/bin/sh
# Create the virtual environment and install this project with the locked versions: install.sh VENV EXTRAS
# pip is silent for minutes where its output is no terminal, so a line every few seconds says how far it is.
set -eu
venv=$1
extras=$2
here=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)

find_python() {
    for candidate in ${PYTHON:-python3.11 python3.12 python3.10 python3}; do
        "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null || continue
        command -v "$candidate"
        return
    done
    echo "no Python 3.10, 3.11 or 3.12 found; name one: make PYTHON=/path/to/python" >&2
    exit 2
}

busy() { # busy LOG COMMAND...: run it, one line every 4 s, its last words where it fails
    log=$1
    shift
    "$@" >"$log" 2>&1 &
    pid=$!
    trap 'kill "$pid" 2>/dev/null; exit 130' INT TERM HUP
    seconds=0
    while kill -0 "$pid" 2>/dev/null; do
        sleep 1
        seconds=$((seconds + 1))
        [ $((seconds % 4)) -ne 0 ] || printf '   %3d s  %.100s\n' "$seconds" "$(tail -n 1 "$log")"
    done
    trap - INT TERM HUP
    wait "$pid" || { tail -n 30 "$log" >&2; exit 1; }
}

python=$(find_python)
echo "== $("$python" --version): virtual environment in $venv, packages of extras [$extras] (some 2.5 GB, minutes)"
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
cd "$here"
busy "$venv/install.log" "$venv/bin/python" -m pip install --progress-bar off --prefer-binary \
    --constraint requirements/lock.txt --editable ".[$extras]"
"$venv/bin/python" -m pip check
