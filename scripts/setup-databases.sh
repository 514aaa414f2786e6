#!/bin/sh
# Makes sure that this machine can run the tests of the ledger on PostgreSQL and of the shared pace
# on Redis: the servers' programs, of which tests start their own. Does nothing where all is there.
# Talks to stderr, and only when it has work to do.
#
# Installs by apt as root on Debian and its kin; elsewhere it names what is missing and fails.
set -eu

# Administrators' tools live where a plain user's PATH does not look.
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

has() { command -v "$1" >/dev/null 2>&1; }

# The tests look in the same places: what pg_config names, Debian's folders, the PATH.
has_postgres() {
    for folder in "$(pg_config --bindir 2>/dev/null || true)" /usr/lib/postgresql/*/bin; do
        [ -n "$folder" ] && [ -x "$folder/initdb" ] && [ -x "$folder/postgres" ] && return 0
    done
    has initdb && has postgres
}

missing() {
    has_postgres || echo postgresql
    has psql || echo postgresql-client
    has redis-server || echo redis-server
}

packages=$(missing | tr '\n' ' ')
[ -n "$packages" ] || exit 0

if has apt-get && [ "$(id -u)" = 0 ]; then
    echo "installing: $packages" >&2
    export DEBIAN_FRONTEND=noninteractive
    # The tests run servers of their own: the packages' must not start beside them.
    guard=/usr/sbin/policy-rc.d
    if [ ! -e "$guard" ]; then
        trap 'rm -f "$guard"' EXIT
        printf '#!/bin/sh\nexit 101\n' >"$guard"
        chmod 755 "$guard"
    fi
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

echo "the tests of the databases need these packages: $packages" >&2
echo "install them, for instance as root: apt-get install $packages" >&2
exit 1
