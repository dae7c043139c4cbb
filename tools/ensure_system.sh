#!/usr/bin/env bash
# Make sure of the programs outside Python that the tests (or, with --bench, the benchmark) drive.
# As root on a Debian-like system what is missing is installed; otherwise it is named and the script fails.
set -euo pipefail

missing=()
need() { # need PACKAGES COMMAND...: any one of the commands will do
    local packages="$1" command
    shift
    for command in "$@"; do
        if compgen -G "$command" >/dev/null || command -v "$command" >/dev/null 2>&1; then
            return
        fi
    done
    # shellcheck disable=SC2206 # a list of packages on purpose
    missing+=($packages)
}

PATH="$PATH:/usr/sbin:/sbin"
case "${1:-}" in
    --bench)
        need wrk wrk
        need nginx nginx
        ;;
    "")
        need postgresql initdb "/usr/lib/postgresql/*/bin/initdb"
        need chromium chromium chromium-browser google-chrome
        need nodejs node
        need npm npm
        need curl curl
        ;;
    *)
        echo "usage: ensure_system.sh [--bench]" >&2
        exit 2
        ;;
esac

if [ "${#missing[@]}" -eq 0 ]; then
    exit 0
fi
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "Missing system packages: ${missing[*]}" >&2
    echo "Install them (Debian names), or run this once as root:  apt-get install ${missing[*]}" >&2
    exit 1
fi

echo "Installing system packages: ${missing[*]}"
log="$(mktemp)"
trap 'rm -f "$log"' EXIT
export DEBIAN_FRONTEND=noninteractive
apt=(apt-get -qq -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3)
if ! { "${apt[@]}" update && "${apt[@]}" install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
    tail -n 30 "$log" >&2
    echo "Could not install: ${missing[*]}" >&2
    exit 1
fi
