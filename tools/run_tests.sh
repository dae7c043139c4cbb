#!/usr/bin/env bash
# All tests on SQLite, then those marked `database` on PostgreSQL. Both always run; fails if either does, and then the
# summary of a failed run is what is printed last.
#
# Tests that start processes or a browser wait for things with deadlines, which a machine that is busy with something
# else can miss. Up to three of these are run once more, alone, where nothing else failed; the first failure stays in
# the output, and the line before the last summary names it. With options there is no second try.
set -uo pipefail
pytest="${1:?usage: run_tests.sh PYTEST [PYTEST OPTIONS]}"
shift
options=("$@")

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

run() { # DATABASE [PYTEST OPTIONS]
    local database="$1"
    shift
    HOOSH_TEST_DATABASE="$database" "$pytest" -q -o cache_dir="$work/$database" "$@" "${options[@]}" 2>&1 | tee "$work/$database.log"
    return "${PIPESTATUS[0]}"
}

run_twice() { # DATABASE [PYTEST OPTIONS]
    run "$@"
    local status=$? failed="$work/$1/v/cache/lastfailed"
    if [ "$status" -ne 1 ] || [ "${#options[@]}" -gt 0 ] || [ "$(grep -c ': true' "$failed")" -gt 3 ]; then
        return "$status"
    fi
    HOOSH_TEST_DATABASE="$1" "$pytest" -q -o cache_dir="$work/$1" --last-failed -m "not (processes or browser)" \
        --collect-only >/dev/null 2>&1
    if [ $? -ne 5 ]; then
        return "$status" # something failed that depends on nothing but itself
    fi
    echo "== Once more, alone: $(grep -o '"tests/[^"]*"' "$failed" | tr '\n' ' ')"
    run "$1" --last-failed
}

echo "== SQLite: every test"
run_twice sqlite
sqlite_status=$?

echo "== PostgreSQL: tests marked database"
run_twice postgres -m database
postgres_status=$?
if [ "$postgres_status" -eq 5 ] && [ "${#options[@]}" -gt 0 ]; then
    postgres_status=0 # none of the chosen tests touches the database
fi

if [ "$sqlite_status" -ne 0 ] && [ "$postgres_status" -eq 0 ]; then
    echo "== The run on SQLite failed:"
    if ! sed -n '/short test summary info/,$p' "$work/sqlite.log" | grep .; then
        tail -n 20 "$work/sqlite.log"
    fi
fi
[ "$sqlite_status" -eq 0 ] && [ "$postgres_status" -eq 0 ]
