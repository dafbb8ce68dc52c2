"""A job array on a real Slurm: one node, started here on the loopback interface from Debian's packages.

``apt-get install slurm-wlm munge`` brings all it needs (munged, slurmctld, slurmd, sbatch); run as root.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from integration.checks import status
from integration.cohorts import STAR, add_session, describe

from bids_scseg.cli.tools import main

pytestmark = pytest.mark.slow

TOOLS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue")
CONFIG = """\
ClusterName=test
SlurmctldHost=localhost
SlurmctldPort={controller}
SlurmdPort={node}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
MinJobAge=3600
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=small Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""

#: Stands where bids_scseg would in most tasks: reads the same command line, writes the same logs.
STAND_IN = """\
import sys
from bids_scseg.cli.parser import parse
from bids_scseg.workflows.job import SessionOutcome
from bids_scseg.workflows.status import read_outcomes, write_outcome, write_status

options = parse(sys.argv[1:])
if options.level == "group":
    print("group sees", *(f"{item['label']}={item['state']}" for item in read_outcomes(options.output_dir)))
    sys.exit(0)
label = f"sub-{options.participants[0]}" + "".join(f"_ses-{name}" for name in options.sessions)
assert options.nprocs == 1 and options.threshold == 0.8 and options.derivatives
failed = label == "sub-01_ses-2"
outcome = SessionOutcome(label=label, state="failed" if failed else "done")
write_outcome(options.output_dir, outcome, run={})
write_status(options.output_dir)
sys.exit(1 if failed else 0)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: object, *, seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, f"{what} did not happen within {seconds:.0f} s"
        time.sleep(0.5)


def tell(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return done.stdout if done.returncode == 0 else ""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cluster of this machine alone; commands find it by SLURM_CONF."""
    missing = [tool for tool in TOOLS if shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (Debian: slurm-wlm munge)")
    if os.geteuid() != 0:
        pytest.skip("slurmctld and slurmd are started as root here")
    # A socket's address must be short, and munged wants folders that nobody else can write.
    folder = Path("/tmp") / f"scseg-slurm-{secrets.token_hex(4)}"  # noqa: S108
    for name in (folder, folder / "state", folder / "spool"):
        name.mkdir(mode=0o755)
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    config = folder / "slurm.conf"
    host = socket.gethostname().partition(".")[0]
    text = CONFIG.format(folder=folder, controller=free_port(), node=free_port(), host=host)
    config.write_text(text)
    daemons = [
        ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", f"--key-file={key}",
         f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log", f"--seed-file={folder}/seed"],
        ["slurmctld", "-D", "-f", str(config)],
        ["slurmd", "-D", "-f", str(config)],
    ]  # fmt: skip
    running = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(config))
        patch.setenv("PATH", f"{os.environ['PATH']}:/usr/sbin")
        try:
            for command in daemons:
                with (folder / f"{command[0]}.out").open("w") as log:
                    running.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT))
                if command[0] == "munged":
                    wait_for((folder / "munge.socket").exists, seconds=20, what="munged's start")
            wait_for(lambda: "idle" in tell("sinfo", "--noheader"), seconds=60, what="the node's start")
            yield folder
        finally:
            for daemon in reversed(running):
                daemon.terminate()
                daemon.wait(timeout=30)
            shutil.rmtree(folder, ignore_errors=True)


def jobs_left() -> bool:
    return bool(tell("squeue", "--noheader", "--states=PENDING,RUNNING,COMPLETING").strip())


def logs(out: Path) -> str:
    return "\n".join(path.read_text() for path in sorted((out / "logs" / "slurm").rglob("*.log")))


def test_a_session_fails_in_the_middle_and_it_alone_is_run_again(slurm, model, tmp_path, capsys):
    bids, out = describe(tmp_path / "bids"), tmp_path / "out"
    for label in ("sub-01_ses-1", "sub-01_ses-2", "sub-02"):
        add_session(bids, label, [STAR])
    stand_in = tmp_path / "stand_in.py"
    stand_in.write_text(STAND_IN)
    common = [
        "slurm", str(bids), str(out), "-d", f"labels={bids / 'derivatives' / 'labels'}", "--threshold", "0.8",
        "--model", str(model), "--cord", "builtin", "--omp-nthreads", "1", "--mem", "2GB", "--submit",
    ]  # fmt: skip

    assert main([*common, "--program", f"{sys.executable} {stand_in}", "--at-once", "1"]) == 0
    assert "group level: job " in capsys.readouterr().out
    wait_for(lambda: not jobs_left(), seconds=180, what="the end of the first array")
    rows = status(out)
    assert {label: row["state"] for label, row in rows.items()} == {
        "sub-01_ses-1": "done", "sub-01_ses-2": "failed", "sub-02": "done",
    }, logs(out)  # fmt: skip
    # The failure stopped neither the session after it nor the group level, which came last.
    assert "group sees sub-01_ses-1=done sub-01_ses-2=failed sub-02=done" in logs(out)
    before = {label: (out / "logs" / f"{label}.json").stat().st_mtime_ns for label in rows}

    # The real program, on what failed.
    assert main([*common, "--unfinished", "--no-group"]) == 0
    assert "2 of 3 sessions have results" in capsys.readouterr().err
    wait_for(lambda: not jobs_left(), seconds=600, what="the end of the second array")
    assert {row["state"] for row in status(out).values()} == {"done"}, logs(out)
    after = {label: (out / "logs" / f"{label}.json").stat().st_mtime_ns for label in rows}
    assert [label for label in rows if before[label] != after[label]] == ["sub-01_ses-2"]
    anat = out / "sub-01" / "ses-2" / "anat"
    assert list(anat.glob("*_label-lesion_mask.nii.gz")), logs(out)


def test_the_scheduler_refuses_what_it_does_not_have(slurm, tmp_path, capsys):
    bids = describe(tmp_path / "bids")
    add_session(bids, "sub-01", [STAR])
    assert main(["slurm", str(bids), str(tmp_path / "out"), "--partition", "huge", "--submit"]) == 1
    assert "the scheduler refused: " in capsys.readouterr().err
    assert not jobs_left()
