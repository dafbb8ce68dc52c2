"""The SCT wrapper against a stand-in executable that checks its arguments and plays SCT 7.3's behaviours."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_scseg.bids.masks import point_kind
from bids_scseg.errors import MissingToolError, SessionError
from bids_scseg.interfaces.base import load_failure
from bids_scseg.interfaces.sct import (
    LabelDiscs,
    SCTDeepSeg,
    cord_source,
    find_sct,
    label_discs,
    labels_words,
    level_source,
    run_tool,
    sct_models,
    sct_release,
    sct_sha256,
    segment_cord,
)
from bids_scseg.workflows.cord import init_cord_wf

STAND_IN = """#!{python}
import os, sys, time
import nibabel as nib, numpy as np
mode = os.environ.get("STAND_IN", "ok")
task, rest = sys.argv[1], sys.argv[2:]
options = dict(zip(rest[::2], rest[1::2]))
if task not in ("spinalcord", "lesion_ms", "spine") or set(options) != {{"-i", "-o"}}:
    print("usage: sct_deepseg <task> -i -o", file=sys.stderr); sys.exit(2)
if not options["-o"].endswith(".nii.gz"):
    print("ValueError: unknown extension", file=sys.stderr); sys.exit(1)
if mode == "no-model":
    print(f"Model of {{task}} is not installed; urlopen error", file=sys.stderr); sys.exit(1)
if mode == "exit1":
    print("RuntimeError: it broke", file=sys.stderr); sys.exit(1)
if mode == "hang":
    time.sleep(60)
image = nib.load(options["-i"])
mask = np.zeros(image.shape, np.uint8)
if mode != "empty":
    mask[3:6, 3:6] = 1
if task == "spine":
    mask[:] = 0
    if mode != "empty":
        mask[4, 4, 6], mask[4, 4, 4], mask[4, 4, 1] = 3, 4, 5
    # The spine task writes beside -o, never at it.
    options["-o"] = options["-o"].replace(".nii.gz", "_totalspineseg_discs.nii.gz")
if mode != "silent":
    nib.save(nib.Nifti1Image(mask, image.affine), options["-o"])
if mode == "cut":
    content = open(options["-o"], "rb").read()
    open(options["-o"], "wb").write(content[:-9])
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


def test_without_a_graph_it_is_the_same_call(sct, image, tmp_path):
    sct.write_text(sct.read_text() + 'print(*sys.argv[1:], sep="\\n", file=open("words", "w"))\n')
    result = run(image, tmp_path / "node")
    (tmp_path / "alone").mkdir()
    found = segment_cord(image, tmp_path / "alone")
    one, other = (np.asarray(nib.load(file).dataobj) for file in (found, result.outputs.out_file))
    assert one.any() and np.array_equal(one, other)
    words = (tmp_path / "alone" / "words").read_text()
    assert words == (tmp_path / "node" / "words").read_text()
    assert words.split("\n")[:-1] == shlex.split(SCTDeepSeg(in_file=str(image)).cmdline)[1:]


def test_an_empty_handed_call_without_a_graph_is_an_error(sct, image, tmp_path, monkeypatch):
    monkeypatch.setenv("STAND_IN", "silent")
    with pytest.raises(SessionError, match="ended well but wrote no cord"):
        segment_cord(image, tmp_path)


def test_what_finds_cords_without_a_mask(sct, tmp_path, monkeypatch):
    names = ("auto", "sct", "builtin", "a-folder")
    assert [cord_source(name) for name in names] == ["sct", "sct", "builtin", "builtin"]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cord_source("auto") == "builtin"
    with pytest.raises(MissingToolError, match="use --cord builtin"):
        cord_source("sct")


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


@pytest.mark.parametrize("end", ["wait", "exit 0"])
def test_what_a_hanging_launcher_started_ends_with_it(end, tmp_path):
    """Also a child whose launcher is gone, but which still holds its output."""
    child, other = tmp_path / "child", tmp_path / "other"
    script = f"(sleep 60; true) & echo $! > '{child}'; setsid sleep 60 & echo $! > '{other}'; {end}"
    with pytest.raises(SessionError, match="did not end within 1 s"):
        run_tool(["bash", "-c", script], tmp_path, timeout_s=1, file="x")
    assert not alive(int(child.read_text())) and not alive(int(other.read_text()))


def alive(pid):
    """Whether a process runs; one that has ended and waits to be collected does not."""
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_it_stays_in_the_group_by_which_a_killed_workers_programs_are_ended(tmp_path):
    tell = [sys.executable, "-c", "import os; print(os.getpgrp())"]
    assert int(run_tool(tell, tmp_path, timeout_s=20, file="x")[0]) == os.getpgrp()


def test_absent_toolbox(image, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_sct() is None
    with pytest.raises(MissingToolError, match="not on the PATH"):
        run(image, tmp_path / "node")


# --- vertebral levels --------------------------------------------------------------------------------


def test_disc_labels_have_the_values_of_the_toolbox_and_a_name_that_says_discs(sct, image, tmp_path):
    found = label_discs(image, tmp_path, number=1)
    data = np.asarray(nib.load(found).dataobj)
    assert sorted(np.unique(data)) == [0, 3, 4, 5]
    assert point_kind(found.name) == "discs"  # by which the measuring step knows what they are


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("exit1", "exit code 1: RuntimeError: it broke"),
        ("no-model", "sct_deepseg spine -install"),
        ("silent", "wrote no image-1_label-discs_totalspineseg_discs.nii.gz"),
        ("empty", "found no disc"),
        ("cut", "cannot be read"),
    ],
)
def test_without_levels_a_session_goes_on_with_a_warning(mode, words, sct, image, tmp_path, monkeypatch):
    monkeypatch.setenv("STAND_IN", mode)
    node = tmp_path / "node"
    node.mkdir()
    result = LabelDiscs(in_files=[str(image)]).run(cwd=str(node))
    assert result.outputs.label_files == []
    (new,) = result.outputs.warnings
    assert new.startswith("no vertebral levels from SCT: ")
    assert words in new
    assert json.loads((node / "discs.json").read_text()) == {"warnings": [new]}


def test_threads_are_handed_to_the_toolbox_and_a_gpu_is_not(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as an image sets it
    monkeypatch.setenv("SCT_USE_GPU", "0")  # which SCT would read as yes
    tell = [
        sys.executable,
        "-c",
        "import os; print(os.environ['OMP_NUM_THREADS'], 'SCT_USE_GPU' in os.environ)",
    ]
    assert run_tool(tell, tmp_path, timeout_s=20, file="x", threads=3)[0] == "3 False\n"
    assert run_tool(tell, tmp_path, timeout_s=20, file="x")[0] == "1 False\n"


def test_each_slab_has_labels_of_its_own(sct, image, tmp_path):
    node = tmp_path / "node"
    node.mkdir()
    result = LabelDiscs(in_files=[str(image), str(image)]).run(cwd=str(node))
    assert len(set(result.outputs.label_files)) == 2
    assert result.outputs.warnings == []


@pytest.mark.parametrize(
    ("method", "labelled", "with_sct", "without"),
    [
        ("auto", True, "labels", "labels"),
        ("auto", False, "sct", "none"),
        ("labels", False, "labels", "labels"),
        ("sct", True, "sct", "sct"),
        ("none", True, "none", "none"),
    ],
)
def test_where_levels_come_from(method, labelled, with_sct, without, sct, tmp_path, monkeypatch):
    assert level_source(method, labelled=labelled) == with_sct
    monkeypatch.setenv("PATH", str(tmp_path))
    assert level_source(method, labelled=labelled) == without


# --- what is installed -------------------------------------------------------------------------------


def test_the_release_is_read_from_the_installation_even_through_links(sct, tmp_path, monkeypatch):
    assert sct_release() is None
    (tmp_path / "spinalcordtoolbox").mkdir()
    (tmp_path / "spinalcordtoolbox" / "version.txt").write_text("7.3\n")
    assert sct_release() == "7.3"
    linked = tmp_path / "elsewhere" / "bin"
    linked.mkdir(parents=True)
    (linked / "sct_deepseg").symlink_to(sct)
    monkeypatch.setenv("PATH", str(linked))
    assert sct_release() == "7.3"


def test_installed_models_are_told_apart_by_their_source(sct, tmp_path):
    assert sct_models() == {}
    for name, text in (("a", "{}"), ("b", "[]")):
        folder = tmp_path / "data" / "deepseg_models" / name
        folder.mkdir(parents=True)
        (folder / "source.json").write_text(text)
    # sha256sum of the two bytes "{}"
    assert sct_models()["a"] == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    assert set(sct_models()) == {"a", "b"}


def hashes(*interfaces):
    return [item.inputs.get_hashval(hash_method="content")[1] for item in interfaces]


def test_another_release_or_network_of_the_task_is_another_result(sct, image, tmp_path):
    def install(name, text):
        folder = tmp_path / "data" / "deepseg_models" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "source.json").write_text(text)

    found = [sct_sha256("spinalcord")]
    (tmp_path / "version.txt").write_text("7.3\n")
    found.append(sct_sha256("spinalcord"))
    for text in ("{}", "[]"):
        install("model_seg_sc_contrast_agnostic_nnunet", text)
        found.append(sct_sha256("spinalcord"))
    install("model_seg_ms_lesion", "{}")  # does not find cords
    assert sct_sha256("spinalcord") == found[-1] != sct_sha256("spine")
    assert len(set(found)) == 4
    unused = {"masks": {}, "bundle": "", "bundle_sha256": "", "socket": ""}
    parts = [init_cord_wf(images=[str(image)], method="sct", sct_sha256=one, **unused) for one in found]
    graphs = [part.get_node("sct_cord_01").interface for part in parts]
    assert len(set(hashes(*graphs))) == 4
    assert len(set(hashes(*(LabelDiscs(in_files=[str(image)], engine_sha256=one) for one in found)))) == 4
    assert {graph.cmdline for graph in graphs} == {f"sct_deepseg spinalcord -i '{image}' -o cord.nii.gz"}


def test_nothing_is_told_of_an_absent_toolbox(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert sct_release() is None
    assert sct_models() == {}


def test_words_for_labels_name_the_derivatives_folder(tmp_path):
    folders = [("masks", tmp_path / "masks"), ("discs", tmp_path / "discs")]
    label = str(tmp_path / "discs" / "sub-01" / "anat" / "sub-01_seg-discs_dseg.nii.gz")
    assert labels_words([label], folders) == "labels of the derivatives discs"
    assert labels_words([label], []) == "labels of the derivatives anat"
    assert labels_words([], folders) == ""
