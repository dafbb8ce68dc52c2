from __future__ import annotations

import io

from bids_scseg.training.console import Console


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def play(console: Console) -> None:
    console.text("two cases")
    console.begin(25, 100)
    for step in (50, 75, 100):
        console.advance(step, 0.5)
        console.row({"iteration": step, "loss": 0.5})
    console.row({"iteration": 100, "f1": 0.25})
    console.end()


def test_plain_lines_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    play(Console(stream, every_s=3600))
    # the first row, none within the hour, the last; looks at held-out cases always
    assert stream.getvalue().splitlines() == [
        "two cases",
        "goes on after iteration 25 of 100",
        "50/100  loss 0.5",
        "100/100  loss 0.5",
        "held-out cases at 100/100  f1 0.25",
    ]
    assert "\r" not in stream.getvalue()


def test_a_bar_on_a_terminal() -> None:
    stream = Terminal()
    play(Console(stream))
    assert "\r" in stream.getvalue()
    assert "28/100" in stream.getvalue()  # 25 and three iterations
    assert "loss 0.5" not in stream.getvalue()
    assert "held-out cases at 100/100  f1 0.25" in stream.getvalue()
