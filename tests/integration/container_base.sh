#!/bin/bash
# Make the base image of Dockerfile with debootstrap, under the name that its FROM line has, unless buildah
# has it already; print the name. Needs root, and Debian's buildah and debootstrap.
set -euo pipefail
repository=$(cd "$(dirname "$0")/../.." && pwd)
base=$(sed -n 's/^FROM \(\S*\).*/\1/p' "$repository/Dockerfile" | head -n 1)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
if ! buildah inspect --type image "$base" > "$scratch/base.json" 2> "$scratch/base.err"; then
    debootstrap --variant=minbase --include=ca-certificates bookworm "$scratch/rootfs" > "$scratch/debootstrap.log"
    container=$(buildah from scratch)
    buildah add --quiet "$container" "$scratch/rootfs" / > "$scratch/added"
    buildah config --cmd /bin/bash "$container"
    buildah commit --quiet --rm "$container" "$base" > "$scratch/committed"
fi
echo "$base"
