"""What a run needs and what is there, told before it starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from bids_builders import image, lattice, study
from unit_jobs import job

from bids_scseg.bids import checksums
from bids_scseg.bids.memory import BASE_GB, LATE_GB
from bids_scseg.bids.plan import make_plan
from bids_scseg.errors import DiskFullError, ImageError
from bids_scseg.options import RunOptions
from bids_scseg.recipe.load import load_recipe
from bids_scseg.workflows import resources
from bids_scseg.workflows.job import check_size, run_job
from bids_scseg.workflows.resources import (
    DiskNeed,
    check_disk,
    check_memory,
    disk_bytes,
    disk_needs,
    folder_bytes,
    worker_count,
    worker_gb,
)

OPTIONS = RunOptions(bids_dir=Path("in"), output_dir=Path("out"), level="participant", nprocs=8)
RECIPE = load_recipe("cord-lesion")


def plan(*names, grid=None):
    return make_plan(study(*(image(name, grid) for name in names)), RECIPE)


SMALL = plan("acq-sag_T2w")
LARGE = plan("acq-sag_T2w", grid=lattice(slices=400))


@pytest.mark.parametrize(
    ("memory", "total", "workers"),
    [
        (float("inf"), 20, 8),  # a system that does not tell
        (4.3, 20, 3),  # 2 GB for the network, 0.75 GB for each of the smallest sessions
        (1.0, 20, 1),
        (64.0, 2, 2),
    ],
)
def test_sessions_at_once(monkeypatch, memory, total, workers):
    monkeypatch.setattr(resources, "free_memory_gb", lambda: memory)
    assert worker_count(OPTIONS, total) == workers
    assert worker_count(replace(OPTIONS, mem_gb=4.3), total) == min(3, total)


LIMIT = 2_000_000_000
NONE = 9_223_372_036_854_771_712  # how the first version of control groups says that there is none


@pytest.mark.parametrize(
    ("group", "limits", "expected"),
    [
        ("0::/\n", {"memory.max": LIMIT}, 2.0),  # a container
        ("0::/\n", {"memory.max": "max"}, 8.192),
        ("0::/\n", {"memory.max": 64 * LIMIT}, 8.192),
        ("0::/slurm/job_7/step_0\n", {"slurm/job_7/memory.max": LIMIT, "memory.max": "max"}, 2.0),  # a job
        ("4:memory:/slurm/job_7\n0::/\n", {"memory/slurm/job_7/memory.limit_in_bytes": LIMIT}, 2.0),
        ("4:memory:/docker/1\n", {"memory/memory.limit_in_bytes": LIMIT}, 2.0),  # its own root, others' path
        ("4:memory:/a\n", {"memory/a/memory.limit_in_bytes": NONE}, 8.192),
        ("2:cpu,cpuacct:/a\n", {"a/memory.max": LIMIT, "memory/a/memory.limit_in_bytes": LIMIT}, 8.192),
        ("", {}, 8.192),
    ],
)
def test_the_limit_of_a_container_or_job_counts(tmp_path, monkeypatch, group, limits, expected):
    info, groups = tmp_path / "meminfo", tmp_path / "groups"
    info.write_text("MemTotal: 9000000 kB\nMemAvailable: 8000000 kB\nSwapTotal: 1000000 kB\n")
    groups.write_text(group)
    for name, limit in limits.items():
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text(f"{limit}\n")
    monkeypatch.setattr(resources, "MEMORY_INFO", info)
    monkeypatch.setattr(resources, "CONTROL_GROUPS", groups)
    monkeypatch.setattr(resources, "CONTROL_ROOT", tmp_path / "root")
    assert resources.free_memory_gb() == pytest.approx(expected)
    assert resources.all_memory_gb() == pytest.approx(2.0 if expected == 2.0 else 10.24)


def test_a_system_that_does_not_tell_its_memory(tmp_path, monkeypatch):
    for name in ("MEMORY_INFO", "CONTROL_GROUPS", "CONTROL_ROOT"):
        monkeypatch.setattr(resources, name, tmp_path / "absent")
    assert resources.free_memory_gb() == resources.all_memory_gb() == float("inf")


def test_a_worker_needs_what_its_most_demanding_node_needs():
    assert worker_gb(SMALL) == SMALL.memory_gb == max(need for _, need in SMALL.node_memory)


def test_the_toolbox_runs_below_the_worker_where_it_finds_cords():
    assert worker_gb(SMALL, cord_method="sct") == pytest.approx(BASE_GB + LATE_GB)
    masked = replace(SMALL, cord_masks=((SMALL.sequences[0].files[0].relative, "/mask.nii.gz"),))
    assert worker_gb(masked, cord_method="sct") == SMALL.memory_gb
    assert worker_gb(replace(SMALL, anchor=None, memory_gb=0.0), cord_method="sct") == 0.0


def test_a_session_too_large_for_the_memory_that_is_there_is_told():
    plan = replace(SMALL, memory_gb=0.5)
    assert check_memory([plan], limit_gb=8.0) == ()
    (words,) = check_memory([plan], limit_gb=2.2)
    assert words == "sub-01 needs about 2.5 GB of memory, 2.2 GB are there: it may be killed"


def test_a_session_that_no_memory_can_hold_is_refused_before_it_is_read(monkeypatch):
    monkeypatch.setattr(resources, "all_memory_gb", lambda: 8.0)
    check_size(job("1", memory_gb=7.9))
    with pytest.raises(ImageError, match=r"need about 20\.0 GB of memory, this machine has 8\.0 GB"):
        check_size(job("1", memory_gb=20.0))
    given = job("1", memory_gb=20.0)
    outcome = run_job(replace(given, plan=replace(given.plan, anchor="T2Sag")), progress=lambda _: None)
    assert outcome.state == "refused"


def test_disk_grows_with_the_prepared_length_and_the_images():
    # 240 mm of 0.8 mm voxels and two margins at the recipe's spacing, 48 x 48 voxels, 6 sequences
    work, out = disk_bytes(SMALL, RECIPE)
    length = (240 + 2 * RECIPE.grid.margin_mm) / RECIPE.grid.spacing_mm
    assert work == pytest.approx(length * 48 * 48 * (14 + 5 * 6) + 2 * 1.05e6, rel=1e-3)
    assert out == pytest.approx(10e6 + 1.05e6)
    assert disk_bytes(replace(SMALL, anchor=None), RECIPE) == (0, 0)
    assert disk_bytes(LARGE, RECIPE)[0] > work


def test_needs_are_summed_by_file_system(tmp_path, monkeypatch):
    options = replace(OPTIONS, output_dir=tmp_path / "not" / "there", nprocs=1)
    work, out = disk_bytes(SMALL, RECIPE)
    monkeypatch.setattr(resources.shutil, "disk_usage", lambda _: SimpleNamespace(free=123.0))
    (need,) = disk_needs(options, [SMALL, SMALL], RECIPE)
    assert (need.folder, need.free) == (tmp_path, 123.0)
    assert need.needed == pytest.approx(2 * (work + out))
    (need,) = disk_needs(replace(options, clean_workdir=True), [SMALL, SMALL], RECIPE)
    assert need.needed == pytest.approx(work + 2 * out)
    there = options.work / "sub-01" / "session"
    there.mkdir(parents=True)
    (there / "a").write_bytes(bytes(1000))
    assert folder_bytes(options.work) == 1000
    (need,) = disk_needs(options, [SMALL], RECIPE)
    assert need.needed == pytest.approx(work + out - 1000)


def write(path, count):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(count))


def test_what_earlier_runs_have_written_is_no_need(tmp_path, monkeypatch):
    options = replace(OPTIONS, output_dir=tmp_path)
    work, out = disk_bytes(SMALL, RECIPE)
    monkeypatch.setattr(resources.shutil, "disk_usage", lambda _: SimpleNamespace(free=123.0))

    def needed():
        return sum(need.needed for need in disk_needs(options, [SMALL], RECIPE))

    mask = "sub-01/anat/sub-01_label-lesion_mask.nii.gz"
    write(tmp_path / mask, 5000)
    assert needed() == pytest.approx(work + out - 5000)  # interrupted
    checksums.record(tmp_path, "sub-01", [mask])
    assert needed() == pytest.approx(work)  # finished, its work folder removed
    write(options.work / "sub-01" / "session" / "a", 1000)
    assert needed() == 0
    (tmp_path / mask).unlink()
    assert needed() == pytest.approx(work + out - 1000)  # a part of it is gone again
    write(tmp_path / "sub-01" / "ses-b" / "anat" / "sub-01_ses-b_mask.nii.gz", 5000)  # another session's
    assert needed() == pytest.approx(work + out - 1000)
    (tmp_path / "logs" / "checksums" / "sub-01.sha256").write_text("damaged")
    assert needed() == pytest.approx(work + out - 1000)


def test_a_run_that_only_has_to_finish_the_rest_is_not_refused(tmp_path, monkeypatch):
    plans = [replace(SMALL, subject=f"{number:03d}") for number in range(30)]
    options = replace(OPTIONS, output_dir=tmp_path)
    for plan in plans[:29]:
        write(tmp_path / f"{plan.label}.html", 10)
        write(options.work / plan.label / "a", 10)
        checksums.record(tmp_path, plan.label, [f"{plan.label}.html"])
    monkeypatch.setattr(resources.shutil, "disk_usage", lambda _: SimpleNamespace(free=400e6))
    assert check_disk(disk_needs(options, plans, RECIPE)) == ()
    with pytest.raises(DiskFullError):
        check_disk(disk_needs(replace(options, output_dir=tmp_path / "new"), plans, RECIPE))


def test_too_little_disk_is_refused_with_both_numbers():
    def need(free):
        return DiskNeed(folder=Path("/out"), needed=10e9, free=free)

    assert check_disk([need(11e9)]) == ()
    (words,) = check_disk([need(7e9)])
    assert "about 10.00 GB will be written to /out, 7.00 GB are free" in words
    with pytest.raises(
        DiskFullError, match=r"about 10\.00 GB .* 4\.00 GB are free.*--clean-workdir"
    ) as caught:
        check_disk([need(4e9)])
    assert caught.value.exit_code == 73
