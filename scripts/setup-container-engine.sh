#!/bin/sh
# Makes sure that this machine can run the tests of the container runtime: podman, a runtime that
# also takes cgroup layouts crun refuses (runc), bridged networks, and a static busybox to build
# an image from. Does nothing where all is there. Talks to stderr, and only when it has work to do.
#
# Installs by apt as root on Debian and its kin; elsewhere it names what is missing and fails.
set -eu

has() { command -v "$1" >/dev/null 2>&1; }

# Podman before 4 sets networks up with CNI, later ones with netavark; either will do.
has_network() {
    for file in /usr/lib/cni/bridge /usr/libexec/cni/bridge /opt/cni/bin/bridge \
        /usr/lib/podman/netavark /usr/libexec/podman/netavark; do
        [ -x "$file" ] && return 0
    done
    return 1
}

# The `busybox` package is linked dynamically and would not start in an empty image.
has_static_busybox() {
    has busybox && ! ldd "$(command -v busybox)" 2>/dev/null | grep -q '=>'
}

missing() {
    has podman || echo podman
    has runc || echo runc
    has conmon || [ -x /usr/libexec/podman/conmon ] || echo conmon
    has_network || echo containernetworking-plugins
    has iptables || echo iptables
    has_static_busybox || echo busybox-static
}

# Administrators' tools live where a plain user's PATH does not look.
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

packages=$(missing | tr '\n' ' ')
[ -n "$packages" ] || exit 0

if has apt-get && [ "$(id -u)" = 0 ]; then
    echo "installing: $packages" >&2
    export DEBIAN_FRONTEND=noninteractive
    {
        # shellcheck disable=SC2086 # one word per package
        apt-get install -qq -y --no-install-recommends $packages || {
            apt-get update -qq
            apt-get install -qq -y --no-install-recommends $packages
        }
    } >&2
    packages=$(missing | tr '\n' ' ')
    [ -n "$packages" ] || exit 0
    echo "still missing after apt-get install: $packages" >&2
    exit 1
fi

echo "the container runtime's tests need these packages: $packages" >&2
echo "install them, for instance as root: apt-get install $packages" >&2
exit 1
