"""Scripts of a job array: what they ask for, and that a shell reads them as meant."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from bids_builders import image, study

from bids_scseg.bids.plan import make_plan
from bids_scseg.errors import UsageError
from bids_scseg.options import RunOptions
from bids_scseg.recipe.load import load_recipe
from bids_scseg.recipe.study import Plan
from bids_scseg.workflows.cluster import Launcher, Needs, Queue, group_needs, needs_of, scripts, unfinished
from bids_scseg.workflows.resources import check_memory, worker_gb

NEEDS = Needs(cpus=4, mem_gb=6, minutes=90)
#: Stands where bids_scseg would: writes its arguments, one JSON list.
ECHO = "import json, sys; print(json.dumps(sys.argv[1:]))"


def plan(subject: str, session: str | None = None, *, gb: float = 1.0, seconds: float = 60.0) -> Plan:
    return Plan(
        subject=subject, session=session, dataset="/bids", recipe="r", sequences=(), missing=(),
        anchor="T2Sag", memory_gb=gb, inference_gb=2.0, seconds=seconds,
    )  # fmt: skip


def options(out: Path = Path("/out"), **more: object) -> RunOptions:
    return RunOptions(bids_dir=Path("/bids"), output_dir=out, level="participant", **more)  # type: ignore[arg-type]


def made(folder: Path, plans: list[Plan], **more: object) -> dict[str, str]:
    facts: dict[str, object] = {
        "needs": NEEDS, "queue": Queue(), "launcher": Launcher(program=(sys.executable, "-c", ECHO)),
    }  # fmt: skip
    files = scripts(plans, options(folder), folder=folder, **{**facts, **more})  # type: ignore[arg-type]
    for name, text in files.items():
        (folder / name).write_text(text)
    return files


def run(script: Path, **environment: str) -> list[str]:
    done = subprocess.run(
        ["/bin/bash", str(script)], env={"PATH": "/usr/bin:/bin", **environment}, capture_output=True,
        text=True, timeout=20, check=True,
    )  # fmt: skip
    found: list[str] = json.loads(done.stdout)
    return found


def test_needs_are_those_of_the_most_demanding_session():
    # 4 times 10 minutes is 40; memory 5.3 GB and 2 GB for the inference process, rounded up.
    needs = needs_of([plan("01", gb=1.5), plan("02", gb=5.3, seconds=600)], options())
    assert needs == Needs(cpus=4, mem_gb=8, minutes=40)
    small = needs_of([plan("01", gb=0.5, seconds=5)], options())
    assert (small.mem_gb, small.minutes, small.gpus) == (4, 30, 0)


def test_a_task_that_runs_the_toolbox_gets_the_memory_that_the_participant_level_counts_with():
    session = make_plan(study(image("acq-sag_T2w")), load_recipe("cord-lesion"))
    assert needs_of([session], options()).mem_gb == 4
    needs = needs_of([session], options(), cord_method="sct")
    assert needs.mem_gb == 7  # 4.35 GB and 2 GB for the inference process, rounded up
    assert needs.mem_gb >= worker_gb(session, cord_method="sct") + session.inference_gb
    assert check_memory([session], limit_gb=needs.mem_gb, cord_method="sct") == ()


def test_what_is_asked_for_wins_over_estimates():
    asked = options(omp_nthreads=8, mem_gb=15.5, device="cuda:0")
    assert needs_of([plan("01")], asked, minutes=5) == Needs(cpus=8, mem_gb=16, minutes=5, gpus=1)


@pytest.mark.parametrize(
    ("index", "offset", "chosen"),
    [
        ("1", None, ["--participant-label", "01", "--session-label", "M 00"]),
        ("2", None, ["--participant-label", "02"]),
        ("1", "2", ["--participant-label", "03", "--session-label", "x"]),
    ],
)
def test_a_task_runs_its_own_session(tmp_path, index, offset, chosen):
    made(tmp_path, [plan("01", "M 00"), plan("02"), plan("03", "x")])
    environment = {"SLURM_ARRAY_TASK_ID": index} | ({} if offset is None else {"SCSEG_OFFSET": offset})
    words = run(tmp_path / "array.sh", **environment)
    fixed = ["/bids", str(tmp_path), "participant", "--config-file", str(tmp_path / "run.toml")]
    assert words == [*fixed, *chosen]


def test_the_group_level_knows_the_raw_dataset_and_with_it_the_covariates(tmp_path):
    made(tmp_path, [plan("01")])
    assert run(tmp_path / "group.sh") == ["/bids", str(tmp_path), "group", "--nprocs", "1"]
    assert set(made(tmp_path, [plan("01")], group=False)) == {"sessions.tsv", "array.sh", "submit.sh"}


def test_the_group_level_has_time_for_all_pairs_of_sessions(tmp_path):
    assert group_needs([plan(f"{n}") for n in range(500)], NEEDS) == Needs(cpus=1, mem_gb=4, minutes=30)
    # 200 subjects seen three times: 400 pairs, each four times 5 s, on 4 CPUs: 34 minutes beside the rest.
    plans = [plan(f"{n}", f"{visit}") for n in range(200) for visit in range(3)]
    assert group_needs(plans, NEEDS) == Needs(cpus=4, mem_gb=7, minutes=70)
    assert "#SBATCH --time=01:10:00" in made(tmp_path, plans)["group.sh"].splitlines()
    assert run(tmp_path / "group.sh")[-2:] == ["--nprocs", "4"]
    few = group_needs(plans[:15], NEEDS)
    assert (few.cpus, few.minutes) == (1, 40)


def test_a_folder_with_a_blank_and_a_quote_survives_the_shell(tmp_path):
    odd = tmp_path / "it's a folder; echo $(id)"
    odd.mkdir()
    made(odd, [plan("01")])
    assert run(odd / "array.sh", SLURM_ARRAY_TASK_ID="1")[1] == str(odd)


def test_directives_say_what_is_needed_and_where(tmp_path):
    queue = Queue(partition="long", account="lab", at_once=20, extra=("--qos=high",))
    files = made(tmp_path, [plan("01")], queue=queue, needs=Needs(cpus=2, mem_gb=8, minutes=90, gpus=1))
    directives = [line for line in files["array.sh"].splitlines() if line.startswith("#SBATCH ")]
    assert {
        "#SBATCH --cpus-per-task=2", "#SBATCH --mem=8G", "#SBATCH --time=01:30:00", "#SBATCH --gres=gpu:1",
        "#SBATCH --partition=long", "#SBATCH --account=lab", "#SBATCH --qos=high",
    } <= set(directives)  # fmt: skip
    assert "--array=1-1%20 " in files["submit.sh"]
    # Slurm stops reading directives at the first command.
    lines = files["array.sh"].splitlines()
    assert lines[1 : 1 + len(directives)] == directives
    assert "gres" not in files["group.sh"]


def test_setup_comes_before_the_program_and_survives_unset_variables(tmp_path):
    launcher = Launcher(program=(sys.executable, "-c", ECHO), setup=('test -z "$NOT_SET_ANYWHERE"',))
    made(tmp_path, [plan("01")], launcher=launcher)
    assert run(tmp_path / "array.sh", SLURM_ARRAY_TASK_ID="1")[-1] == "01"


def test_more_sessions_than_an_array_may_have_are_several_arrays(tmp_path):
    files = made(tmp_path, [plan(f"{n:04d}") for n in range(1002)])
    text = files["submit.sh"]
    assert "--array=1-1000 --export=ALL,SCSEG_OFFSET=0 " in text
    assert "--array=1-2 --export=ALL,SCSEG_OFFSET=1000 " in text
    assert run(tmp_path / "array.sh", SLURM_ARRAY_TASK_ID="2", SCSEG_OFFSET="1000")[-1] == "1001"


def test_submission_chains_the_group_level_to_every_array(tmp_path):
    files = made(tmp_path, [plan(f"{n:04d}") for n in range(1001)])
    assert "group.sh" in files
    tools = tmp_path / "bin"
    tools.mkdir()
    sbatch = tools / "sbatch"  # numbers jobs as Slurm does on a federation: id;cluster
    sbatch.write_text('#!/bin/bash\necho "$@" >> "$CALLS"\necho "$(wc -l < "$CALLS");west"\n')
    sbatch.chmod(0o755)
    done = subprocess.run(
        ["/bin/bash", str(tmp_path / "submit.sh")], capture_output=True, text=True, check=True, timeout=20,
        env={"PATH": f"{tools}:/usr/bin:/bin", "CALLS": str(tmp_path / "calls")},
    )  # fmt: skip
    assert done.stdout.splitlines()[0] == "sessions: job 1 2"
    assert (tmp_path / "calls").read_text().splitlines()[2] == "--parsable --dependency=afterany:1:2 group.sh"


def test_a_refused_group_level_takes_the_array_back(tmp_path):
    made(tmp_path, [plan("01")])
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, body in (
        ("sbatch", 'case "$*" in *group.sh) echo "no such node" >&2; exit 1;; esac; echo 7'),
        ("scancel", 'echo "$@" > "$CANCELLED"'),
    ):
        (tools / name).write_text(f"#!/bin/bash\n{body}\n")
        (tools / name).chmod(0o755)
    done = subprocess.run(
        ["/bin/bash", str(tmp_path / "submit.sh")], capture_output=True, text=True, check=False, timeout=20,
        env={"PATH": f"{tools}:/usr/bin:/bin", "CANCELLED": str(tmp_path / "cancelled")},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "no such node\n"
    assert (tmp_path / "cancelled").read_text() == "7\n"


IMAGE_ARGUMENTS = """#!{python}
import json, sys
print(json.dumps(sys.argv[1:]))
"""


def test_an_image_sees_its_folders_and_nothing_of_the_caller(tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "singularity").write_text(IMAGE_ARGUMENTS.format(python=sys.executable))
    (tools / "singularity").chmod(0o755)
    launcher = Launcher(
        image=Path("/images/bids_scseg.sif"),
        readable=(Path("/bids"), Path("/my labels")),
        writable=(tmp_path,),
    )
    made(tmp_path, [plan("01")], launcher=launcher, needs=Needs(cpus=1, mem_gb=4, minutes=30, gpus=1))
    path = f"{tools}:/usr/bin:/bin"
    words = run(tmp_path / "array.sh", SLURM_ARRAY_TASK_ID="1", PATH=path, TMPDIR="/scratch/1")
    at = words.index("/images/bids_scseg.sif")
    assert words[:at] == [
        "run", "--cleanenv", "--containall", "--nv", "--bind=/bids:/bids:ro",
        "--bind=/my labels:/my labels:ro", f"--bind={tmp_path}:{tmp_path}:rw", "--bind", "/scratch/1:/tmp:rw",
    ]  # fmt: skip
    assert words[at + 1 : at + 4] == ["/bids", str(tmp_path), "participant"]
    assert "--nv" not in run(tmp_path / "group.sh", PATH=path)


@pytest.mark.parametrize("script", ["array.sh", "group.sh"])
def test_folders_that_an_image_writes_are_made_before_they_are_bound(tmp_path, script):
    tools, new = tmp_path / "bin", tmp_path / "scratch" / "it's new"
    tools.mkdir()
    (tools / "apptainer").write_text(
        f"#!{sys.executable}\nimport json, os\nprint(json.dumps(os.listdir({str(new)!r})))"
    )
    (tools / "apptainer").chmod(0o755)
    made(tmp_path, [plan("01")], launcher=Launcher(image=Path("/i.sif"), writable=(tmp_path, new)))
    for _ in range(2):
        assert run(tmp_path / script, SLURM_ARRAY_TASK_ID="1", PATH=f"{tools}:/usr/bin:/bin") == []


def test_without_an_engine_the_task_says_so(tmp_path):
    made(tmp_path, [plan("01")], launcher=Launcher(image=Path("/i.sif"), writable=(tmp_path,)))
    done = subprocess.run(
        ["/bin/bash", str(tmp_path / "array.sh")], capture_output=True, text=True, check=False, timeout=20,
        env={"PATH": "/usr/bin:/bin", "SLURM_ARRAY_TASK_ID": "1"},
    )  # fmt: skip
    assert done.returncode == 127
    assert "neither apptainer nor singularity" in done.stderr


def test_a_path_that_cannot_be_bound_is_refused(tmp_path):
    with pytest.raises(UsageError, match="cannot be bound"):
        made(tmp_path, [plan("01")], launcher=Launcher(image=Path("/i.sif"), readable=(Path("/a:b"),)))


def test_unfinished_are_all_but_those_with_results():
    plans = [plan("01", "a"), plan("01", "b"), plan("02"), plan("03")]
    states = {"sub-01_ses-a": "done", "sub-01_ses-b": "failed", "sub-02": "refused"}
    assert [item.label for item in unfinished(plans, states)] == ["sub-01_ses-b", "sub-02", "sub-03"]
