#!/usr/bin/env bash
# Build the Dockerfile without a Docker engine; `try_dockerfile.sh --help` says how.
set -euo pipefail

usage() {
  cat <<'USAGE'
usage: scripts/try_dockerfile.sh [options] ROOT

Run every step of the Dockerfile in ROOT, a new folder, as a check where no Docker engine is at hand: on a fresh Debian
from debootstrap with Python and pip, then `crossmodal --help`, `crossmodal doctor` and an import from another checkout
mounted on /src. Needs root, debootstrap, unshare, Python and 3 GB. Takes 3 to 10 minutes on two cores, and 3 to 8 more
where Horovod must be compiled. ROOT stays.

    --base DIR               start from a copy of DIR, an unpacked image, instead of debootstrap's Debian
    --build-arg NAME=VALUE   as for docker build, but BASE
    --bind DIR               a folder of this machine that the steps need at the same place (certificates, wheels)
    --cache DIR              where wheels of Horovod are looked up and kept
    --help                   print this text

Variables PIP_* reach the steps.
USAGE
}

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
given=("$@")
base='' cache='' root=''
args=() binds=() as=()
while [ $# -gt 0 ]; do
  case $1 in
    --help) usage; exit 0 ;;
    --base) base=$2; shift ;;
    --build-arg) args+=(--build-arg "$2"); shift ;;
    --bind) binds+=("$2"); shift ;;
    --cache) cache=$2; shift ;;
    -*) echo "there is no option $1; --help lists them" >&2; exit 2 ;;
    *) root=$1 ;;
  esac
  shift
done
[ -n "$root" ] || { usage >&2; exit 2; }
[ ! -e "$root" ] || { echo "$root exists; name a new folder" >&2; exit 2; }
[ "$(id -u)" = 0 ] || { echo "needs root, for chroot and mounts" >&2; exit 2; }

# All mounts live in a namespace of their own and go with it.
if [ -z "${TRY_DOCKERFILE_INSIDE:-}" ]; then
  TRY_DOCKERFILE_INSIDE=1 exec unshare --mount --pid --fork -- "$0" "${given[@]}"
fi

if [ -n "$base" ]; then
  cp -a "$base" "$root"
else
  debootstrap --variant=minbase --include=ca-certificates,python3,python3-pip bookworm "$root"
fi
root=$(cd -- "$root" && pwd)
cp /etc/resolv.conf /etc/hosts "$root/etc/"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
for folder in "${binds[@]}"; do
  mkdir -p "$root$folder"
  mount --bind "$folder" "$root$folder"
done
if [ -n "$cache" ]; then
  mkdir -p "$cache" "$root/var/cache/horovod"
  mount --bind "$cache" "$root/var/cache/horovod"
fi

inside() {
  printf '\n$ %s\n' "$*"
  python3 "$here/dockerfile.py" run "${as[@]}" "$root" "$@"
}

python3 "$here/dockerfile.py" build "$root" "${args[@]}"
inside id
inside crossmodal --help
inside crossmodal doctor

# What launch_container.sh does: another checkout on /src, and a user whom the image does not know.
other=$(mktemp -d)
trap 'rm -rf "$other"' EXIT
cp -a "$root/src/." "$other"
echo 'MOUNTED = True' >>"$other/crossmodal/__init__.py"
chown -R 4321:4321 "$other"
mount --bind "$other" "$root/src"
as=(--user 4321:4321 --env HOME=/tmp)
inside python3 -c 'import crossmodal, getpass; print(crossmodal.__file__, crossmodal.MOUNTED, getpass.getuser())'
inside crossmodal --help >/dev/null
echo "the Dockerfile's steps work"
