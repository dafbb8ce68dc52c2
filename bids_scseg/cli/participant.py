"""The participant level: plan, run every session, say how it went."""

from __future__ import annotations

import datetime
import json
import os
import platform
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from bids_scseg import NUMERICAL_VERSION, __version__
from bids_scseg.bids.checksums import DATASET, ROOT_FILES, has_list, merge, record
from bids_scseg.bids.corrections import correction_links, with_corrections
from bids_scseg.bids.dataset import check_output_folder, write_dataset_files
from bids_scseg.bids.filters import Filters, read_filters
from bids_scseg.bids.given import with_geometry
from bids_scseg.bids.memory import inference_gb
from bids_scseg.bids.plan import check_sequences, make_plan
from bids_scseg.bids.query import find_studies
from bids_scseg.bids.table import plan_table, plans_to_json
from bids_scseg.bids.write import write_text
from bids_scseg.cli.checks import check_startup
from bids_scseg.cli.console import Console, summary
from bids_scseg.cli.version import library_versions
from bids_scseg.errors import (
    BusyError,
    DiskFullError,
    MissingInputError,
    OutputError,
    ScsegError,
    UsageError,
)
from bids_scseg.files import sweep
from bids_scseg.inference.bundle import ModelBundle, load_bundle, session_mismatch
from bids_scseg.inference.client import InferenceServer
from bids_scseg.inference.pool import InferencePool
from bids_scseg.interfaces.engine import check_engine, lasting_name, load_engine
from bids_scseg.interfaces.sct import CORD_TASK, cord_source, sct_release, sct_sha256
from bids_scseg.options import CORD_METHODS, RunOptions
from bids_scseg.recipe.study import Plan, Study
from bids_scseg.workflows.budget import Budget, Device
from bids_scseg.workflows.job import SessionJob, SessionOutcome, failed
from bids_scseg.workflows.resources import (
    check_disk,
    check_memory,
    disk_bytes,
    disk_needs,
    memory_gb,
    worker_count,
    worker_gb,
)
from bids_scseg.workflows.runner import run_sessions
from bids_scseg.workflows.status import Derived, write_outcome
from bids_scseg.workflows.verification import verify_run

CORD_FINDER = "cord-finder"
PROBLEMS_SHOWN = 10  # of the verification; all stand in its log
TYPICAL_STEPS = 12  # of a session with seven images; only the bar's length depends on it


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """The two networks of a run and how cords are found."""

    lesion: ModelBundle
    cord: ModelBundle | None
    cord_method: str

    @property
    def needs_anchor(self) -> str | None:
        """The sequence without which the lesion model cannot work; None if any subset will do."""
        own = not self.lesion.engine and self.lesion.network.skips == "anchor"
        return self.lesion.recipe.anchors[0] if own else None

    @property
    def needs_server(self) -> bool:
        """Whether a network of this program's runs, for lesions or for cords."""
        return not self.lesion.engine or self.cord is not None

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the libraries behind the numbers, and another program's that finds lesions or cords."""
        release = {"Spinal Cord Toolbox": self.engine_release} if self.lesion.engine else {}
        if self.cord_method == "sct":
            release = {"Spinal Cord Toolbox": sct_release() or "unknown"}
        return {**library_versions(), **release}

    @property
    def cord_sha256(self) -> str:
        """Checksum of what finds cords: weights of the built-in network, or SCT's release and network."""
        if self.cord is not None:
            return self.cord.weights_sha256
        return sct_sha256(CORD_TASK) if self.cord_method == "sct" else ""

    @property
    def engine_release(self) -> str:
        """Release of the program whose network finds the lesions; empty for a network of this program."""
        return dict(self.lesion.provenance).get("release", "unknown") if self.lesion.engine else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoServer:
    """Stands for the inference process where another program does all the work."""

    servers: tuple[InferenceServer, ...] = ()
    description: str = "Spinal Cord Toolbox, CPU"
    warning: str | None = None


def run_participant(options: RunOptions) -> int:
    """Run the participant level; the exit code."""
    raw = _raw(options)
    check_folders(options, raw)
    check_startup(options)
    models = load_models(options)
    filters = read_filters(options.filter_file, models.lesion.recipe) if options.filter_file else None
    check_sequences(options.sequences, models.lesion.recipe)
    studies = find_studies(
        raw,
        participants=options.participants,
        sessions=options.sessions,
        exclude=options.exclude,
        validate_names=not options.skip_bids_validation,
        follow_links=options.follow_links,
    )
    plans = session_plans(options, models, studies, filters=filters)
    if options.dry_run:
        return _dry_run(options, list(plans))
    if options.boilerplate_only:
        sys.stdout.write(methods_text(options, models))
        return 0
    if options.reports_only:
        return _rewrite_reports(options, plans)
    return _run(options, models, plans, total=len(studies))


def check_folders(options: RunOptions, raw: Path) -> None:
    """Refuse folders that cannot be meant, before anything is written.

    Raises
    ------
    OutputError
        If the output folder is the raw dataset, lies among its images, or belongs to another program.
    UsageError
        If two derivatives folders bear one name, of which only one would be looked at.
    MissingInputError
        If a derivatives folder, or the one with geometries, is absent.
    """
    check_output_folder(options.output_dir, raw)
    if options.geometry is not None and not options.geometry.is_dir():
        raise MissingInputError(
            "there is no such folder of an earlier run",
            file=options.geometry,
            expected="a folder with sub-*/[ses-*/]anat/*_geometry.json",
            remedy="correct --geometry",
        )
    names = [name for name, _ in options.derivatives]
    for name, folder in options.derivatives:
        if names.count(name) > 1:
            raise UsageError(
                f"two derivatives folders are called {name!r}",
                file=folder,
                expected="a name for each",
                remedy=f"name them: --derivatives first={folder} second=...",
            )
        if not folder.is_dir():
            raise MissingInputError(
                f"there is no derivatives folder for {name}",
                file=folder,
                expected="a folder with sub-* in it",
                remedy="correct --derivatives",
            )


def methods_text(options: RunOptions, models: Models) -> str:
    """Methods text of a whole run, Markdown."""
    from bids_scseg.report.methods import boilerplate, recipe_facts

    return boilerplate(
        recipe_facts(
            models.lesion.recipe,
            version=__version__,
            cord_source=models.cord_method,
            model=models.lesion.name,
            threshold=models.lesion.threshold if options.threshold is None else options.threshold,
            seed_thresholds=_seed_thresholds(options, models),
            min_volume_mm3=_min_volume(options, models),
            model_sha256=models.lesion.weights_sha256,
            versions=models.versions,
            engine=models.lesion.engine,
            engine_release=models.engine_release,
            given_geometry="" if options.geometry is None else options.geometry.name,
        )
    )


def check_cord(cord: str, folders: Mapping[str, Path]) -> None:
    """Refuse a name of cords that nothing bears.

    Parameters
    ----------
    cord
        ``--cord``.
    folders
        Derivatives folders by name.

    Raises
    ------
    UsageError
        If ``--cord`` names neither a method nor a derivatives folder.
    """
    if cord not in CORD_METHODS and cord not in folders:
        raise UsageError(
            f"--cord {cord} is neither a method nor a derivatives folder",
            expected=", ".join([*CORD_METHODS, *folders]),
            remedy=f"add -d {cord}=PATH",
        )


def load_models(options: RunOptions) -> Models:
    """Read the bundles and decide how cords are found.

    Raises
    ------
    MissingToolError
        If SCT, or a network of it, is asked for and not installed.
    UsageError
        If ``--cord`` names neither a method nor a derivatives folder, or ``--model`` an unknown engine.
    """
    check_cord(options.cord, dict(options.derivatives))
    method = cord_source(options.cord)
    lesion = load_engine(options.model)
    check_engine(lesion)
    finder = load_bundle(CORD_FINDER) if method == "builtin" else None
    return Models(lesion=lesion, cord=finder, cord_method=method)


def session_plans(
    options: RunOptions, models: Models, studies: Sequence[Study], *, filters: Filters | None
) -> Iterator[Plan]:
    """The plan of each session, with its warnings; one whose folder cannot be read is a plan that says so."""
    folders = dict(options.derivatives)
    chosen = [folders[options.cord]] if options.cord in folders else list(folders.values())
    recipe = models.lesion.recipe
    for study in studies:
        try:
            plan = make_plan(
                study,
                recipe,
                filters=filters,
                sequences=options.sequences or None,
                derivatives=[*chosen, *(folder for folder in folders.values() if folder not in chosen)],
                results=[options.output_dir],
                needs_anchor=models.needs_anchor,
                late=bool(models.lesion.engine),
            )
            if options.geometry is not None:
                plan = with_geometry(plan, options.geometry, recipe, needs_anchor=models.needs_anchor)
            plan = with_corrections(plan, study, [options.output_dir, *folders.values()])
            loud = session_mismatch(models.lesion, plan, cord_method=models.cord_method)
            yield replace(plan, warnings=(*loud, *plan.warnings))
        except OSError as error:  # a folder that cannot be read is this session's trouble alone
            yield Plan(
                subject=study.subject,
                session=study.session,
                dataset=study.dataset,
                recipe=recipe.name,
                sequences=(),
                missing=recipe.sequence_names,
                anchor=None,
                refusal=f"{error.filename or 'a folder'} cannot be read ({error.strerror})",
            )


def _dry_run(options: RunOptions, plans: list[Plan]) -> int:
    data = json.dumps(plans_to_json(plans), indent=2) + "\n"
    if options.json_plan is not None and str(options.json_plan) == "-":
        sys.stdout.write(data)
        return 0
    sys.stdout.write(plan_table(plans) + "\n")
    if options.json_plan is not None:
        write_text(options.json_plan.parent, options.json_plan.name, data)
    return 0


def _rewrite_reports(options: RunOptions, plans: Iterator[Plan]) -> int:
    """Draw the reports of finished sessions again; the exit code."""
    from bids_scseg.workflows.reports import rewrite_report

    drawn = left = 0
    for plan in plans:
        try:
            words = f"{plan.label}: {rewrite_report(plan, options)}"
            drawn += 1
        except ScsegError as error:
            left, words = left + 1, f"{plan.label}: no report: {error}"
        sys.stderr.write(words + "\n")
    if drawn:
        merge(options.output_dir)
    return 1 if left else 0


def _run(options: RunOptions, models: Models, plans: Iterator[Plan], *, total: int) -> int:
    ready = list(plans)
    notes = check_resources(options, models, ready)
    out = prepare_output(options)
    at_most = worker_count(options, total)
    with _inference(options, at_most=at_most) if models.needs_server else nullcontext(NoServer()) as server:
        facts = run_facts(options, models, device=server.description)
        write_dataset_files(
            out,
            raw=_raw(options),
            recipe=models.lesion.recipe,
            version=__version__,
            links=correction_links(ready, dict(options.derivatives)),
        )
        record(out, DATASET, ROOT_FILES)
        lasting = replace(options, model=lasting_name(options.model))  # read from other folders, too
        write_text(out, f"logs/run-{facts['run_id']}.toml", lasting.to_toml())
        write_text(out, "logs/methods.md", methods_text(options, models))
        console = Console(total, steps=TYPICAL_STEPS)
        with closing(console):
            for note in (server.warning, *notes):
                if note:
                    console.line(note)
            jobs = (_job(plan, options, models, facts=facts) for plan in ready)
            taken = inference_gb(models.lesion.recipe) * len(server.servers)
            budget = Budget(memory_gb=memory_gb(options) - taken, devices=_devices(server))
            outcomes = _run_jobs(jobs, options, console, facts=facts, total=total, budget=budget)
    sys.stderr.write(summary(outcomes, total=total, output_dir=out) + "\n")
    return _verified(out, outcomes) or exit_code(outcomes, total=total)


def check_resources(options: RunOptions, models: Models, plans: Sequence[Plan]) -> tuple[str, ...]:
    """What to tell about memory and disk before the start.

    Raises
    ------
    DiskFullError
        If the disk is surely too small.
    """
    recipe = models.lesion.recipe
    short = check_memory(plans, limit_gb=memory_gb(options), cord_method=models.cord_method)
    return (*check_disk(disk_needs(options, plans, recipe)), *short)


def _devices(server: InferencePool | NoServer) -> tuple[Device, ...]:
    return tuple(Device(address=item.address, description=item.description) for item in server.servers)


def _verified(out: Path, outcomes: Sequence[SessionOutcome]) -> int:
    """Verify what this run has finished, and say so; 1 if something is wrong."""
    done = [outcome.label for outcome in outcomes if outcome.ok]
    if not done or any(outcome.ends_run for outcome in outcomes):  # its verdict needs room as well
        return 0
    verdict = verify_run(out, done)
    lines = [f"  wrong: {problem}" for problem in verdict.problems[:PROBLEMS_SHOWN]]
    sys.stderr.write("\n".join([str(verdict), *lines]) + "\n")
    return 0 if verdict.passed else 1


@contextmanager
def _inference(options: RunOptions, *, at_most: int) -> Iterator[InferencePool]:
    """The inference processes; where one cannot start, the folders made for the run go again."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(
                InferencePool(
                    options.device,
                    threads=options.threads,
                    at_most=at_most,
                    deterministic=options.deterministic,
                )
            )
        except ScsegError:
            for folder in (options.work, options.output_dir):
                with suppress(OSError):
                    folder.rmdir()  # does so only if it is empty
            raise
        yield server


def exit_code(outcomes: Sequence[SessionOutcome], *, total: int) -> int:
    """0: all done; 75: the only trouble is that another run works on the same sessions; else 1."""
    undone = [outcome for outcome in outcomes if not outcome.ok]
    if undone and all(outcome.state == "busy" for outcome in undone):
        return BusyError.exit_code
    return 1 if undone or len(outcomes) < total else 0


def _run_jobs(
    jobs: Iterator[SessionJob],
    options: RunOptions,
    console: Console,
    *,
    facts: dict[str, object],
    total: int,
    budget: Budget,
) -> list[SessionOutcome]:
    outcomes: list[SessionOutcome] = []
    derived = Derived(options.output_dir)
    finished = run_sessions(
        jobs,
        workers=worker_count(options, total),
        stop_on_first_crash=options.stop_on_first_crash,
        progress=console.step,
        budget=budget,
    )
    try:
        with closing(finished):
            for ended in finished:
                outcome = _logged(options.output_dir, ended, facts, derived)
                outcomes.append(outcome)
                console.end(outcome)
                if outcome.ends_run and not ended.ends_run:
                    break  # not even a log can be written
    finally:  # also of a run that is interrupted
        with suppress(DiskFullError):  # told of by a session, or by verification; the next run makes them
            derived.renew(now=True)
    return outcomes


def _logged(out: Path, outcome: SessionOutcome, facts: dict[str, object], derived: Derived) -> SessionOutcome:
    """Write a session's log, and its page if it failed; where the disk is too full for it, it has failed."""
    if outcome.state == "busy":
        return outcome  # the log and page of that session are the other run's
    try:
        write_outcome(out, outcome, run=facts)
        if not outcome.ok:
            write_failure_page(out, outcome, facts)
        derived.renew()
    except DiskFullError as error:
        return outcome if outcome.ends_run else failed(outcome.label, error, step="log")
    return outcome


def write_failure_page(out: Path, outcome: SessionOutcome, facts: dict[str, object]) -> None:
    """The report of a session that has no results: what happened, and what to do."""
    from bids_scseg.report.session import write_failure_report

    details = {"step": outcome.step, "file": outcome.file, "state": outcome.state, "device": outcome.device}
    folder = out.joinpath(*outcome.label.split("_"), "anat")  # sub-X[/ses-Y]: labels have no other parts
    if (folder / f"{outcome.label}_summary.json").is_file():
        details["earlier results"] = "images and tables of an earlier run of this session are still in place"
    write_failure_report(
        outcome.label,
        out / f"{outcome.label}.html",
        cause=outcome.cause,
        remedy=outcome.remedy,
        facts={key: value for key, value in details.items() if value},
        date=str(facts["started"]),
    )
    if has_list(out, outcome.label):  # of an earlier run, whose page this one replaces
        record(out, outcome.label, [f"{outcome.label}.html"], add=True)


def _raw(options: RunOptions) -> Path:
    if options.bids_dir is None:
        raise UsageError(
            "the participant level needs the raw dataset", remedy="name its folder instead of '-'"
        )
    return options.bids_dir


def _job(plan: Plan, options: RunOptions, models: Models, *, facts: dict[str, object]) -> SessionJob:
    threshold = models.lesion.threshold if options.threshold is None else options.threshold
    seed, alone = _seed_thresholds(options, models)
    return SessionJob(
        plan=plan,
        options=options,
        socket="",  # of the device that it is given when it starts
        model_path=str(models.lesion.path),
        model_sha256=models.lesion.inference_sha256,
        cord_method=models.cord_method,
        cord_path=str(models.cord.path) if models.cord else "",
        cord_sha256=models.cord.inference_sha256 if models.cord else str(facts["cord_sha256"] or ""),
        threshold=threshold,
        seed_threshold=seed,
        seed_threshold_alone=alone,
        min_volume_mm3=_min_volume(options, models),
        device=str(facts["device"]),
        started=str(facts["started"]),
        memory_gb=worker_gb(plan, cord_method=models.cord_method),
        disk_gb=sum(disk_bytes(plan, models.lesion.recipe)) / 1e9,
        versions=(("bids_scseg", __version__), *models.versions.items()),
    )


def _seed_thresholds(options: RunOptions, models: Models) -> tuple[float, float]:
    """Where several sequences see, and where one does (0: as elsewhere); the user's is for both."""
    rules = models.lesion.recipe.inference
    given = options.seed_threshold
    pair = (rules.seed_threshold, rules.seed_threshold_alone) if given is None else (given, 0.0)
    threshold = models.lesion.threshold if options.threshold is None else options.threshold
    several, alone = (seed if seed > threshold else 0.0 for seed in pair)  # all lesions reach the threshold
    return several, alone


def _min_volume(options: RunOptions, models: Models) -> float:
    rule = models.lesion.recipe.inference.min_volume_mm3
    return rule if options.min_volume is None else options.min_volume


def prepare_output(options: RunOptions) -> Path:
    """Make the output and work folders.

    Raises
    ------
    OutputError
        If they cannot be written.
    """
    out = options.output_dir
    for folder in (out, options.work):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"cannot be made ({error.strerror})", file=folder, remedy="choose a writable folder"
            ) from error
        if not os.access(folder, os.W_OK | os.X_OK):
            raise OutputError("cannot be written", file=folder, remedy="choose a writable folder")
    for folder in (out, out / "logs", out / "figures", out / "group"):
        sweep(folder)
    return out


def run_facts(options: RunOptions, models: Models, *, device: str) -> dict[str, object]:
    """What every log of this run states."""
    now = datetime.datetime.now(datetime.UTC)
    return {
        "started": now.strftime("%Y-%m-%d %H:%M UTC"),
        # Job arrays start many runs in one second, on hosts of equal names.
        "run_id": f"{now:%Y%m%dT%H%M%S}-{secrets.token_hex(2)}",
        "version": __version__,
        "numerical_version": NUMERICAL_VERSION,
        "python": platform.python_version(),
        "libraries": models.versions,
        "model": models.lesion.name,
        "model_sha256": models.lesion.weights_sha256,
        "cord_method": models.cord_method,
        "cord_sha256": models.cord_sha256 or None,
        "device": device,
        "seed": options.random_seed,
    }
