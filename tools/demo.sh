#!/usr/bin/env bash
# Sets up .venv (tools/setup.sh) and runs the whole method on generated images: baseline, teacher, cache, two students, table.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash tools/setup.sh report
exec .venv/bin/python tools/demo.py "$@"
