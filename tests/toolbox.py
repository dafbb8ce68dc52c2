"""A repository that plays the Spinal Cord Toolbox's: tags, an installer, ``sct_deepseg``."""

from __future__ import annotations

import subprocess
from pathlib import Path

#: Writes down how it and its program are called.
RECORDING = """#!/bin/sh
echo "installer $*" >> "$CALLS"
mkdir bin
cat > bin/sct_deepseg <<'END'
#!/bin/sh
echo "sct_deepseg $*" >> "$CALLS"
END
chmod 700 bin/sct_deepseg
"""
#: Needs what the real one needs (downloads, unpacking, compiling), installs "models", and segments a
#: demo dataset by its truth. The names of the models' folders are those of release 7.3.
WORKING = """#!/bin/sh
set -eu
test "$*" = -iyc
for tool in curl bzip2 git; do command -v $tool; done
mkdir bin
echo 'int main(void) { return 0; }' | gcc -x c -o bin/sct_compiled -
cat > bin/sct_deepseg <<'END'
#!/bin/sh
set -eu
sct=$(cd "$(dirname "$0")/.." && pwd)
if [ "$2" = -install ]; then
    folder="$sct/data/deepseg_models/stand_in_$1"
    mkdir -p "$folder"
    echo "{\\"model\\": \\"$1\\"}" > "$folder/source.json"
    exit 0
fi
test -s "$sct/data/deepseg_models/stand_in_$1/source.json"  # nothing is downloaded at run time
test "$2 $4" = "-i -o"
image=$(readlink -f "$3")
dataset=${image%%/sub-*}
name=$(basename "${image%_*}")
case $1 in
    spinalcord) truth=label-SC_mask; out=$5 ;;
    spine) truth=seg-discs_dseg; out=${5%.nii.gz}_totalspineseg_discs.nii.gz ;;
esac
cp "$(find "$dataset/derivatives/labels" -name "${name}_$truth.nii.gz")" "$out"
END
chmod 700 bin/sct_deepseg
"""


def make_repository(source: Path, installer: str) -> Path:
    """A repository with the tags 7.3 and 7.2, both of which say that they are release 7.3."""
    (source / "spinalcordtoolbox").mkdir(parents=True)
    (source / "spinalcordtoolbox" / "version.txt").write_text("7.3\n")
    (source / "install_sct").write_text(installer)
    (source / "install_sct").chmod(0o755)
    settings = ("user.name=n", "user.email=n@example.org", "core.hooksPath=")
    git = ["git", "-C", str(source), *(word for setting in settings for word in ("-c", setting))]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "x"], ["tag", "7.3"], ["tag", "7.2"]):
        subprocess.run([*git, *words], check=True, capture_output=True, timeout=30)
    return source
