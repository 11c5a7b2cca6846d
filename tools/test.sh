#!/usr/bin/env bash
# Sets up .venv (tools/setup.sh) and runs the tests; arguments go to pytest, e.g. bash tools/test.sh -k losses
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash tools/setup.sh report dev
# A process for each core, each with whole files: what a file sets up is set up once.
exec .venv/bin/python -m pytest -n logical --dist loadfile --durations=15 "$@"
