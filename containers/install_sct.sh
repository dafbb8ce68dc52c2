#!/bin/sh
# install_sct.sh RELEASE SOURCE FOLDER
# Install the Spinal Cord Toolbox from a tag of its repository, with the models that bids_scseg calls, so
# that nothing is downloaded at run time. Release "none" leaves an empty folder. As root, on Debian.
set -eu
release=$1
source=$2
folder=$3
mkdir -p "$folder"
if [ "$release" = none ]; then
    exit 0
fi
apt-get update
apt-get install --yes --no-install-recommends bzip2 ca-certificates curl gcc git libc6-dev libglib2.0-0
rm -rf /var/lib/apt/lists/*
git clone --quiet --depth 1 --branch "$release" "$source" "$folder"
cd "$folder"
# -i in place, -y yes to everything, -c without the check of dependencies (it asks for a display)
./install_sct -iyc
# sct_version prints a commit for such an installation, so the release is read from its file.
installed=$(cat spinalcordtoolbox/version.txt)
if [ "$installed" != "$release" ]; then
    echo "install_sct.sh: release $installed was installed, expected $release" >&2
    exit 1
fi
for task in spinalcord lesion_ms spine; do
    bin/sct_deepseg "$task" -install
done
rm -rf .git
# Whoever runs the image reads it, under any user id.
chmod -R a+rX "$folder"
