"""What ``--version`` prints."""

from __future__ import annotations

import importlib.metadata
import platform

from bids_scseg import __version__

LIBRARIES = ("torch", "monai", "nipype", "pybids", "nibabel", "antspyx", "numpy", "scipy")


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
    """Program, weights with checksums, tools and libraries, one per line."""
    from bids_scseg.inference.bundle import load_bundle, packaged_models
    from bids_scseg.interfaces.sct import SCT_RELEASE, find_sct

    lines = [f"bids_scseg {__version__} (Python {platform.python_version()})"]
    for name in sorted(packaged_models()):
        bundle = load_bundle(name)
        lines.append(f"model {name}: sha256 {bundle.weights_sha256}")
    sct = find_sct()
    lines.append(f"sct_deepseg: {sct or 'not installed'} (calls are those of SCT {SCT_RELEASE})")
    lines += [f"{name} {version}" for name, version in library_versions().items()]
    return "\n".join(lines) + "\n"
