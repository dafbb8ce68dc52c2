"""Nipype's plugins: their arguments, and what is asked of Nipype."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from bids_scseg.cli.parser import parse
from bids_scseg.errors import DataError, MissingInputError, MissingToolError, UsageError
from bids_scseg.options import RunOptions
from bids_scseg.workflows.plugin_args import plugin_values, plugin_words
from bids_scseg.workflows.plugins import check_plugin, run_workflow

RUN = ("bids", "out", "participant")


def test_arguments_from_words_and_files_later_ones_win(tmp_path):
    file = tmp_path / "plugin.json"
    file.write_text(json.dumps({"n_procs": 2, "sbatch_args": "--time=10 --mem=4G"}))
    words = plugin_words([str(file), "n_procs=3", "raise_insufficient=false"])
    assert plugin_values(words) == {
        "n_procs": 3,
        "sbatch_args": "--time=10 --mem=4G",
        "raise_insufficient": False,
    }
    assert plugin_words(words) == words  # as a configuration that was written reads them again


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("n_proc=2", "unknown plugin argument 'n_proc'"),
        ("n_procs=two", "n_procs has value 'two'"),
        ("n_procs=true", "n_procs has value True"),
        ("status_callback=print", "unknown plugin argument"),
        ("sbatch_args=--time=1; touch pwned", "a shell would read"),
        ("sbatch_args=$(touch pwned)", "a shell would read"),
        ("qsub_args=-l mem=1\ntouch pwned", "a shell would read"),
        ('bsub_args="`id`"', "a shell would read"),
    ],
)
def test_arguments_that_are_none_are_refused(word, said):
    with pytest.raises(DataError, match=said.replace("'", ".")):
        plugin_words([word])


def test_files_that_are_none_are_refused(tmp_path):
    with pytest.raises(MissingInputError, match="neither key=value nor a file"):
        plugin_words(["absent.json"])
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(DataError, match="holds no object"):
        plugin_words([str(tmp_path / "list.json")])


def test_command_line_and_configuration(tmp_path):
    options = parse([*RUN, "--plugin", "MultiProc", "--plugin-args", "n_procs=2", "memory_gb=4.5"])
    assert (options.plugin, options.plugin_args) == ("MultiProc", ("n_procs=2", "memory_gb=4.5"))
    config = tmp_path / "run.toml"
    config.write_text('plugin = "MultiProc"\nplugin_args = ["n_procs=2", "memory_gb=4.5"]\n')
    assert parse([*RUN, "--config-file", str(config)]) == options
    config.write_text('plugin = "MultiProcc"\n')
    with pytest.raises(DataError, match="Linear, MultiProc, SLURM"):
        parse([*RUN, "--config-file", str(config)])
    assert parse([*RUN]).plugin == ""


@pytest.mark.parametrize("name", ["Slurm", "SLURMGraph", "nonsense", "../x"])
def test_names_that_are_none_are_answered_with_those_there_are(name):
    with pytest.raises(UsageError, match="MultiProc"):
        parse([*RUN, "--plugin", name])


def test_arguments_need_a_plugin():
    with pytest.raises(UsageError, match="without a plugin"):
        parse([*RUN, "--plugin-args", "n_procs=2"])


def options_with(work: Path, plugin: str, *words: str, **more: object) -> RunOptions:
    return RunOptions(
        bids_dir=work, output_dir=work, level="participant", work_dir=work, plugin=plugin, plugin_args=words,
        **more,
    )  # fmt: skip


def test_schedulers_need_their_command_and_a_plain_path(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingToolError, match="sbatch is not on the PATH"):
        check_plugin(options_with(tmp_path, "SLURM"))
    (tmp_path / "sbatch").write_text("#!/bin/sh\n")
    (tmp_path / "sbatch").chmod(0o755)
    check_plugin(options_with(tmp_path, "SLURM"))
    with pytest.raises(UsageError, match="cannot be handed to a scheduler"):
        check_plugin(options_with(tmp_path / "my work; rm -r x", "SLURM"))
    check_plugin(options_with(tmp_path / "my work", "MultiProc"))
    check_plugin(options_with(tmp_path / "my work", ""))


class Graph:
    """Stands for a workflow: two nodes, one of which asks the inference process."""

    def __init__(self) -> None:
        self.config: dict[str, dict[str, object]] = {"execution": {}}
        self.nodes = {name: self.node(traits) for name, traits in (("segment", ["socket"]), ("measure", []))}
        self.asked: tuple[str, dict[str, object]] = ("", {})

    @staticmethod
    def node(traits: list[str]) -> SimpleNamespace:
        inputs = SimpleNamespace(copyable_trait_names=lambda: traits)
        return SimpleNamespace(inputs=inputs, run_without_submitting=False)

    def list_node_names(self) -> list[str]:
        return list(self.nodes)

    def get_node(self, name: str) -> SimpleNamespace:
        return self.nodes[name]

    def run(self, *, plugin: str, plugin_args: dict[str, object]) -> None:
        self.asked = (plugin, plugin_args)


def test_without_a_plugin_nothing_is_changed(tmp_path):
    graph = Graph()
    run_workflow(graph, options_with(tmp_path, ""), watch=print)
    assert graph.asked == ("Linear", {"status_callback": print})
    assert graph.config == {"execution": {}}


def test_multiproc_shares_the_cpus_among_sessions(tmp_path):
    graph = Graph()
    options = options_with(tmp_path, "MultiProc", nprocs=2, omp_nthreads=6)
    run_workflow(graph, options, watch=print)
    plugin, given = graph.asked
    assert plugin == "MultiProc"
    assert (given["n_procs"], given["mp_context"], given["status_callback"]) == (3, "spawn", print)
    run_workflow(graph, options_with(tmp_path, "MultiProc", "n_procs=1"), watch=print)
    assert graph.asked[1]["n_procs"] == 1
    assert not graph.nodes["segment"].run_without_submitting


def test_what_asks_the_inference_process_stays_on_this_machine(tmp_path):
    graph = Graph()
    run_workflow(graph, options_with(tmp_path, "SLURM", 'sbatch_args="--time=10"'), watch=print)
    assert graph.asked[1]["sbatch_args"] == "--time=10"
    assert graph.nodes["segment"].run_without_submitting
    assert not graph.nodes["measure"].run_without_submitting
    assert graph.config["execution"]["stop_on_first_crash"] == "false"
