"""The SCT wrapper against a stand-in executable that checks its arguments and plays SCT 7.3's behaviours."""

from __future__ import annotations

import sys

import nibabel as nib
import numpy as np
import pytest

from bids_scseg.errors import MissingToolError, SessionError
from bids_scseg.interfaces.base import load_failure
from bids_scseg.interfaces.sct import SCTDeepSeg, find_sct

STAND_IN = """#!{python}
import os, sys, time
import nibabel as nib, numpy as np
mode = os.environ.get("STAND_IN", "ok")
task, rest = sys.argv[1], sys.argv[2:]
options = dict(zip(rest[::2], rest[1::2]))
if task not in ("spinalcord", "lesion_ms") or set(options) != {{"-i", "-o"}}:
    print("usage: sct_deepseg <task> -i -o", file=sys.stderr); sys.exit(2)
if not options["-o"].endswith(".nii.gz"):
    print("ValueError: unknown extension", file=sys.stderr); sys.exit(1)
if mode == "no-model":
    print("Model 'spinalcord' is not installed; urlopen error", file=sys.stderr); sys.exit(1)
if mode == "exit1":
    print("RuntimeError: it broke", file=sys.stderr); sys.exit(1)
if mode == "hang":
    time.sleep(60)
image = nib.load(options["-i"])
mask = np.zeros(image.shape, np.uint8)
if mode != "empty":
    mask[3:6, 3:6] = 1
if mode != "silent":
    nib.save(nib.Nifti1Image(mask, image.affine), options["-o"])
"""


@pytest.fixture
def sct(tmp_path, monkeypatch):
    tools = tmp_path / "bin"
    tools.mkdir()
    program = tools / "sct_deepseg"
    program.write_text(STAND_IN.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    return program


@pytest.fixture
def image(tmp_path):
    # A name that a shell would take apart.
    path = tmp_path / "sub-01; echo $(id) T2w.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((9, 9, 9), np.float32), np.eye(4)), path)
    return path


def run(image, cwd, **inputs):
    cwd.mkdir(exist_ok=True)
    return SCTDeepSeg(in_file=str(image), **inputs).run(cwd=str(cwd))


def test_command_line_is_that_of_7_3(image, sct):
    line = SCTDeepSeg(in_file=str(image)).cmdline
    assert line == f"sct_deepseg spinalcord -i '{image}' -o cord.nii.gz"


def test_it_writes_the_mask_whatever_the_file_is_called(sct, image, tmp_path):
    result = run(image, tmp_path / "node")
    assert nib.load(result.outputs.out_file).get_fdata().sum() == 3 * 3 * 9


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("exit1", "exit code 1: RuntimeError: it broke"),
        ("no-model", "Install the model while online: sct_deepseg spinalcord -install"),
        ("silent", "wrote no cord.nii.gz"),
    ],
)
def test_failures_say_what_happened_and_what_to_do(mode, words, sct, image, tmp_path, monkeypatch):
    monkeypatch.setenv("STAND_IN", mode)
    with pytest.raises(SessionError, match="sct_deepseg") as caught:
        run(image, tmp_path / "node")
    assert words in str(caught.value)
    assert str(image) in str(caught.value)
    assert str(load_failure(tmp_path / "node")) == str(caught.value)


def test_a_hang_ends(sct, image, tmp_path, monkeypatch):
    monkeypatch.setenv("STAND_IN", "hang")
    with pytest.raises(SessionError, match="did not end within 1 s"):
        run(image, tmp_path / "node", timeout_s=1)


def test_absent_toolbox(image, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_sct() is None
    with pytest.raises(MissingToolError, match="not on the PATH"):
        run(image, tmp_path / "node")
