from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bids_scseg.errors import DataError, MissingInputError
from bids_scseg.options import RunOptions, available_cpus, read_config

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)


@given(
    st.lists(texts, max_size=3),
    texts,
    st.floats(0.01, 0.99),
    st.booleans(),
    st.integers(0, 64),
    st.lists(st.tuples(texts, texts), max_size=2, unique_by=lambda pair: pair[0]),
)
def test_toml_round_trip(tmp_path_factory, labels, model, threshold, flag, nprocs, folders):
    options = RunOptions(
        bids_dir=Path("in"), output_dir=Path("out"), level="participant", participants=tuple(labels),
        model=model,
        threshold=threshold, deterministic=flag, nprocs=nprocs,
        derivatives=tuple((name, Path(folder)) for name, folder in folders),
        min_volume=10 * threshold, seed_threshold=threshold / 2, geometry=Path("earlier"),
    )  # fmt: skip
    path = tmp_path_factory.mktemp("toml") / "run.toml"
    path.write_text(options.to_toml(), encoding="utf-8")
    assert RunOptions(**read_config(path)) == options


@pytest.mark.parametrize(
    "text",
    [
        "nprocs = 'many'",
        "nprocs = true",
        "unknown = 1",
        "participants = 'a'",
        "derivatives = ['a']",
        "= =",
        "threshold = 1.5",
        "min_volume = -1.0",
        "seed_threshold = 1.0",
        "min_volume = inf",
        "geometry = 3",
        "nprocs = -1",
        "mem_gb = -2.0",
        "output_spaces = 'everywhere'",
    ],
)
def test_malformed_configs_are_refused_with_the_file(tmp_path, text):
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(DataError, match=r"run\.toml"):
        read_config(path)


def test_absent_config(tmp_path):
    with pytest.raises(MissingInputError):
        read_config(tmp_path / "no.toml")


@pytest.mark.parametrize(
    ("text", "expected"), [("150000 100000", 2), ("50000 100000", 1), ("max 100000", 64)]
)
def test_a_containers_cpu_quota_counts(tmp_path, monkeypatch, text, expected):
    quota = tmp_path / "cpu.max"
    quota.write_text(text)
    monkeypatch.setattr("bids_scseg.options.CPU_QUOTA", quota)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert available_cpus() == expected


def test_paths_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = RunOptions(
        bids_dir=Path("in"), output_dir=Path("out"), level="participant", work_dir=Path("w"),
        derivatives=(("labels", Path("in/derivatives/labels")),),
    )  # fmt: skip
    assert (options.bids_dir, options.output_dir, options.work) == (
        tmp_path / "in",
        tmp_path / "out",
        tmp_path / "w",
    )
    assert options.derivatives == (("labels", tmp_path / "in/derivatives/labels"),)
