#!/usr/bin/env bash
# Sets up .venv at the root of the clone with the versions of constraints.txt, and FFCV and DALI where they can be had.
#   bash tools/setup.sh [EXTRA ...]              extras of setup.cfg beyond the base, e.g. report export timm dev
#   PYTHON=python3.12 bash tools/setup.sh        another interpreter than the first that is new enough
# Once done, it returns at once until a file it depends on changes. What pip and apt say goes to .venv/setup.log.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
cd "$root"
venv=$root/.venv
log=$venv/setup.log
stamp=$venv/setup.stamp # first line: hash of all that set-up depends on; then one line for each part that is done
pip=("$venv/bin/python" -m pip install --progress-bar off --no-build-isolation -c constraints.txt)
export DEBIAN_FRONTEND=noninteractive PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1

say() { echo "setup: $*"; }

fail() {
    say "$@" >&2
    exit 1
}

have() { grep -qsxF "$1" "$stamp"; }
mark() { echo "$1" >>"$stamp"; }
logged() { "$@" >>"$log" 2>&1 </dev/null; }

must() {
    logged "$@" && return
    tail -n 25 "$log" >&2
    fail "this failed: $*; the whole log is $log"
}

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    local candidate candidates=(python3 python3.13 python3.12 python3.11)
    [[ -z ${PYTHON:-} ]] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        if new_enough "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    fail "Python 3.11 or newer is needed, but none of these is: ${candidates[*]}." \
        "Install one, or type: PYTHON=/path/to/python3.11 bash tools/setup.sh"
}

# The Debian packages that are missing: to make a virtual environment, and to build FFCV, each for the Python given.
missing_for_venv() {
    "$1" -c 'import ensurepip' 2>/dev/null || "$1" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'
}

missing_for_ffcv() {
    command -v pkg-config >/dev/null || echo pkg-config
    pkg-config --exists libturbojpeg 2>/dev/null || echo libturbojpeg0-dev
    pkg-config --exists opencv4 2>/dev/null || echo libopencv-dev
    command -v c++ >/dev/null || echo build-essential
    "$1" -c 'import os, sys, sysconfig
if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
    print("python%d.%d-dev" % sys.version_info[:2])'
}

# Tests look at the report's page with it; DejaVu, because a browser without any font draws no text.
missing_for_pages() {
    local candidate
    for candidate in chromium chromium-browser google-chrome google-chrome-stable; do
        command -v "$candidate" >/dev/null && return
    done
    echo chromium fonts-dejavu-core
}

# Installs system packages as root on Debian and Ubuntu; returns 1 elsewhere, or when apt fails.
system_install() {
    [[ $EUID == 0 ]] && command -v apt-get >/dev/null || return 1
    say "installing system packages: $*"
    logged apt-get update && logged apt-get install -y --no-install-recommends "$@"
}

by_hand() { echo "sudo apt-get update && sudo apt-get install -y $* && bash tools/setup.sh"; }

make_venv() {
    local python missing
    python=$(find_python)
    missing=$(missing_for_venv "$python")
    if [[ -n $missing ]] && ! system_install "$missing"; then
        fail "$python cannot make a virtual environment. Type: $(by_hand "$missing")"
    fi
    say "making .venv with $python ($("$python" --version))"
    must "$python" -m venv "$venv"
}

check_venv() {
    local made
    made=$(sed -n 's/^command = //p' "$venv/pyvenv.cfg") # ends with the folder it was made for
    if ! new_enough "$venv/bin/python" || [[ -n $made && $made != *"$venv" ]]; then
        fail "$venv is broken, older than Python 3.11 or was moved. Type: rm -r '$venv' && bash tools/setup.sh"
    fi
}

# optional NAME EXTRA MODULE: a part that the trainer can do without; a failure is remembered, not tried every time.
optional() {
    if ! have "$1 failed"; then
        say "installing $1"
        if logged "${pip[@]}" -e ".[$2]" && logged "$venv/bin/python" -c "import $3"; then
            mark "$1"
            return
        fi
        mark "$1 failed"
    fi
    say "$1 left out: it did not install (see .venv/setup.log); other backends are there." \
        "To try again: rm .venv/setup.stamp && bash tools/setup.sh"
}

install_ffcv() {
    local missing
    mapfile -t missing < <(missing_for_ffcv "$venv/bin/python")
    if ((${#missing[@]})) && ! system_install "${missing[@]}"; then
        say "FFCV left out: its build needs ${missing[*]}. To add it: $(by_hand "${missing[@]}")"
        return
    fi
    optional FFCV ffcv ffcv
}

# A failure is remembered, as in `optional`.
install_browser() {
    local missing
    read -r -a missing < <(missing_for_pages) || true
    if ((${#missing[@]} == 0)); then
        mark browser
    elif ! have "browser failed" && system_install "${missing[@]}"; then
        mark browser
    else
        have "browser failed" || mark "browser failed"
        say "Chromium left out: the tests that look at pages skip. To add it: sudo apt-get install -y ${missing[*]}"
    fi
}

install_dali() {
    local cuda
    cuda=$("$venv/bin/python" -c 'import torch; print((torch.version.cuda or "13").split(".")[0])')
    optional DALI "dali-cu$cuda" nvidia.dali
}

# timm needs torchvision, which PyPI has for the GPU build of PyTorch alone: beside a CPU build it does not import.
check_timm() {
    logged "$venv/bin/python" -c "import timm" && return
    local version
    version=$(sed -n 's/^torch==//p' constraints.txt)
    say "timm needs torchvision, which PyPI has for the GPU build of PyTorch alone:" \
        "installing that build in place of the one that is there (5 GB)"
    must "${pip[@]}" "torch===$version" # === tells 2.0 from 2.0+cpu, which == does not
    must "$venv/bin/python" -c "import timm"
}

mkdir -p "$venv"
hash=$({ echo "$root"; cat setup.cfg pyproject.toml constraints.txt tools/setup.sh; } | sha256sum)
if [[ $(head -n 1 "$stamp" 2>/dev/null) != "$hash" ]]; then
    : >"$log"
    [[ -e $venv/pyvenv.cfg ]] || make_venv
    check_venv
    say "installing PyTorch and the rest into .venv (minutes, the first time)"
    must "${pip[@]}" torch setuptools # setuptools: builds this package and FFCV, whose build takes the one that is there
    must "${pip[@]}" -e .
    echo "$hash" >"$stamp"
fi

extras=()
for extra in "$@"; do have "$extra" || extras+=("$extra"); done
if ((${#extras[@]})); then
    say "installing the extras ${extras[*]}"
    must "${pip[@]}" -e ".[$(IFS=,; echo "${extras[*]}")]"
    [[ " ${extras[*]} " != *" timm "* ]] || check_timm
    printf '%s\n' "${extras[@]}" >>"$stamp"
fi
have FFCV || install_ffcv
have DALI || install_dali
[[ " $* " != *" dev "* ]] || have browser || install_browser
