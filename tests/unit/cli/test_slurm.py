"""``scseg slurm`` as a user meets it."""

from __future__ import annotations

import tomllib

import nibabel as nib
import numpy as np
import pytest

from bids_scseg.cli.parser import parse
from bids_scseg.cli.participant import Models
from bids_scseg.cli.slurm import plan_sessions
from bids_scseg.cli.tools import main
from bids_scseg.workflows.job import SessionOutcome
from bids_scseg.workflows.status import write_outcome


@pytest.fixture
def dataset(tmp_path):
    """Three sessions with an axial T2*w image each."""
    root = tmp_path / "bids"
    root.mkdir()
    (root / "dataset_description.json").write_text('{"Name": "n", "BIDSVersion": "1.10.0"}')
    for label in ("sub-01_ses-1", "sub-01_ses-2", "sub-02"):
        folder = root.joinpath(*label.split("_"), "anat")
        folder.mkdir(parents=True)
        data = np.random.default_rng(0).integers(0, 100, (40, 40, 12)).astype(np.int16)
        image = nib.Nifti1Image(data, np.diag([0.6, 0.6, 5.0, 1.0]))
        image.set_sform(image.affine, code=1)
        nib.save(image, folder / f"{label}_T2starw.nii.gz")
    return root


def written(out):
    folders = sorted((out / "logs" / "slurm").iterdir())
    return {path.name: path.read_text() for path in folders[-1].iterdir()}


def test_scripts_are_written_and_nothing_is_submitted(dataset, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["slurm", str(dataset), str(out), "--threshold", "0.4", "--time", "1-02:30"]) == 0
    files = written(out)
    assert set(files) == {"sessions.tsv", "run.toml", "array.sh", "group.sh", "submit.sh"}
    assert files["sessions.tsv"] == "01\t1\n01\t2\n02\tn/a\n"
    assert "--time=26:30:00" in files["array.sh"]
    said = capsys.readouterr().err
    assert "3 sessions, each 4 CPUs, 4 GB" in said
    assert "to submit them: bash " in said


def test_a_task_gets_the_options_of_the_run_but_its_own_session(dataset, tmp_path):
    out = tmp_path / "out"
    more = ["--participant-label", "01", "--threshold", "0.4", "--omp-nthreads", "3", "--mem", "9GB"]
    assert main(["slurm", str(dataset), str(out), *more, "--sequences", "T2StarAx"]) == 0
    files = written(out)
    config = tmp_path / "run.toml"
    config.write_text(files["run.toml"])
    assert not {"participants", "sessions", "exclude"} & set(tomllib.loads(files["run.toml"]))
    options = parse([str(dataset), str(out), "participant", "--config-file", str(config)])
    assert (options.threshold, options.sequences) == (0.4, ("T2StarAx",))
    assert (options.nprocs, options.omp_nthreads) == (1, 3)
    assert files["sessions.tsv"] == "01\t1\n01\t2\n"
    assert "--mem=9G" in files["array.sh"]


def test_a_model_of_yours_is_named_absolutely(dataset, tmp_path, monkeypatch):
    from bids_scseg.cli.slurm import task_options

    monkeypatch.chdir(tmp_path)
    base = ["b", "o", "participant"]
    assert task_options(parse([*base, "--model", "mine"]), cpus=1).model == str(tmp_path / "mine")
    assert task_options(parse(base), cpus=1).model == "cord-lesion"


def test_a_dataset_of_links_is_planned_as_the_tasks_will_find_it(dataset, tmp_path):
    store = tmp_path / "store"
    store.mkdir()
    for path in sorted(dataset.rglob("*.nii.gz")):
        target = path.rename(store / path.name)
        path.symlink_to(target)
    base = [str(dataset), str(tmp_path / "out")]
    assert all(plan.anchor for plan in plan_sessions(parse([*base, "participant", "--follow-links"])))
    assert not any(plan.anchor for plan in plan_sessions(parse([*base, "participant"])))
    assert main(["slurm", *base, "--follow-links"]) == 0
    assert "follow_links = true" in written(tmp_path / "out")["run.toml"]


def test_a_model_that_needs_its_anchor_refuses_sessions_without_it(dataset, tmp_path, monkeypatch):
    options = parse([str(dataset), str(tmp_path / "out"), "participant"])
    assert [plan.refusal for plan in plan_sessions(options)] == [None] * 3
    monkeypatch.setattr(Models, "needs_anchor", "T2Sag")
    assert all("T2Sag" in str(plan.refusal) for plan in plan_sessions(options))


@pytest.mark.parametrize(
    ("arguments", "memory"),
    [
        (["--cord", "builtin"], 4),
        (["--cord", "sct"], 7),  # 4.35 GB for the toolbox, 2 GB for the inference process
        ([], 4),  # the toolbox is not here
        (["--setup", "module load sct"], 7),  # it may be there
        (["--image", "x.sif"], 7),
        (["--image", "x.sif", "--cord", "builtin"], 4),
        (["--cord", "labels", "-d", "labels=."], 4),
    ],
)
def test_the_memory_of_a_task_is_that_of_the_way_in_which_it_finds_cords(
    dataset, tmp_path, monkeypatch, arguments, memory
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    (tmp_path / "x.sif").touch()
    assert main(["slurm", str(dataset), str(tmp_path / "out"), *arguments]) == 0
    assert f"--mem={memory}G" in written(tmp_path / "out")["array.sh"]


def test_unfinished_sessions_alone_are_run_again(dataset, tmp_path, capsys):
    out = tmp_path / "out"
    write_outcome(out, SessionOutcome(label="sub-01_ses-1", state="done"), run={})
    write_outcome(out, SessionOutcome(label="sub-01_ses-2", state="failed", cause="x"), run={})
    assert main(["slurm", str(dataset), str(out), "--unfinished"]) == 0
    assert written(out)["sessions.tsv"] == "01\t2\n02\tn/a\n"
    assert "1 of 3 sessions have results" in capsys.readouterr().err
    for label in ("sub-01_ses-2", "sub-02"):
        write_outcome(out, SessionOutcome(label=label, state="done"), run={})
    before = len(list((out / "logs" / "slurm").iterdir()))
    assert main(["slurm", str(dataset), str(out), "--unfinished", "--submit"]) == 0
    assert "nothing to submit" in capsys.readouterr().err
    assert len(list((out / "logs" / "slurm").iterdir())) == before


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--participant-label", "77"], 18, "nothing matches"),
        (["--image", "none.sif"], 66, "no such image"),
        (["--time", "soon"], 64, "no time such as"),
        (["--cord", "mine"], 64, "Add -d mine=PATH"),
        (["--cord", "mine", "-d", "labels=.", "--image", "x.sif"], 64, "neither a method nor a derivatives"),
        (["--model", "mine"], 66, "there is no model 'mine'"),
        (["--model", "sct:mine"], 64, "there is no engine"),
        (["--submit"], 127, "sbatch is not on the PATH"),
        (["-d", "labels=/nowhere"], 66, "no derivatives folder"),
        (["--nonsense"], 64, "unrecognized"),
    ],
)
def test_mistakes_are_said_at_once(dataset, tmp_path, capsys, monkeypatch, arguments, code, words):
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["slurm", str(dataset), str(tmp_path / "out"), *arguments]) == code
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said
    assert (tmp_path / "out").exists() == ("--submit" in arguments)


def test_what_the_scheduler_refuses_is_passed_on(dataset, tmp_path, capsys, monkeypatch):
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "sbatch").write_text(
        "#!/bin/sh\necho 'sbatch: error: invalid partition specified: q' >&2\nexit 1\n"
    )
    (tools / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    assert main(["slurm", str(dataset), str(tmp_path / "out"), "--partition", "q", "--submit"]) == 1
    assert "the scheduler refused: sbatch: error: invalid partition specified: q" in capsys.readouterr().err
