#!/usr/bin/env bash
# The tests: the same environment as loop.sh plus tests/requirements.txt. Further arguments go to pytest.
#
#   bash tests/run.sh                 all of them
#   bash tests/run.sh -m "not engine" without those that start vLLM
set -euo pipefail
cd "$(dirname "$0")/.."
if [[ -z ${PYTHON:-} ]]; then bash setup.sh requirements-extra.txt tests/requirements.txt; PYTHON=.venv/bin/python; fi
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE} OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # as loop.sh with tiny models
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
# Two tests at a time: many start processes one after the other. -n 0 in the arguments runs them in this process.
exec "$PYTHON" -m pytest -n 2 --dist worksteal "$@"
