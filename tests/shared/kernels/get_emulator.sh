#!/usr/bin/env bash
# Install Debian's ARM emulator and cross compiler (270 MB) for the tests of the NEON kernels, if they are missing.
# If they can't be installed, the script prints a line and succeeds; the tests are then skipped with a message.
set -euo pipefail
! { command -v qemu-aarch64 && command -v aarch64-linux-gnu-gcc; } >/dev/null || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "NO ARM EMULATOR: install qemu-user, gcc-aarch64-linux-gnu and libc6-dev-arm64-cross; the NEON kernels will not be tested" >&2
    exit 0
fi
install() { DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends qemu-user gcc-aarch64-linux-gnu libc6-dev-arm64-cross >/dev/null 2>&1; }
install || { apt-get update -qq >/dev/null 2>&1 && install; } || echo "NO ARM EMULATOR: apt-get can't install it; the NEON kernels will not be tested" >&2
