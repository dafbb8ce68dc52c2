"""What ``--version`` prints: program, weights, toolbox and libraries, each with a checksum of its content."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from pathlib import Path

from bids_scseg import NUMERICAL_VERSION, __version__

LIBRARIES = ("torch", "monai", "nipype", "pybids", "nibabel", "antspyx", "numpy", "scipy")
CODE_SUFFIXES = frozenset({".py", ".json", ".html", ".css", ".js"})
SHORT = 16  # hexadecimal digits shown of a library's checksum: enough to tell two installations apart


def library_versions() -> dict[str, str]:
    """Installed versions of the libraries that results depend on; the modules are not imported."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def version_text() -> str:
    """Program, weights, toolbox and libraries, one per line."""
    from bids_scseg.inference.bundle import load_bundle, packaged_models
    from bids_scseg.interfaces.sct import SCT_RELEASE, find_sct, sct_models, sct_release

    python = platform.python_version()
    lines = [
        f"bids_scseg {__version__} (Python {python}, numerical version {NUMERICAL_VERSION})",
        f"code: sha256 {code_checksum()}",
    ]
    for name in sorted(packaged_models()):
        bundle = load_bundle(name)
        lines.append(f"model {name}: sha256 {bundle.weights_sha256}")
    sct = find_sct()
    release = f"release {sct_release() or 'unknown'} at {sct}" if sct else "not installed"
    lines.append(f"sct_deepseg: {release} (calls are those of SCT {SCT_RELEASE})")
    lines += [f"sct model {name}: sha256 {checksum}" for name, checksum in sct_models().items()]
    for name, version in library_versions().items():
        checksum = library_checksum(name)
        lines.append(f"{name} {version}" + (f" (sha256 {checksum[:SHORT]})" if checksum else ""))
    return "\n".join(lines) + "\n"


def code_checksum(root: Path | None = None) -> str:
    """SHA-256 of this package's code, recipes and templates: names and contents, in the order of names.

    The same for an installed package and for the repository that it was installed from.
    """
    root = root or Path(__file__).resolve().parents[1]
    found = hashlib.sha256()
    for name, path in sorted(_code_files(root, "").items()):
        found.update(f"{name}\0".encode())
        found.update(path.read_bytes())
    return found.hexdigest()


def _code_files(folder: Path, prefix: str) -> dict[str, Path]:
    """Relative name → path; follows the link to the workflows, which ``rglob`` does not."""
    files: dict[str, Path] = {}
    for path in folder.iterdir():
        if path.is_dir():
            files |= (
                _code_files(path, f"{prefix}{path.name}/")
                if path.name not in ("__pycache__", "models")
                else {}
            )
        elif path.suffix in CODE_SUFFIXES:
            files[prefix + path.name] = path
    return files


def library_checksum(name: str) -> str | None:
    """SHA-256 over the checksums that a library's installation record holds of its files.

    Where it was installed, what the installer added and what was compiled since do not count; None if there
    is no such record (an editable installation, a system package).
    """
    try:
        text = importlib.metadata.distribution(name).read_text("RECORD")
    except importlib.metadata.PackageNotFoundError:
        return None
    lines = (line.rsplit(",", 2) for line in (text or "").splitlines())
    kept = sorted(
        f"{path} {checksum}"
        for path, checksum, _ in (line for line in lines if len(line) == 3)
        if checksum
        and ".dist-info/" not in path
        and not path.startswith(("..", "/"))
        and not path.endswith(".pyc")
    )
    return hashlib.sha256("\n".join(kept).encode()).hexdigest() if kept else None
