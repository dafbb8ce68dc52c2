"""Plans for people (a table for a terminal) and for programs (JSON)."""

from __future__ import annotations

from collections.abc import Sequence

from bids_scseg.recipe.study import ImageFile, Plan

JSON_VERSION = 1


def plan_table(plans: Sequence[Plan]) -> str:
    """Plans as aligned text: per session the files of each sequence, what is missing, left out and doubtful.

    No plans: a line that says so.
    """
    if not plans:
        return "No sessions.\n"
    blocks = [_block(plan) for plan in plans]
    ready = [plan for plan in plans if plan.anchor]
    total = sum(plan.seconds for plan in ready)
    peak = max((plan.memory_gb for plan in ready), default=0.0)
    summary = f"{len(plans)} session{'s' if len(plans) != 1 else ''}, {len(ready)} to be segmented"
    if ready:
        summary += f"; about {_duration(total)} one after another on 2 CPU cores, up to {peak:.1f} GB each"
    return "\n\n".join([*blocks, summary]) + "\n"


def plans_to_json(plans: Sequence[Plan]) -> dict[str, object]:
    """Plans as plain data for JSON; absent things are null or empty, never left out."""
    return {"version": JSON_VERSION, "sessions": [_session_json(plan) for plan in plans]}


def imputation(plan: Plan) -> str:
    """How missing sequences are filled, in words; empty if none is missing or nothing is there."""
    if not plan.missing or not plan.anchor:
        return ""
    if plan.impute == "late":
        return "not replaced; each image is segmented by itself"
    source = f"the features of {' and '.join(plan.available)}"
    if len(plan.available) > 1:
        source = f"the mean of the features of {', '.join(plan.available)}"
    where = ", at each place over those that cover it" if plan.impute == "voxel" else ""
    return f"replaced by {source}{where}"


def _block(plan: Plan) -> str:
    state = f"anchor {plan.anchor}" if plan.anchor else "CANNOT BE SEGMENTED"
    state = "WILL FAIL" if plan.conflict else state
    cost = f", about {_duration(plan.seconds)}, {plan.memory_gb:.1f} GB" if plan.anchor else ""
    rows = [row for sequence in plan.sequences for row in _file_rows(plan, sequence.name, sequence.files)]
    if plan.missing and plan.anchor:
        rows.append(("missing", f"{', '.join(plan.missing)}: {imputation(plan)}"))
    if plan.refusal:
        rows.append(("reason", plan.refusal))
    if plan.geometry:
        rows.append(("geometry", f"{plan.geometry.rsplit('/', 1)[-1]}, applied as it is; nothing is fitted"))
    rows += [("lesions", f"those of {path.rsplit('/', 1)[-1]}, which a reader corrected")
             for _, path in plan.corrections]  # fmt: skip
    if plan.conflict:
        rows.append(("conflict", plan.conflict))
    rows += [("labels", path.rsplit("/", 1)[-1]) for path in plan.labels]
    rows += [("left out", f"{relative.rsplit('/', 1)[-1]}: {reason}") for relative, reason in plan.left_out]
    rows += [("warning", note) for note in plan.warnings]
    width = max((len(key) for key, _ in rows), default=0)
    return "\n".join([f"{plan.label}: {state}{cost}", *(f"  {key:<{width}}  {text}" for key, text in rows)])


def _file_rows(plan: Plan, name: str, files: tuple[ImageFile, ...]) -> list[tuple[str, str]]:
    masked = dict(plan.cord_masks)
    rows = []
    for number, file in enumerate(files, start=1):
        slab = f" (slab {number} of {len(files)})" if len(files) > 1 else ""
        mask = ", your cord mask" if file.relative in masked else ""
        rows.append((name if number == 1 else "", f"{file.name}  {_lattice(file)}{slab}{mask}"))
    return rows


def _lattice(file: ImageFile) -> str:
    if file.grid is None:
        return ""
    shape = " x ".join(map(str, file.grid.shape))
    spacing = " x ".join(f"{size:.3g}" for size in file.grid.spacing)
    return f"{shape}, {spacing} mm"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _session_json(plan: Plan) -> dict[str, object]:
    masks = dict(plan.cord_masks)
    return {
        "subject": plan.subject,
        "session": plan.session,
        "recipe": plan.recipe,
        "anchor": plan.anchor,
        "refusal": plan.refusal,
        "sequences": {
            sequence.name: [_file_json(file, masks) for file in sequence.files] for sequence in plan.sequences
        },
        "missing": list(plan.missing),
        "imputation": imputation(plan) or None,
        "geometry": plan.geometry or None,
        "labels": list(plan.labels),
        "corrections": [path for _, path in plan.corrections],
        "conflict": plan.conflict or None,
        "left_out": [{"file": relative, "reason": reason} for relative, reason in plan.left_out],
        "warnings": list(plan.warnings),
        "memory_gb": plan.memory_gb,
        "node_memory_gb": dict(plan.node_memory),
        "inference_gb": plan.inference_gb,
        "seconds": plan.seconds,
    }


def _file_json(file: ImageFile, masks: dict[str, str]) -> dict[str, object]:
    return {
        "file": file.relative,
        "shape": list(file.grid.shape) if file.grid else None,
        "spacing_mm": [round(float(size), 4) for size in file.grid.spacing] if file.grid else None,
        "plane": file.grid.plane() if file.grid else None,
        "cord_mask": masks.get(file.relative),
    }
