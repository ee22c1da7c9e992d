#!/usr/bin/env bash
# Put Prometheus and promtool under .cache/prometheus: linked where they are installed, else out of Debian's package, without installing it.
# Where neither is possible it says so and succeeds: the tests that need them are then skipped, and say so, too.
set -euo pipefail
cd "$(dirname "$0")/../.."
target=.cache/prometheus
[ ! -x "$target/promtool" ] || exit 0
mkdir -p "$target"
if command -v promtool >/dev/null && command -v prometheus >/dev/null; then
    ln -sf "$(command -v promtool)" "$target/promtool"
    ln -sf "$(command -v prometheus)" "$target/prometheus"
    exit 0
fi
if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
    echo "NO PROMETHEUS: neither installed nor is this a Debian; alert rules and dashboards will not be checked" >&2
    exit 0
fi
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
download() { (cd "$work" && apt-get download -qq prometheus >/dev/null 2>&1); }
download || { apt-get update -qq >/dev/null 2>&1 && download; } || {
    echo "NO PROMETHEUS: apt-get can't download the package; alert rules and dashboards will not be checked" >&2
    exit 0
}
dpkg-deb -x "$work"/prometheus_*.deb "$work/root"
cp "$work/root/usr/bin/prometheus" "$target/prometheus"
cp "$work/root/usr/bin/promtool" "$target/promtool.new"
mv "$target/promtool.new" "$target/promtool"  # last, and whole: it is what this script looks for
