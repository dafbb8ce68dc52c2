"""The BIDS App: ``bids_scseg BIDS_DIR OUTPUT_DIR {participant,group}``."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bids_scseg.cli.parser import parse
from bids_scseg.errors import DataError, MissingInputError, ScsegError
from bids_scseg.files import is_full, write_error

INTERRUPTED = 130  # what shells expect after Ctrl-C
#: What the system says to a path that leads nowhere, whatever is made or permitted.
NO_PATH = frozenset({errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR})


def stop_on_sigterm() -> None:
    """Let SIGTERM (cluster schedulers, ``docker stop``) end a run in order, as Ctrl-C does."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


@contextmanager
def stoppable(last_words: Callable[[], str]) -> Iterator[None]:
    """Turn an interruption (Ctrl-C; SIGTERM after :func:`stop_on_sigterm`) into one line and an exit code.

    Parameters
    ----------
    last_words
        Gives the line, which says how the work goes on; empty: none.

    Raises
    ------
    SystemExit
        With code 130, after an interruption.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        if words := last_words():
            sys.stderr.write(f"{words}\n")
        raise SystemExit(INTERRUPTED) from error


def prepare_process() -> None:
    """What must hold before libraries are imported: no network, no home folder, names of any bytes."""
    # Nipype asks a server for news at import unless told not to; this program never uses the network.
    os.environ["NO_ET"] = os.environ["NIPYPE_NO_ET"] = "1"
    # Settings in somebody's home must not change results; there may be no home.
    os.environ["NIPYPE_CONFIG_DIR"] = os.devnull
    if not Path(os.path.expanduser("~")).is_absolute():  # noqa: PTH111 - Path.home() raises for such users
        os.environ["HOME"] = "/"  # a container may run as a user whom its system does not know
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name need not be text


def in_words(error: ScsegError | OSError | MemoryError | RecursionError) -> ScsegError:
    """An error that input or machine brought about, as one of ours."""
    if isinstance(error, ScsegError):
        return error
    if isinstance(error, OSError):
        return of_system(error)
    if isinstance(error, MemoryError):
        return ScsegError("memory ran out", remedy="give it more, or run on a larger machine")
    return DataError("the input nests too deeply to be read", remedy="check its JSON and TOML files")


def of_system(error: OSError) -> ScsegError:
    """What the system refused, as one of our errors: a full disk, a folder that may not be read."""
    if is_full(error):
        return write_error(error, error.filename)
    what = error.strerror or str(error) or type(error).__name__
    if error.errno in NO_PATH:
        return MissingInputError(f"cannot be used ({what})", file=error.filename, remedy="correct the path")
    if error.errno in (errno.EACCES, errno.EPERM, errno.ENOENT):
        return MissingInputError(
            f"cannot be used ({what})", file=error.filename, remedy="check its permissions"
        )
    return ScsegError(
        f"the system refused ({what})", file=error.filename, remedy="run the same command again"
    )


def guarded(program: str, run: Callable[[], int], *, after_stop: str = "") -> int:
    """Run a command; whatever ends it that is no mistake of this program's is one line and an exit code.

    Parameters
    ----------
    program
        Its name, with which the line begins.
    run
        The command; its number is the exit code where nothing ends it.
    after_stop
        What can be done after an interruption.
    """
    try:
        return run()
    except (KeyboardInterrupt, SystemExit) as error:
        # a library that ends the process without a number was stopped, too: it must not read as success
        if isinstance(error, SystemExit) and error.code is not None:
            raise
        sys.stderr.write(f"{program}: interrupted{after_stop and '; ' + after_stop}\n")
        return INTERRUPTED
    except (ScsegError, OSError, MemoryError, RecursionError) as error:
        known = in_words(error)
    sys.stderr.write(f"{program}: {known}\n")
    return known.exit_code


def main(argv: list[str] | None = None) -> int:
    """Run the BIDS App; the returned number is the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    stop_on_sigterm()
    prepare_process()
    return guarded("bids_scseg", lambda: _run(arguments), after_stop="run the same command again to go on")


def _run(arguments: list[str]) -> int:
    if "--version" in arguments:
        from bids_scseg.cli.version import version_text

        sys.stdout.write(version_text())
        return 0
    options = parse(arguments)
    if options.level == "group":
        from bids_scseg.cli.group import run_group

        return run_group(options)
    from bids_scseg.cli.participant import run_participant

    return run_participant(options)


if __name__ == "__main__":
    sys.exit(main())
