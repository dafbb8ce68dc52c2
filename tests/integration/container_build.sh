#!/bin/bash
# Build the container image without a Docker daemon, and without fetching a base image:
#   [SCT=RELEASE SCT_SOURCE=REPOSITORY] tests/integration/container_build.sh [TAG] [TORCH requirement]
# Without SCT unless it is asked for.
# Needs root, and Debian's buildah, debootstrap (first time), python3-pip. The base is made by debootstrap
# and kept under the name that Dockerfile's FROM line has. What pip needs on this machine (certificates,
# its configuration and the folders which that names) is mounted read-only; the Dockerfile knows nothing of it.
set -euo pipefail
repository=$(cd "$(dirname "$0")/../.." && pwd)
tag=${1:-localhost/bids_scseg:test}
torch=${2:-}
base=$(sed -n 's/^FROM \(\S*\).*/\1/p' "$repository/Dockerfile" | head -n 1)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

if ! buildah inspect --type image "$base" > "$scratch/base.json" 2> "$scratch/base.err"; then
    echo "base image $base: made with debootstrap"
    debootstrap --variant=minbase --include=ca-certificates bookworm "$scratch/rootfs" > "$scratch/debootstrap.log"
    container=$(buildah from scratch)
    buildah add --quiet "$container" "$scratch/rootfs" /
    buildah config --cmd /bin/bash "$container"
    buildah commit --quiet --rm "$container" "$base"
fi

mounts=(-v /etc/ssl/certs:/etc/ssl/certs:ro)
[ -f /etc/pip.conf ] && mounts+=(-v /etc/pip.conf:/etc/pip.conf:ro)
[ -f "$HOME/.config/pip/pip.conf" ] && mounts+=(-v "$HOME/.config/pip/pip.conf:/root/.config/pip/pip.conf:ro")
while read -r folder; do
    folder=${folder%/simple} # an index's pages point at files beside them
    [ -d "$folder" ] && mounts+=(-v "$folder:$folder:ro")
done < <(cat /etc/pip.conf "$HOME/.config/pip/pip.conf" 2> "$scratch/pip.err" \
    | grep -E 'find-links|index-url' | grep -oE '(file://|[ =])/[^ ]+' | sed -E 's#^(file://|[ =])##' | sort -u)

arguments=(--build-arg "SCT=${SCT:-none}" --build-arg "REVISION=$(git -C "$repository" rev-parse HEAD)")
if [ -n "${SCT_SOURCE:-}" ]; then
    arguments+=(--build-arg "SCT_SOURCE=$SCT_SOURCE")
    [ -d "$SCT_SOURCE" ] && mounts+=(-v "$SCT_SOURCE:$SCT_SOURCE:ro")
fi
[ -n "$torch" ] && arguments=(--build-arg "TORCH=$torch")
buildah bud --layers --isolation chroot --network host --pull-never "${mounts[@]}" "${arguments[@]}" \
    --tag "$tag" --file "$repository/Dockerfile" "${CONTEXT:-$repository}"
