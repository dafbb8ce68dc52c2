#!/bin/sh
# selftest.sh FOLDER: what a new image must be able to do. A synthetic subject, both levels, on the CPU.
set -eu
folder=$1
mkdir -p "$folder"
bids_scseg --version
scseg demo "$folder/bids" --subjects 1 --seed 0
bids_scseg "$folder/bids" "$folder/out" participant --cord builtin --levels none --device cpu --nprocs 1
bids_scseg - "$folder/out" group
test -s "$folder/out/group.html"
echo "selftest passed: $folder/out"
