#!/bin/sh
# Puts promtool, which checks alert rules and runs their tests, into .cache/promtool. It is taken out
# of Debian's `prometheus` package without installing that, which would start a server. Does nothing
# where there is one already. Talks to stderr, and only when it has work to do.
set -eu
cd "$(dirname "$0")/.."

target=.cache/promtool
if command -v promtool >/dev/null 2>&1 || "$target/promtool" --version >/dev/null 2>&1; then
    exit 0
fi
if ! command -v apt-get >/dev/null 2>&1; then
    echo "the alert rules' tests need promtool on the path; it comes with Prometheus" >&2
    exit 1
fi

echo "getting promtool out of Debian's package of Prometheus" >&2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
{
    (cd "$work" && apt-get download -qq -o APT::Sandbox::User=root prometheus) || {
        apt-get update -qq # as root; without, the lists have to be there
        (cd "$work" && apt-get download -qq -o APT::Sandbox::User=root prometheus)
    }
    dpkg-deb -x "$work"/prometheus_*.deb "$work/tree"
} >&2
mkdir -p "$target"
mv "$work/tree/usr/bin/promtool" "$target/promtool"
"$target/promtool" --version >/dev/null 2>&1 || {
    echo "promtool of Debian's package does not run here" >&2
    exit 1
}
