"""Figures: conventions that a reader relies on, and sizes from tiny to whole-cord."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest

from bids_scseg.report import canvas, display, encode, figures, strips
from bids_scseg.report.records import NativeImage
from bids_scseg.space.grid import Grid


def drawn(figure) -> np.ndarray:
    return encode.render(figure, dpi=40)


def test_right_is_on_the_left_of_the_viewer():
    with canvas.styled():
        page = canvas.new_canvas(2, 2)
        image = np.zeros((10, 10))
        image[9, :] = 1  # patient's right: the last index along R
        canvas.show(page.axes(0, 0, 2, 2), image, (0, 1))
    pixels = drawn(page.figure)[:, :, 0]
    assert pixels[:, :4].mean() > 150 > 50 > pixels[:, -40:].mean()


def test_strips_have_the_head_on_the_left_and_anterior_on_top():
    image = np.zeros((48, 100))
    image[40:, 80:] = 1  # anterior and superior
    strip = strips.Strip(title="", image=image, window=(0, 1), examined=np.ones(100, bool))
    pixels = drawn(strips.strip_figure([strip], spacing_mm=0.5))[:, :, 0].astype(int)
    # Dark rows and columns of the strip itself, away from white paper and text.
    rows = np.flatnonzero((pixels < 30).mean(axis=1) > 0.3)
    columns = np.flatnonzero((pixels < 30).mean(axis=0) > 0.3)
    strip_pixels = pixels[rows[0] - 5 : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = strip_pixels.shape
    assert strip_pixels[height // 2 + 4 :, :].mean() < 60
    assert (
        strip_pixels[: height // 4, : width // 8].mean()
        > strip_pixels[: height // 4, width // 2 :].mean() + 80
    )


@pytest.mark.parametrize(("sequences", "slices"), [(1, 40), (6, 40), (1, 1000), (6, 1000), (3, 250)])
def test_strips_fit_the_page(make_report, sequences, slices):
    report = make_report(sequences=sequences, slices=slices, count=1)
    figure = strips.overview(report.sequences, report.labels, spacing_mm=0.5, levels=report.levels)
    width, height = figure.get_size_inches()
    assert width == canvas.WIDTH_IN and height <= strips.MAX_HEIGHT + 0.01
    boxes = [axes.get_position() for axes in figure.axes]
    assert len(boxes) == sequences
    assert all(box.x0 >= 0 and box.x1 <= 1.001 and box.y0 >= 0 and box.y1 <= 1 for box in boxes)
    shapes = {(round(box.width * width, 3), round(box.height * height, 3)) for box in boxes}
    ((across, down),) = shapes
    assert across / down == pytest.approx(slices / 48, rel=0.01)  # millimetres are as long both ways


def test_layout_uses_columns_for_short_cords_only():
    assert strips.best_layout([6], length_mm=500, depth_mm=24).columns == 1
    assert strips.best_layout([6], length_mm=20, depth_mm=24).columns > 2


def test_alignment_has_both_states_of_every_sequence(make_report):
    report = make_report(sequences=3, slices=80, count=0)
    figure = strips.alignment(report.sequences, spacing_mm=0.5)
    assert len(figure.axes) == 6


def test_lesion_panel_marks_what_is_not_examined(make_report):
    report = make_report(sequences=3, slices=120, count=2)
    extent = display.extents(report.labels)[0]  # at the lower end, which T2StarAx does not reach
    figure = figures.lesion_panel(extent, report.sequences, report.labels, spacing_mm=0.5)
    words = [[text.get_text() for text in axes.texts] for axes in figure.axes]
    assert words[4] == words[5] == ["not examined"]
    assert "R" in words[0] and "S" in words[1]


def test_crescents_are_cut_through_the_lesion_itself():
    labels = np.zeros((48, 48, 20), np.int16)
    i, j = np.mgrid[:48, :48]
    ring = np.abs(np.hypot(i - 24, j - 24) - 8) < 1.5
    labels[:, :, 8:12][ring] = 1
    at = figures._centre_inside(display.extents(labels)[0], labels)
    assert labels[at] == 1


@pytest.mark.parametrize("shape", [(1, 40, 40), (40, 40, 1), (5, 7, 300)])
def test_native_mosaic_of_thin_volumes(shape):
    grid = Grid(shape=shape, affine=np.diag([3.0, 1.0, 1.0, 1.0]))
    native = NativeImage(file="x", image=np.zeros(shape), grid=grid)
    assert drawn(figures.native_mosaic(native)).shape[1] == 440


def test_native_mosaic_shows_cord_and_centerline(make_report):
    native = make_report(sequences=1, slices=60, count=0).sequences[0].natives[0]
    figure = figures.native_mosaic(native)
    assert sum(bool(axes.lines) for axes in figure.axes) > 5  # centerline or its cross, in every tile
    assert sum(bool(axes.collections) for axes in figure.axes) > 5  # outlines


def test_along_cord_gives_unknown_columns_a_lane(make_report):
    report = make_report(sequences=2, slices=100, count=2)
    found = display.extents(report.labels)
    figure = figures.along_cord(found, {1: "dorsal", 2: "nan"}, report.sequences, slices=100, spacing_mm=0.5)
    lanes = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert figures.ELSEWHERE in lanes and lanes[-2:] == ["T2Sag", "STIR"]


def test_offsets_need_something_to_compare(make_report):
    report = make_report(sequences=2, slices=80, count=0)
    assert figures.offsets(report.sequences[:1], anchor="T2Sag", spacing_mm=0.5) is None
    assert figures.offsets(report.sequences, anchor="T2Sag", spacing_mm=0.5) is not None


def test_style_stays_local(make_report):
    before = dict(mpl.rcParams)
    report = make_report(sequences=1, slices=40, count=1)
    drawn(strips.overview(report.sequences, report.labels, spacing_mm=0.5))
    assert dict(mpl.rcParams) == before


def test_names_of_levels_stand_in_their_middle_between_ticks_at_their_borders():
    levels = (("C1", 90.0, 130.0), ("C2", 50.0, 90.0), ("C3", 49.0, 50.0), ("C4", -30.0, 20.0))
    with canvas.styled():
        page = canvas.new_canvas(canvas.WIDTH_IN, 1)
        axes = page.axes(0.5, 0.5, 5, 0.3)
        canvas.show(axes, np.zeros((100, 20)), (0, 1))
        strips.draw_levels(axes, levels, 100)
    marks = [(text.get_text(), text.xy[0]) for text in axes.texts]
    # of C1 the slices below 99.5 are in view, of C4 those above -0.5; C3 is too short for its name
    assert [mark for mark in marks if mark[0]] == [("C1", 94.75), ("C2", 70.0), ("C4", 9.75)]
    assert [at for name, at in marks if not name] == [20.0, 49.0, 50.0, 90.0]


def test_all_figures_along_the_cord_show_levels_alike(make_report):
    report = make_report(sequences=2, slices=120, count=1)
    facts = {"spacing_mm": 0.5, "levels": report.levels}
    drawn_figures = (
        strips.overview(report.sequences, report.labels, **facts),
        strips.alignment(report.sequences, **facts),
        figures.offsets(report.sequences, anchor="T2Sag", **facts),
        figures.along_cord(display.extents(report.labels), {}, report.sequences, slices=120, **facts),
    )
    for figure in drawn_figures:
        names = {text.get_text(): text.xy[0] for axes in figure.axes for text in axes.texts
                 if text.get_text().startswith("C")}  # fmt: skip
        assert names == {"C1": 93.0, "C2": 59.0, "C3": 25.0, "C4": 3.75}


def test_ticks_are_round_and_few():
    assert strips.nice_step(500, 10) == 50
    assert strips.nice_step(20, 2) == 10
