#!/bin/sh
# Makes what the image's test builds from, so that the build itself needs no network and no registry:
# .cache/image/base.tar, a small Debian with Python and pip, unpacked from its packages, and
# .cache/image/wheels, everything that the Dockerfile installs, checked against its hashes. Does
# nothing when they are there and up to date. Needs apt-get and bootstrap.sh; talks to stderr.
set -eu
cd "$(dirname "$0")/.."

target=.cache/image
want="python3 python3-pip ca-certificates coreutils dash libc-bin libstdc++6"
list=deploy/build-requirements.txt
stamp=$(cat "$0" uv.lock pyproject.toml "$list" | sha256sum)
[ -f "$target/made" ] && [ "$(cat "$target/made")" = "$stamp" ] && exit 0
command -v apt-get >/dev/null 2>&1 || {
    echo "the image's test makes its base from Debian's packages, and there is no apt-get" >&2
    exit 1
}
echo "making the base and the wheels for the image's test" >&2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# A resolver that believes that nothing is installed finds everything that is needed.
download() {
    apt-get -qq -y --no-install-recommends --download-only \
        -o Dir::State::status="$work/status" -o Dir::Cache::archives="$work/debs" \
        -o APT::Sandbox::User=root -o Debug::NoLocking=1 install $want
}
mkdir -p "$work/debs/partial" "$work/root"
: >"$work/status"
{
    download || { apt-get update -qq && download; }
    # The folders that are links since the merge of /usr; else a package makes folders of them.
    for name in bin sbin lib lib32 lib64 libx32; do
        mkdir -p "$work/root/usr/$name"
        ln -s "usr/$name" "$work/root/$name"
    done
    for each in "$work"/debs/*.deb; do
        dpkg-deb --fsys-tarfile "$each" | tar -x --keep-directory-symlink -C "$work/root" \
            --exclude='./usr/share/doc/*' --exclude='./usr/share/locale/*' --exclude='./usr/share/man/*'
    done
    mkdir -p "$work/root/tmp" "$work/root/etc"
    chmod 1777 "$work/root/tmp"

    uv=$(command -v uv || echo .cache/uv/bin/uv)
    "$uv" export --quiet --frozen --offline --no-dev --no-emit-project --no-header \
        --extra kubernetes --extra postgres --extra redis --extra ssh --extra telemetry --output-file "$work/requirements.txt"
    python=$(ls /usr/bin/python3.[0-9]* | grep -v config | sort -V | tail -1)
    version=$(find "$work/root/usr/bin" -name 'python3.[0-9]*' | sed 's/.*python//' | sort -V | tail -1)
    rm -rf "$target"
    mkdir -p "$target/wheels"
    for each in "$list" "$work/requirements.txt"; do
        "${PYTHON:-$python}" -m pip download --quiet --disable-pip-version-check --require-hashes \
            --only-binary :all: --python-version "$version" --dest "$target/wheels" --requirement "$each"
    done
    tar -c -f "$target/base.tar" -C "$work/root" .
} >&2
printf '%s\n' "$stamp" >"$target/made"
