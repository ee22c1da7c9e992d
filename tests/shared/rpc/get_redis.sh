#!/usr/bin/env bash
# Install Debian's Redis server for the tests of shared limits, if it is missing, without starting its service.
# If it can't be installed, the script prints a line and succeeds; the tests are then skipped with a message.
set -euo pipefail
! command -v redis-server >/dev/null || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "NO REDIS: install redis-server; limits that replicas share will not be tested" >&2
    exit 0
fi
install() { RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends redis-server >/dev/null 2>&1; }
install || { apt-get update -qq >/dev/null 2>&1 && install; } || echo "NO REDIS: apt-get can't install it; limits that replicas share will not be tested" >&2
