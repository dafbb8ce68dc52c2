#!/bin/bash
# Build Singularity.def for real, where no registry can be reached: tests/integration/apptainer_build.sh SIF [OPTION …]
# OPTION goes to "apptainer build" (--notest, say). Without SCT. The definition is taken as it is but for its
# first two lines: the base comes from an archive of the one that container_base.sh makes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
repository=$(cd "$here/../.." && pwd)
image=$(realpath -m "$1")
shift
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
buildah push --quiet "$("$here/container_base.sh")" "oci-archive:$scratch/base.tar"
sed -e 's#^Bootstrap: .*#Bootstrap: oci-archive#' -e "s#^From: .*#From: $scratch/base.tar#" \
    "$repository/Singularity.def" > "$scratch/image.def"
# A build binds only where something stands already; empty folders and files stay behind.
binds=()
printf '\n%%setup\n' >> "$scratch/image.def"
while read -r mount; do
    binds+=(--bind "$mount")
    from=${mount%%:*}
    to=$(echo "$mount" | cut -d : -f 2)
    [ -d "$from" ] && folder=$to || folder=$(dirname "$to")
    printf '    mkdir -p "$APPTAINER_ROOTFS%s"\n' "$folder" >> "$scratch/image.def"
    [ -d "$from" ] || printf '    touch "$APPTAINER_ROOTFS%s"\n' "$to" >> "$scratch/image.def"
done < <("$here/container_mounts.sh")
cd "$repository" # %files stand relative to it
apptainer build --force "${binds[@]}" --build-arg SCT=none "$@" "$image" "$scratch/image.def"
