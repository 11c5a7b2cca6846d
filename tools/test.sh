#!/usr/bin/env bash
# Sets up .venv (tools/setup.sh) and runs the tests; arguments go to pytest, e.g. bash tools/test.sh -k losses
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash tools/setup.sh report dev
# One process more than cores, because many tests wait for processes that they started. All tests of a file run in the same
# process, so that its fixtures are set up once.
cores=$(.venv/bin/python -c 'from pipelines.cores import usable_cores; print(min(16, usable_cores()))')
exec .venv/bin/python -m pytest -n $((cores + 1)) --dist loadfile --durations=15 "$@"
