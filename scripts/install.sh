#!/bin/sh
# Make .venv and install rlmix into it, once. A stamp says for which pyproject.toml, where and with which extras.
#
#   sh scripts/install.sh dev          what the Makefile does before every target
#   sh scripts/install.sh dev,bench    with the libraries that benchmarks compare with
#
# Another Python: make PYTHON=/path/to/python demo
set -eu
cd "$(dirname "$0")/.."

extras=$1
venv=.venv
stamp="$venv/installed-$extras"
unfinished="$venv/unfinished"

stop() {
    printf 'rlmix: %s\n' "$@" >&2
    exit 1
}

# The fingerprint of what is asked for: these requirements, in this folder.
wanted() {
    "$1" -c 'import hashlib, os, sys
text = open("pyproject.toml", "rb").read() + os.getcwd().encode() + sys.argv[1].encode()
print(hashlib.sha256(text).hexdigest())' "$extras"
}

# A name alone proves nothing (it may be a stub that fails), so each candidate is run.
usable='import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 10))'
find_python() {
    for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3.10 python3 python}; do
        if "$candidate" -c "$usable" >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    stop "no usable Python found (tried: ${PYTHON:-python3.11 python3.12 python3.13 python3.10 python3 python})." \
        "Install Python 3.10 or newer with its venv module (Debian, Ubuntu: apt install python3-venv)," \
        "or name one: make PYTHON=/path/to/python demo"
}

if [ -f "$stamp" ] && [ ! -e "$unfinished" ] && [ "$(cat "$stamp")" = "$(wanted "$venv/bin/python" 2>/dev/null)" ]; then
    exit 0
fi

# Half an installation looks whole to pip, so what was interrupted is made anew.
if [ -e "$unfinished" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    python=$(find_python)
    echo "rlmix: making the environment $venv with $("$python" --version 2>&1)"
    "$python" -m venv --clear "$venv" || stop "$python could not make the environment $venv (see above)."
fi

echo "rlmix: installing into $venv. The first time this downloads about 3 GB (PyTorch with its GPU libraries), needs"
echo "rlmix: 6 GB of disk and takes 2 to 15 minutes, by your connection. Later runs skip it."
: >"$unfinished"
"$venv/bin/python" -m pip install --disable-pip-version-check --editable ".[$extras]" ||
    stop "pip failed (see above). Check the network connection and the free disk space, then repeat the command."

# pip pairs torch and torchvision by version; one that comes from another place can still be of another build.
"$venv/bin/python" -c 'import torch, torchvision' || stop \
    "torch and torchvision were installed, but do not import together (see above): they come from different builds." \
    "Look at the environment variables PIP_FIND_LINKS, PIP_INDEX_URL and PIP_EXTRA_INDEX_URL and at 'pip config list'," \
    "so that pip takes both from one place; then repeat the command."

wanted "$venv/bin/python" >"$stamp"
rm -f "$unfinished"
echo "rlmix: installed."
