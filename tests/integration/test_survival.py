"""What a cluster does to a run: full disks, no home, no network, foreign users, two at once, kills."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from integration.checks import outputs, status, unfinished
from integration.cohorts import STAR, add_session, describe

from bids_scseg.cli import participant
from bids_scseg.files import TEMPORARY
from bids_scseg.workflows import resources

ROOT = Path(__file__).resolve().parents[2]


# -- no room ---------------------------------------------------------------------------------------


@pytest.fixture
def no_larger_files():
    """The system refuses files beyond 1 MB, as a full disk does; lifted by calling the fixture's value."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_clear_error_and_a_clean_resume(run, good, tmp_path, no_larger_files):
    out = tmp_path / "out"
    arguments = (good.bids, out, "-d", good.labels, "--output-spaces", "all", "--session-label", "2")
    result = run(*arguments)
    no_larger_files()
    assert result.code == 1
    assert "Traceback" not in result.err
    row = status(out)["sub-01_ses-2"]
    assert (row["state"], row["step"]) == ("failed", "prepare")
    assert "cannot be written" in row["cause"] or "disk is full" in row["cause"]
    assert "run the same command again" in row["remedy"]
    assert unfinished(out) == []
    again = run(*arguments)
    assert again.code == 0, again.err
    written = outputs(out, "sub-01_ses-2")
    expected = outputs(good.out, "sub-01_ses-2")
    assert written == {name: data for name, data in expected.items() if "_ses-2_" in name}


def test_after_a_full_disk_no_further_session_starts(run, good, tmp_path, no_larger_files):
    result = run(good.bids, tmp_path / "out", "-d", good.labels)
    assert result.code == 1
    assert len(status(tmp_path / "out")) == 1
    assert "2 not started" in result.err


def test_a_disk_that_is_surely_too_small_is_told_before_anything_is_written(run, good, tmp_path, monkeypatch):
    class Usage:
        free = 1e6

    monkeypatch.setattr(resources.shutil, "disk_usage", lambda _: Usage)
    result = run(good.bids, tmp_path / "out", "-d", good.labels)
    assert result.code == 73
    assert "will be written to" in result.err and "0.00 GB are free" in result.err
    assert not (tmp_path / "out").exists()


def test_little_memory_is_told_before_the_start(run, good, tmp_path):
    one = (good.bids, tmp_path / "out", "-d", good.labels, "--participant-label", "02", "--mem", "1GB")
    result = run(*one)
    assert result.code == 0, result.err
    assert "sub-02 needs about 2.8 GB of memory, 1.0 GB are there: it may be killed" in result.err


# -- two at once, and what a killed one leaves -----------------------------------------------------


def test_runs_on_one_output_folder_for_different_sessions(run, good, tmp_path):
    """One after another here (`test_status` and `test_checksums` have them at once): all is known of both."""
    out = tmp_path / "out"
    for which in (("--participant-label", "02"), ("--session-label", "2")):
        result = run(good.bids, out, "-d", good.labels, "--output-spaces", "all", *which)
        assert result.code == 0, result.err
    assert list(status(out)) == ["sub-01_ses-2", "sub-02"]
    verdict = json.loads((out / "logs" / "verification.json").read_text())
    assert (verdict["verdict"], verdict["sessions"]) == ("passed", 2)
    assert outputs(out) == outputs(good.out)


def test_what_a_killed_run_left_is_gone_after_the_next(run, again):
    """Half-written files, files that only the killed run knew of, and its journal."""
    anat, expected = again.out / "sub-02" / "anat", outputs(again.out)
    (anat / f".sub-02_mask.nii.gz.abc{TEMPORARY}").write_bytes(b"half")
    (again.out / "logs" / f".status.tsv.abc{TEMPORARY}").write_bytes(b"half")
    stray = anat / "sub-02_acq-old_label-lesion_mask.nii.gz"
    stray.write_bytes(b"of another plan")
    summary = anat / "sub-02_summary.json"
    listed = [*json.loads(summary.read_text())["outputs"], f"sub-02/anat/{stray.name}"]
    (again.out / "logs" / ".sub-02.outputs.json").write_text(json.dumps({"outputs": listed}))
    summary.unlink()
    result = run(
        again.bids, again.out, "-d", again.labels, "--output-spaces", "all", "--participant-label", "02"
    )
    assert result.code == 0, result.err
    assert outputs(again.out) == expected
    assert not stray.exists()
    assert unfinished(again.out) == []
    assert not (again.out / "logs" / ".sub-02.outputs.json").exists()


# -- repeatable ------------------------------------------------------------------------------------


def test_deterministic_runs_give_the_same_bytes(run, good, tmp_path):
    """Fresh folders, another work directory, another number of sessions at once."""
    found = []
    for number, more in enumerate((("--nprocs", "1"), ("--nprocs", "4", "-w", tmp_path / "elsewhere"))):
        out = tmp_path / str(number)
        one = ("-d", good.labels, "--participant-label", "02", "--deterministic", "--random-seed", "5")
        result = run(good.bids, out, *one, *more)
        assert result.code == 0, result.err
        found.append(outputs(out))
    assert len(found[0]) > 10
    assert found[0] == found[1]


def test_deterministic_does_not_take_what_another_run_computed(run, again):
    """Its bits may depend on the number of threads; back again, the first results are still there."""
    arguments = (
        again.bids,
        again.out,
        "-d",
        again.labels,
        "--participant-label",
        "02",
        "--output-spaces",
        "all",
    )
    folder = again.out / "work" / "sub-02" / "session" / "lesions" / "segment"
    before = (folder / "probability.npy").stat().st_mtime_ns
    assert run(*arguments).code == 0
    assert (folder / "probability.npy").stat().st_mtime_ns == before
    assert run(*arguments, "--deterministic").code == 0
    assert (folder / "probability.npy").stat().st_mtime_ns != before


# -- somebody, somewhere ---------------------------------------------------------------------------


OPEN = """
set -e
if [ -n "$PRIVATE" ]; then  # a Python in somebody's home: shown to everybody, without the home around it
    mkdir -p "$WORK/.python"; mount --bind "$INNER" "$WORK/.python"
    mount -t tmpfs none "$PRIVATE"; chmod 755 "$PRIVATE"; mkdir -p "$INNER"
    mount --bind "$WORK/.python" "$INNER"
fi
mount --bind "$WORK" "$WORK"
mount -o remount,ro,bind /
unset WORK PRIVATE INNER
exec setpriv --reuid 54321 --regid 54321 --clear-groups "$@"
"""


def _isolated(work: Path, command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command as a foreign user, without network or home, where only one folder can be written."""
    if os.geteuid() != 0 or any(shutil.which(tool) is None for tool in ("unshare", "setpriv", "mount")):
        pytest.skip("needs root and util-linux to take things away")
    places = [Path(sys.base_prefix), *Path(sys.base_prefix).parents]
    private = [place for place in places if not place.stat().st_mode & 0o001]
    environment = {
        "PATH": os.environ["PATH"], "TMPDIR": str(work / "tmp"), "OMP_NUM_THREADS": "1", "WORK": str(work),
        "PRIVATE": str(private[-1]) if private else "", "INNER": sys.base_prefix,
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
    }  # fmt: skip
    line = ["unshare", "--mount", "--net", "sh", "-c", OPEN, "sh"]
    probe = [*line, sys.executable, "-c", "import subprocess, sys; subprocess.run([sys.executable, '-V'])"]
    if subprocess.run(probe, cwd="/", env=environment, capture_output=True, check=False).returncode != 0:
        pytest.skip("this system allows no namespaces, or its Python is not for everybody")
    return subprocess.run(
        [*line, *command], cwd="/", env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def open_folder():
    """A folder that everybody may enter; pytest keeps its own to itself, and takes them back at any time."""
    with tempfile.TemporaryDirectory(prefix="scseg-test-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.slow
def test_any_user_without_home_network_or_writable_system(good, model, open_folder):
    bids = shutil.copytree(good.bids, open_folder / "bids")
    bundle = shutil.copytree(model, open_folder / "tiny")
    for folder in (bids, bundle):
        folder.chmod(0o755)
    work = open_folder / "mine"
    for folder in (work, work / "tmp"):
        folder.mkdir()
        os.chown(folder, 54321, 54321)
    command = [sys.executable, "-m", "bids_scseg", str(bids), str(work / "out"), "participant"]
    command += ["--model", str(bundle), "--participant-label", "02", "--cord", "builtin"]
    command += ["-d", f"labels={bids / 'derivatives' / 'labels'}", "--output-spaces", "all"]
    done = _isolated(work, [*command, "--nprocs", "1", "--omp-nthreads", "1"])
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert (work / "out" / "sub-02" / "anat" / "sub-02_summary.json").stat().st_uid == 54321
    assert set(outputs(work / "out")) == set(outputs(good.out))
    assert list((work / "tmp").iterdir()) == []


# -- kills -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_kills_at_random_times(model, tmp_path):
    """A small part of the campaign of ``benchmarks/faults.py``."""
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "faults.py", tmp_path, "--kills", "3", "--model", str(model)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    expected = "0 hangs, 0 processes left, 0 corrupt, 0 outputs that differ, 3 identical"
    assert expected in done.stdout, done.stdout


@pytest.mark.slow
def test_deterministic_with_any_number_of_processes(model, tmp_path):
    root = describe(tmp_path / "bids")
    for label in ("sub-01", "sub-02"):
        add_session(root, label, [STAR])
    found = []
    for number in ("1", "2"):
        out = tmp_path / number
        command = [sys.executable, "-m", "bids_scseg", root, out, "participant", "--model", model]
        command += [
            "-d",
            f"labels={root / 'derivatives' / 'labels'}",
            "--cord",
            "builtin",
            "--nprocs",
            number,
        ]
        command += ["--deterministic", "--random-seed", "1"]
        subprocess.run([str(item) for item in command], check=True, capture_output=True)
        found.append({**outputs(out, "sub-01"), **outputs(out, "sub-02")})
    assert found[0] == found[1]


def test_a_verification_that_fails_is_told_by_the_exit_code(run, good, tmp_path, monkeypatch):
    """Whatever writes wrongly: the run itself notices."""
    kept = participant.verify_run

    def after_damage(out: Path, labels: list[str]) -> object:
        path = out / "sub-02" / "anat" / "sub-02_summary.json"
        path.write_text(path.read_text() + " ")
        return kept(out, labels)

    monkeypatch.setattr(participant, "verify_run", after_damage)
    result = run(good.bids, tmp_path / "out", "-d", good.labels, "--participant-label", "02")
    assert result.code == 1
    assert "wrong: sub-02/anat/sub-02_summary.json: SHA-256 is" in result.err
