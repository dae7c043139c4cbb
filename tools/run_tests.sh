#!/usr/bin/env bash
# All tests on SQLite, then those marked `database` on PostgreSQL. Both always run; fails if either does, and then the
# summary of a failed run is what is printed last.
set -uo pipefail
pytest="${1:?usage: run_tests.sh PYTEST [PYTEST OPTIONS]}"
shift

log="$(mktemp)"
trap 'rm -f "$log"' EXIT

echo "== SQLite: every test"
HOOSH_TEST_DATABASE=sqlite "$pytest" -q "$@" 2>&1 | tee "$log"
sqlite_status="${PIPESTATUS[0]}"

echo "== PostgreSQL: tests marked database"
HOOSH_TEST_DATABASE=postgres "$pytest" -q -m database "$@"
postgres_status=$?
if [ "$postgres_status" -eq 5 ] && [ "$#" -gt 0 ]; then
    postgres_status=0 # none of the chosen tests touches the database
fi

if [ "$sqlite_status" -ne 0 ] && [ "$postgres_status" -eq 0 ]; then
    echo "== The run on SQLite failed:"
    if ! sed -n '/short test summary info/,$p' "$log" | grep .; then
        tail -n 20 "$log"
    fi
fi
[ "$sqlite_status" -eq 0 ] && [ "$postgres_status" -eq 0 ]
