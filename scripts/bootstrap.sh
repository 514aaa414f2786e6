#!/usr/bin/env bash
# Make .venv hold exactly what uv.lock says, from nothing or from whatever is there.
#
#   scripts/bootstrap.sh run    what the program needs
#   scripts/bootstrap.sh dev    that, and what its tests and checks need (the default)
#
# Idempotent, and done in a fraction of a second when nothing has changed. Needs a Python >= 3.11
# and the Python package index; as root on Debian or Ubuntu it installs Python by itself. All it has
# to say goes to stderr.
set -euo pipefail
exec 1>&2
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly UV_VERSION=0.13.9
readonly WANT=${1:-dev}

say() { printf 'bootstrap: %s\n' "$*"; }
die() { say "$*"; exit 1; }

case $WANT in run | dev) ;; *) die "usage: scripts/bootstrap.sh [run|dev]" ;; esac

# What .venv was made from. The stamp of `dev` also stands for `run`.
fingerprint=$(sha256sum uv.lock pyproject.toml | sha256sum | cut -d' ' -f1)
is_made() { [[ -x .venv/bin/python && -f .venv/made-$1 && $(<".venv/made-$1") == "$fingerprint" ]]; }
if is_made "$WANT" || is_made dev; then
  .venv/bin/python -c '' 2>/dev/null && exit 0
  say "the Python that .venv was made with is gone; making it again"
  rm -rf .venv
fi

mkdir -p .cache
if command -v flock >/dev/null; then
  exec 9>.cache/bootstrap.lock
  flock 9 # two runs at once would take turns in the same .venv
fi

apt_install() { # as root on Debian or Ubuntu; else false
  [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null || return 1
  say "installing $* with apt-get"
  export DEBIAN_FRONTEND=noninteractive
  apt-get install -y --no-install-recommends "$@" </dev/null && return
  apt-get update </dev/null && apt-get install -y --no-install-recommends "$@" </dev/null
}

find_python() { # prints the path of the first that is new enough and really runs
  local name
  for name in ${PYTHON:-} python3 python3.13 python3.12 python3.11 python3.14; do
    command -v "$name" >/dev/null || continue
    "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11)); ' 2>/dev/null || continue
    "$name" -c 'import sys; print(sys.executable)' && return
  done
  return 1
}

python=$(find_python) || {
  apt_install python3 python3-venv || true
  python=$(find_python) || die "no Python >= 3.11 found; install one (Debian, Ubuntu: apt-get install python3 python3-venv)"
}

# uv at its pinned version: the one on the path if it is that one, else one of our own, put there by
# pip. Debian ships Python without ensurepip, so a virtual environment may not get a pip.
is_uv() { [[ $("$1" --version 2>/dev/null) == "uv $UV_VERSION"* ]]; }

uv_in_venv() {
  rm -rf .cache/uv
  "$python" -m venv .cache/uv >/dev/null 2>&1 &&
    .cache/uv/bin/python -m pip install --quiet --disable-pip-version-check "uv==$UV_VERSION"
}

uv_in_folder() {
  rm -rf .cache/uv
  "$python" -m pip install --quiet --disable-pip-version-check --root-user-action=ignore \
    --target .cache/uv "uv==$UV_VERSION"
}

uv=$(command -v uv || true)
if [[ -z $uv ]] || ! is_uv "$uv"; then
  uv=.cache/uv/bin/uv
  if ! is_uv "$uv"; then
    say "getting uv $UV_VERSION"
    if ! "$python" -c 'from ensurepip import version' 2>/dev/null && ! "$python" -m pip --version >/dev/null 2>&1; then
      apt_install python3-venv ||
        die "$python has neither ensurepip nor pip; install python3-venv (apt-get install python3-venv)"
    fi
    uv_in_venv || uv_in_folder || die "could not get uv $UV_VERSION from the Python package index"
    is_uv "$uv" || die "what was installed as $uv is not uv $UV_VERSION"
  fi
fi

# --frozen: what the lock says, checked against its hashes, or nothing. --inexact on `run`: a tree
# that also has the tools keeps them.
unset VIRTUAL_ENV
export UV_PROJECT_ENVIRONMENT=.venv UV_PYTHON_DOWNLOADS=never UV_NO_PROGRESS=1
if [[ -s /etc/ssl/certs/ca-certificates.crt || -n ${SSL_CERT_FILE:-} ]]; then
  export UV_SYSTEM_CERTS=${UV_SYSTEM_CERTS:-true} # uv's own list does not know a company's proxy
fi
say "filling .venv ($WANT, $("$python" --version))"
case $WANT in
  run) "$uv" sync --quiet --frozen --python "$python" --no-dev --inexact ;;
  dev) "$uv" sync --quiet --frozen --python "$python" ;;
esac
printf '%s\n' "$fingerprint" >".venv/made-$WANT"
say "ready"
