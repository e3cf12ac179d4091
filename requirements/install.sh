#!/bin/sh
# Create the virtual environment and install this project with the locked versions: install.sh VENV EXTRAS
# uv installs where the package index has it (20 s in place of 3 min), pip elsewhere. Both are silent for long where
# their output is no terminal, so a line every few seconds shows the progress.
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

busy() { # busy LOG COMMAND...: run it, print a line every 4 s; returns its exit code
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
    wait "$pid"
}

with_uv() { # fails where the index has no uv, where a setting of pip's cannot be translated, and where uv itself fails
    "$venv/bin/python" -m pip install --quiet --constraint requirements/lock.txt uv >"$venv/uv.log" 2>&1 &&
        busy "$venv/install.log" "$venv/bin/python" requirements/uv_install.py \
            --constraint requirements/lock.txt --editable ".[$extras]"
}

with_pip() {
    busy "$venv/install.log" "$venv/bin/python" -m pip install --progress-bar off --prefer-binary \
        --constraint requirements/lock.txt --editable ".[$extras]"
}

python=$(find_python)
echo "== $("$python" --version): virtual environment in $venv, packages of extras [$extras] (some 2.5 GB)"
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
cd "$here"
if ! with_uv; then
    echo "   uv did not install them ($(tail -n 1 "$venv/install.log" 2>/dev/null || tail -n 1 "$venv/uv.log")); pip does, in minutes"
    with_pip || { tail -n 30 "$venv/install.log" >&2; exit 1; }
fi
"$venv/bin/python" -m pip check
