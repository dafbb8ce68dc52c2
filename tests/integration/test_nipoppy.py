"""What Nipoppy's tracker looks for is what a session leaves."""

from __future__ import annotations

import json
from pathlib import Path

TRACKER = Path(__file__).resolve().parents[2] / "nipoppy" / "tracker.json"


def test_every_tracked_path_is_there_once_a_session_is_done(good):
    text = TRACKER.read_text(encoding="utf-8")
    text = text.replace("[[NIPOPPY_BIDS_PARTICIPANT_ID]]", "sub-01").replace(
        "[[NIPOPPY_BIDS_SESSION_ID]]", "ses-1"
    )
    tracker = json.loads(text)
    assert {path: bool(list(good.out.glob(path))) for path in tracker["PATHS"]} == dict.fromkeys(
        tracker["PATHS"], True
    )
    assert (good.out / tracker["PARTICIPANT_SESSION_DIR"]).is_dir()
