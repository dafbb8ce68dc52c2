"""Pictures of the documentation, from a finished demo: documentation.py OUT SESSION docs/images

Pages are cut up and photographed by a headless Chromium; maps come from the derivatives themselves.
``--only NAME …`` takes these alone. The two pictures that need a cohort (``group-explore``, ``group-maps``)
are of an invented one: ``--cohort FOLDER`` makes it there, and takes them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image, ImageChops

sys.path.append(str(Path(__file__).parents[1] / "tests"))  # whose browser and cohort these are
from browser import Page, browser

WIDTH, TALL = 1180, 6000  # px of the window; the picture is cut to what it shows
GAP = 24  # px between figures
LARGEST = 290_000  # bytes
ONLY = "main > section:not(#{0}), main > *:not(section), footer, nav {{display: none !important}}"
WIDE = ".frame {display: block !important} main {max-width: 1120px !important; padding: 8px 20px !important}"
FIRST = "section:not(#warnings), footer, nav, .bar {display: none !important}"
CLOSE = "#lesions > *:not(#closeups, #closeups ~ *) {display: none}"
#: name → page (session or group), what to hide, largest height in px
SHOTS = {
    "session-summary": ("session", FIRST, 1040),
    "session-lesions": ("session", ONLY.format("lesions") + "#closeups, #closeups ~ * {display: none}", 1300),
    "session-closeup": ("session", ONLY.format("lesions") + CLOSE, 640),
    "session-sequences": ("session", ONLY.format("sequences"), 1250),
    "session-native": ("session", ONLY.format("native"), 660),
    "session-alignment": ("session", ONLY.format("alignment"), 1100),
    "group-summary": ("group", FIRST, 900),
    "group-review": ("group", ONLY.format("review"), 900),
    "group-sessions": ("group", ONLY.format("sessions"), 800),
}
#: name → figures of the report's own folder, one below the other (``report`` is the README's picture)
STACKS = {"report": ("overview", "lesion01"), "session-strips": ("along", "overview", "probability")}
COHORT_SHOTS = {
    "group-explore": ("cohort", ONLY.format("explore"), 1000),
    "group-maps": ("cohort", ONLY.format("maps"), 1000),
}


def invented(folder: Path) -> Path:
    """The page of an invented cohort, as the tests of the group level make it."""
    from cohort_tree import make_tree

    from bids_scseg.workflows.group import write_group

    bids, out = make_tree(folder, participants=60)
    write_group(out, dataset=bids, facts={"dataset": "invented"})
    return out / "group.html"


def photograph(page: Page, path: Path, css: str, *, height: int, shot: Path) -> Image.Image:
    """A picture of what a page shows with some of it hidden."""
    page.open(path, width=WIDTH, height=TALL)
    sheet = json.dumps(f"{WIDE}{css}")  # a sheet of the browser's own: the page's policy allows no other
    page.evaluate(
        f"(() => {{ const sheet = new CSSStyleSheet(); sheet.replaceSync({sheet});"
        "document.adoptedStyleSheets = [sheet]; })()"
    )
    page.settle()
    page.screenshot(shot)
    with Image.open(shot) as image:
        return cut(image.convert("RGB"), height=height)


def stack(out: Path, label: str, figures: tuple[str, ...]) -> Image.Image:
    """Figures of a session, as wide as each other, one below the other."""
    paths = [out / "figures" / f"{label}_desc-{figure}_figure.png" for figure in figures]
    pictures = [Image.open(path).convert("RGB") for path in paths]
    sizes = [(WIDTH, round(picture.height * WIDTH / picture.width)) for picture in pictures]
    sheet = Image.new("RGB", (WIDTH, sum(height + GAP for _, height in sizes) - GAP), "white")
    top = 0
    for picture, size in zip(pictures, sizes, strict=True):
        sheet.paste(picture.resize(size, Image.Resampling.LANCZOS), (0, top))
        top += size[1] + GAP
    return sheet


def cut(image: Image.Image, *, height: int) -> Image.Image:
    """Without the empty rows below, and not higher than asked for; an empty page is an error."""
    blank = Image.new("RGB", image.size, image.getpixel((0, image.height - 1)))
    box = ImageChops.difference(image, blank).getbbox()
    if box is None:
        raise SystemExit("a section is not on its page")
    return image.crop((0, 0, image.width, min(box[3] + 12, height)))


def keep(image: Image.Image, path: Path) -> None:
    """Write a picture with few colours, smaller until it is small enough."""
    while True:
        # Greys are many and colours few: which colours there are counts, not how often they occur.
        few = image.quantize(200, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        few.save(path, optimize=True)
        if path.stat().st_size < LARGEST:
            print(f"{path.name}: {image.size}, {path.stat().st_size / 1000:.0f} kB")
            return
        image = image.resize((int(image.width * 0.85), int(image.height * 0.85)))


def maps(out: Path, label: str, path: Path) -> None:
    """Probability, mask and numbers on the anchor's own grid, in the slice that has most lesion."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    anat = out.joinpath(*label.split("_"), "anat")
    kinds = {
        "desc-preproc_T2w": (None, {}),
        "label-lesion_probseg": ("inferno", {"vmin": 0, "vmax": 1}),
        "label-lesion_mask": ("autumn", {"vmin": 0, "vmax": 2}),
        "seg-lesions_dseg": ("Set1", {"vmin": 1, "vmax": 9}),
    }
    volumes = {kind: sagittal(one(anat, label, kind)) for kind in kinds}
    lesion = volumes["label-lesion_mask"] > 0
    slice_ = int(np.argmax(lesion.sum(axis=(1, 2))))
    _, front, up = (int(np.median(found)) for found in np.nonzero(lesion))
    view = np.s_[slice_, max(front - 60, 0) : front + 60, max(up - 110, 0) : up + 110]
    figure, axes = plt.subplots(1, 4, figsize=(11, 5.6), facecolor="white")
    for axis, (kind, (colours, limits)) in zip(axes, kinds.items(), strict=True):
        axis.imshow(volumes["desc-preproc_T2w"][view].T, cmap="gray", origin="lower")
        if colours is not None:
            shown = np.ma.masked_less_equal(volumes[kind][view], 0.02)
            axis.imshow(shown.T, cmap=colours, origin="lower", interpolation="nearest", **limits)
        axis.set_title(kind, fontsize=10)
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)
    with Image.open(path) as image:
        picture = image.convert("RGB")
    keep(picture, path)


def one(anat: Path, label: str, kind: str) -> Path:
    """The fused image of a kind (not that of a slab)."""
    return next(p for p in sorted(anat.glob(f"{label}_*{kind}.nii.gz")) if "_chunk-" not in p.name)


def sagittal(path: Path) -> np.ndarray:
    """Volume with axes right, anterior, superior."""
    image = nib.as_closest_canonical(nib.load(path))
    return np.asarray(image.dataobj, dtype=float)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="output folder of a demo, both levels done")
    parser.add_argument("session", help="one with several slabs of T2Sag, such as sub-02_ses-2")
    parser.add_argument("images", type=Path, help="folder of pictures")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these pictures alone")
    parser.add_argument(
        "--cohort", type=Path, metavar="FOLDER", help="make an invented cohort here, for two more"
    )
    arguments = parser.parse_args()
    pages = {"session": arguments.out / f"{arguments.session}.html", "group": arguments.out / "group.html"}
    folder = Path(tempfile.mkdtemp())
    shots = dict(SHOTS)
    if arguments.cohort is not None:
        pages["cohort"], shots = invented(arguments.cohort), shots | COHORT_SHOTS
    wanted = arguments.only or [*shots, *STACKS, "images"]
    for name in STACKS:
        if name in wanted:
            keep(stack(arguments.out, arguments.session, STACKS[name]), arguments.images / f"{name}.png")
    with browser(folder) as page:
        for name, (which, css, height) in shots.items():
            if name in wanted:
                picture = photograph(page, pages[which], css, height=height, shot=folder / "shot.png")
                keep(picture, arguments.images / f"{name}.png")
    if "images" in wanted:
        maps(arguments.out, arguments.session, arguments.images / "images.png")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
