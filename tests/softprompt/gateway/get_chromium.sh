#!/usr/bin/env bash
# Install Chromium from Debian's package for the page's tests, if it is missing. It needs dozens of shared libraries, so unpacking alone is not enough.
# If it can't be installed, the script prints a line and succeeds; the tests are then skipped with a message.
set -euo pipefail
! command -v chromium >/dev/null || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "NO CHROMIUM: install the package chromium; the page will not be tried in a browser" >&2
    exit 0
fi
install() { DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null 2>&1; }
install || { apt-get update -qq >/dev/null 2>&1 && install; } || echo "NO CHROMIUM: apt-get can't install it; the page will not be tried in a browser" >&2
