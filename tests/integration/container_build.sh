#!/bin/bash
# Build the container image without a Docker daemon, and without fetching a base image:
#   [SCT=RELEASE SCT_SOURCE=REPOSITORY] tests/integration/container_build.sh [TAG] [TORCH requirement]
# Without SCT unless it is asked for. Needs root, and Debian's buildah, debootstrap (first time), python3-pip.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
repository=$(cd "$here/../.." && pwd)
tag=${1:-localhost/bids_scseg:test}
torch=${2:-}
"$here/container_base.sh"

mounts=()
while read -r mount; do mounts+=(-v "$mount"); done < <("$here/container_mounts.sh")
arguments=(--build-arg "SCT=${SCT:-none}" --build-arg "REVISION=$(git -C "$repository" rev-parse HEAD)")
if [ -n "${SCT_SOURCE:-}" ]; then
    arguments+=(--build-arg "SCT_SOURCE=$SCT_SOURCE")
    [ -d "$SCT_SOURCE" ] && mounts+=(-v "$SCT_SOURCE:$SCT_SOURCE:ro")
fi
[ -n "$torch" ] && arguments+=(--build-arg "TORCH=$torch")
buildah bud --layers --isolation chroot --network host --pull-never "${mounts[@]}" "${arguments[@]}" \
    --tag "$tag" --file "$repository/Dockerfile" "${CONTEXT:-$repository}"
