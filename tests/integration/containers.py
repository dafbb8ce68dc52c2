"""Building images and running them as a cluster would: read-only, without network, as an unknown user."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
USER = 12345  # has no name in the image
LOCKED_DOWN = (
    "podman", "run", "--rm", "--cgroup-manager=cgroupfs", "--events-backend=file", "--runtime=runc",
    "--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024",
    "--network=none", "--read-only", "--read-only-tmpfs=false", "--tmpfs=/tmp", f"--user={USER}:{USER}",
)  # fmt: skip


def run(*command: str, minutes: float = 5, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60 * minutes,
        env={**os.environ, **environment},
    )  # fmt: skip


def said(done: subprocess.CompletedProcess[str]) -> str:
    """What a command printed, which must have succeeded."""
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def container(
    image: str, *arguments: str, options: tuple[str, ...] = (), minutes: float = 5
) -> subprocess.CompletedProcess[str]:
    return run(*LOCKED_DOWN, *options, image, *arguments, minutes=minutes)


def need(*tools: str) -> None:
    """Skip where a builder is not installed or may not work."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    if os.geteuid() != 0:
        pytest.skip("building with chroot isolation and debootstrap needs root")


def build_image(tag: str, **environment: str) -> str:
    """Build the working tree; layers that did not change are taken from the last build."""
    need("buildah", "podman", "runc", "debootstrap")
    said(run(str(HERE / "container_build.sh"), tag, minutes=60, **environment))
    return tag


def folder_of_user(folder: Path) -> Path:
    """A new folder that the image's user owns."""
    folder.mkdir()
    os.chown(folder, USER, USER)
    return folder
