#!/usr/bin/env bash
# Runs a command in a network of its own: loopback, and the addresses 203.0.113.45 to .99 on it.
#
#   scripts/namespace.sh .venv/bin/python -m pytest tests/kube
#
# Kubernetes refuses loopback addresses wherever an endpoint stands. These are set aside for
# documentation (RFC 5737), so nobody in the world answers at them, and in here the simulated
# markets' machines (203.0.113.45) and the virtual nodes (203.0.113.46 and up) do. Needs root, or a
# kernel that lets users make namespaces. Nothing in here reaches the outside.
set -euo pipefail
[[ $# -gt 0 ]] || { echo "usage: scripts/namespace.sh COMMAND..." >&2; exit 2; }

if [[ -z ${_GP4U_NAMESPACE:-} ]]; then
  as_root=()
  [[ $(id -u) == 0 ]] || as_root=(--user --map-root-user)
  unshare "${as_root[@]}" --net true 2>/dev/null || {
    echo "namespace: this user may not make a network namespace; run as root, or allow it" >&2
    echo "namespace: with: sysctl kernel.unprivileged_userns_clone=1" >&2
    exit 1
  }
  _GP4U_NAMESPACE=1 exec unshare "${as_root[@]}" --net -- "${BASH_SOURCE[0]}" "$@"
fi

unset _GP4U_NAMESPACE
ip link set lo up
for last in {45..99}; do
  ip address add "203.0.113.$last/32" dev lo
done
exec "$@"
