"""Arguments for Nipype's plugins: from a command line or a JSON file to plain values, checked."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from bids_scseg.errors import DataError, MissingInputError
from bids_scseg.files import read_json

PluginValue = str | int | float | bool

#: What the plugins of Nipype 1.11 read, and of which type it is.
KNOWN: Mapping[str, tuple[type, ...]] = {
    "n_procs": (int,), "memory_gb": (int, float), "n_gpu_procs": (int,), "raise_insufficient": (bool,),
    "scheduler": (str,), "mp_context": (str,), "maxtasksperchild": (int,),
    "max_jobs": (int,), "max_tries": (int,), "retry_timeout": (int, float), "template": (str,),
    "sbatch_args": (str,), "qsub_args": (str,), "bsub_args": (str,), "oarsub_args": (str,),
}  # fmt: skip
#: Nipype makes a shell's command line of these: nothing in them may mean something to a shell.
SHELL_WORDS = ("sbatch_args", "qsub_args", "bsub_args", "oarsub_args")
HARMLESS = re.compile(r"[\w ./@%+=:,\[\]-]*", re.ASCII)


def plugin_words(given: Iterable[str]) -> tuple[str, ...]:
    """Arguments as they were given to ``key=value`` words; files are read, later words win.

    Parameters
    ----------
    given
        ``key=value``, or the path of a JSON file that holds an object.

    Raises
    ------
    DataError
        If an argument is unknown, of the wrong type, or could be read as something else by a shell.
    MissingInputError
        If a file is absent.
    """
    found: dict[str, PluginValue] = {}
    for word in given:
        key, separator, value = word.partition("=")
        if separator and re.fullmatch(r"\w+", key):
            found |= _checked({key: _plain(value)}, file=None)
        else:
            found |= _checked(_of_file(Path(word)), file=Path(word))
    return tuple(f"{key}={json.dumps(value)}" for key, value in found.items())


def plugin_values(words: Iterable[str]) -> dict[str, PluginValue]:
    """Arguments for Nipype, from the words of :func:`plugin_words`."""
    pairs = (word.partition("=") for word in words)
    return _checked({key: _plain(value) for key, _, value in pairs}, file=None)


def _plain(text: str) -> object:
    """A number, a truth value or a quoted text as JSON writes it; anything else is text as it stands."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _of_file(path: Path) -> Mapping[str, object]:
    if not path.is_file():
        raise MissingInputError(
            f"--plugin-args {path} is neither key=value nor a file",
            expected="key=value, or a JSON file with an object",
            remedy="see --help",
        )
    data = read_json(path)
    if not isinstance(data, dict):
        raise DataError("holds no object", file=path, expected='something like {"n_procs": 2}')
    return data


def _checked(found: Mapping[str, object], *, file: Path | None) -> dict[str, PluginValue]:
    checked: dict[str, PluginValue] = {}
    for key, value in found.items():
        if key not in KNOWN:
            raise DataError(
                f"unknown plugin argument {key!r:.60}",
                file=file, expected=", ".join(KNOWN), remedy="correct --plugin-args",
            )  # fmt: skip
        kinds = KNOWN[key]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise DataError(
                f"plugin argument {key} has value {value!r:.60}",
                file=file, expected=" or ".join(kind.__name__ for kind in kinds),
            )  # fmt: skip
        if key in SHELL_WORDS and not HARMLESS.fullmatch(str(value)):
            raise DataError(
                f"plugin argument {key} holds signs that a shell would read: {value!r:.80}",
                file=file, expected="letters, digits, blanks and . _ - / = : , @ % + [ ]",
                remedy="put such options into a script named by template=FILE",
            )  # fmt: skip
        checked[key] = value  # type: ignore[assignment]
    return checked
