#!/bin/sh
# selftest.sh FOLDER: what a new image must be able to do. A synthetic subject, both levels, on the CPU; of its
# six sequences a sagittal and an axial one, each in two slabs, which takes half the time of all.
set -eu
folder=$1
start=$(date +%s)
mkdir -p "$folder"
bids_scseg --version
scseg demo "$folder/bids" --subjects 1 --seed 0
bids_scseg "$folder/bids" "$folder/out" participant --sequences T2Sag T2StarAx --cord builtin --levels none \
    --device cpu --nprocs 1
bids_scseg - "$folder/out" group
test -s "$folder/out/group.html"
echo "selftest passed in $(($(date +%s) - start)) s: $folder/out"
