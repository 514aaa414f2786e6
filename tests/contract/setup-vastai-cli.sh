#!/bin/sh
# Puts the official `vastai` command line into .venv-vastai, from a lock file with hashes.
# It has its own environment because its dependencies are not ours. Does nothing when up to date.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
lock="$here/vastai-cli.requirements.txt"
venv="$root/.venv-vastai"
stamp="$venv/gp4u-lock"
python=${PYTHON:-3.11}
if [ -x "$venv/bin/vastai" ] && cmp -s "$lock" "$stamp"; then
  exit 0
fi
uv venv --quiet --clear --python "$python" "$venv" >&2
VIRTUAL_ENV="$venv" uv pip sync --quiet --require-hashes "$lock" >&2
cp "$lock" "$stamp"
