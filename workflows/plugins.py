"""Nipype's plugins, for those who want a session's graph run by one of them instead of node after node."""

from __future__ import annotations

import getpass
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from bids_scseg.errors import MissingToolError, UsageError
from bids_scseg.options import RunOptions
from bids_scseg.workflows.plugin_args import PluginValue, plugin_values

if TYPE_CHECKING:
    from nipype.pipeline.engine import Workflow

#: Nipype puts these paths into a command line for a shell, unquoted.
PLAIN_PATH = re.compile(r"[\w./@%+=:,-]+", re.ASCII)
#: Plugins that hand nodes to a scheduler, with the command by which they do.
SUBMIT = {
    "SLURM": "sbatch",
    "SGE": "qsub",
    "PBS": "qsub",
    "LSF": "bsub",
    "OAR": "oarsub",
    "Condor": "condor_qsub",
}
#: Seconds between questions to a scheduler: each is a call of its own (Nipype's own default).
POLL_S = 2


def run_workflow(workflow: Workflow, options: RunOptions, *, watch: Any) -> None:
    """Run a session's graph: node after node in this process, or by the plugin that was asked for.

    Parameters
    ----------
    workflow
        The graph.
    options
        ``plugin`` and ``plugin_args`` are read; empty: Nipype's Linear.
    watch
        Nipype's status callback.
    """
    plugin = options.plugin or "Linear"
    arguments: dict[str, PluginValue] = dict(plugin_values(options.plugin_args))
    if plugin == "MultiProc":
        arguments = {**multiproc_defaults(options), **arguments}
    if plugin in SUBMIT:
        keep_here(workflow)
        with suppress(OSError, KeyError):  # a user without a name: the plugin asks for it in job names
            os.environ.setdefault("LOGNAME", getpass.getuser())
        workflow.config["execution"] |= {"poll_sleep_duration": POLL_S}
    if plugin != "Linear":  # what runs already goes on to its end, and is not left behind in a queue
        workflow.config["execution"] |= {"stop_on_first_crash": "false"}
    workflow.run(plugin=plugin, plugin_args={**arguments, "status_callback": watch})


def multiproc_defaults(options: RunOptions) -> Mapping[str, PluginValue]:
    """CPUs of one session among those that run at once; processes that share nothing with this one."""
    return {
        "n_procs": max(1, options.threads // options.workers),
        "mp_context": "spawn",  # a forked child of a process that has used threads can hang
        "raise_insufficient": False,
    }


def keep_here(workflow: Workflow) -> None:
    """Let nodes that ask the inference process run in this process: its socket is on this machine alone."""
    for name in workflow.list_node_names():
        node = workflow.get_node(name)
        if "socket" in node.inputs.copyable_trait_names():
            node.run_without_submitting = True


def check_plugin(options: RunOptions) -> None:
    """Check at the start what a plugin that hands nodes to a scheduler needs.

    Raises
    ------
    UsageError
        If the work folder's path holds blanks, quotes or other signs of a shell.
    MissingToolError
        If the scheduler's command is not there.
    """
    command = SUBMIT.get(options.plugin)
    if command is None:
        return
    if not PLAIN_PATH.fullmatch(str(options.work)):
        raise UsageError(
            f"the work folder {options.work} cannot be handed to a scheduler by Nipype",
            expected="a path of letters, digits and . _ - / only",
            remedy="name another one by --work-dir",
        )
    if shutil.which(command) is None:
        raise MissingToolError(
            f"{command} is not on the PATH",
            expected=f"a scheduler for --plugin {options.plugin}",
            remedy="run on a machine that may submit jobs, or without --plugin",
        )
