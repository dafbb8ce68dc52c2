"""Stand-ins for what file systems refuse."""

from __future__ import annotations

import errno
import fcntl
import os
from typing import Any

FLOCK = fcntl.flock


def flock_of_nfs(file: Any, operation: int) -> None:
    """Locks as Linux gives them over NFS: an exclusive one only on a file that is open for writing."""
    number = file if isinstance(file, int) else file.fileno()
    access = fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE
    unfit = os.O_RDONLY if operation & fcntl.LOCK_EX else os.O_WRONLY
    if access == unfit:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    FLOCK(file, operation)
