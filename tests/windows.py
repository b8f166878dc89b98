"""A process in which this system behaves to gliofed as Windows does, as far as Python can tell.

As a program it runs commands of gliofed one after another, each argument one command as JSON::

    python -m tests.windows '["client.commands.clinic", "segment", ...]' '["client.commands.clinic",
    "verify", ...]'

and says after each how it ended: ``== exit N``. What holds in it:

- no module that POSIX systems alone have can be imported, ``msvcrt`` can;
- no folder can be opened, so none can be synced; a file that is open to be read is not synced;
- no file or folder gets a name that Windows forbids;
- nothing is renamed onto what is there, but replaced; what this process has open or mapped is
  neither removed nor renamed nor replaced;
- a text file that gliofed opens without naming its encoding is an error;
- a script is text, as a registry says in which other programs wrote.

Out of scope: paths with backslashes and drives, names that differ in case, what extension modules
do.
"""

from __future__ import annotations

import errno
import fcntl
import importlib
import json
import mimetypes
import os
import re
import shutil
import struct
import subprocess  # noqa: F401  before there is msvcrt, by which it tells Windows
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

POSIX_ONLY = ("fcntl", "grp", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty")
"""Modules that Windows lacks."""

_LACKED = """
    O_CLOEXEC O_DIRECTORY O_NOFOLLOW WNOHANG chown chroot fchdir fchmod fchown fork forkpty getegid
    geteuid getgid getgrouplist getgroups getloadavg getpgid getpgrp getpriority getuid initgroups
    killpg lchown makedev mkfifo mknod nice openpty pathconf posix_fadvise posix_fallocate
    posix_spawn pread preadv pwrite pwritev register_at_fork sched_getaffinity sched_setaffinity
    sendfile setegid seteuid setgid setgroups setpgid setpriority setsid setuid statvfs sync sysconf
    tcgetpgrp uname wait wait3 wait4
    AF_UNIX SO_REUSEPORT
    SIGALRM SIGCHLD SIGHUP SIGKILL SIGPIPE SIGQUIT SIGSTOP SIGUSR1 SIGUSR2 alarm pause pthread_kill
    pthread_sigmask setitimer sigwait
"""
OS_POSIX_ONLY = frozenset(_LACKED.split())
"""What ``os``, ``socket`` and ``signal`` lack there, or have without its effect."""

_FORBIDDEN = re.compile(r'[<>:"\\|?*\x00-\x1f]|[. ]$')
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d) *(\.|$)", re.IGNORECASE)


def allowed_name(name: str) -> bool:
    """Return whether Windows would give a file this name.

    >>> [allowed_name(n) for n in ("2026-11-28", "12:30", "nul.json", "con1", "end.", "a|b")]
    [True, False, False, True, False, False]
    """
    return not _FORBIDDEN.search(name) and not _RESERVED.match(name)


def msvcrt() -> types.ModuleType:
    """Return Windows' file locks by Linux's that belong to an open file, as Windows' do."""
    made: Any = types.ModuleType("msvcrt")
    made.LK_NBLCK = 2

    def locking(descriptor: int, mode: int, count: int) -> None:
        assert mode == made.LK_NBLCK
        start = os.lseek(descriptor, 0, os.SEEK_CUR)
        assert start + count < 2**31
        asked = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, start, count, 0)
        try:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, asked)
        except BlockingIOError:
            raise PermissionError(errno.EACCES, "Permission denied") from None

    made.locking = locking
    return made  # type: ignore[no-any-return]


def become() -> None:
    """Make this process one on Windows, for good."""
    sys.modules["msvcrt"] = msvcrt()
    for name in POSIX_ONLY:
        sys.modules[name] = None  # type: ignore[assignment]
    sys.addaudithook(_refuse)
    shutil._use_fd_functions = False  # type: ignore[attr-defined]  # they open folders
    os.rename = _onto_nothing(os.rename)
    os.fsync = _written(os.fsync)
    mimetypes.add_type("text/plain", ".js")
    warnings.filterwarnings("ignore", category=EncodingWarning)
    warnings.filterwarnings("error", category=EncodingWarning, module=r"(client|common)\.")


def _refuse(event: str, values: tuple[Any, ...]) -> None:
    if event == "open" and isinstance(values[0], str | bytes | os.PathLike):
        path, mode, flags = values
        if Path(os.fsdecode(path)).is_dir():
            raise _denied(path)
        if (mode and set(mode) & set("wax")) or (not mode and flags & os.O_CREAT):
            _check_name(path)
    elif event == "os.mkdir":
        _check_name(values[0])
    elif event in ("os.remove", "os.rmdir"):
        _check_closed(values[0])
    elif event in ("os.rename", "os.link"):
        _check_name(values[1])
        _check_closed(values[0])
        _check_closed(values[1])


def _onto_nothing(rename: Callable[..., None]) -> Callable[..., None]:
    def checked(source: Any, target: Any, **options: Any) -> None:
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, "it is there already", os.fspath(target))
        rename(source, target, **options)

    return checked


def _written(fsync: Callable[[int], None]) -> Callable[[int], None]:
    def checked(descriptor: Any) -> None:
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        flags = int(re.findall(r"flags:\s*(\d+)", _read(f"/proc/self/fdinfo/{number}"))[0], 8)
        if flags & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "it is open to be read alone")
        fsync(descriptor)

    return checked


def _check_name(path: Any) -> None:
    name = Path(os.fsdecode(path)).name
    if not allowed_name(name):
        raise OSError(errno.EINVAL, "Windows forbids this name", name)


def _check_closed(path: Any) -> None:
    """Raise PermissionError if this process has ``path``, or a file in it, open or mapped."""
    real = os.path.realpath(os.fsdecode(path))
    for held in _held():
        if held == real or held.startswith(real + os.sep):
            raise _denied(path)


def _held() -> set[str]:
    found = {line.split(maxsplit=5)[5].strip() for line in _mapped()}
    for number in os.listdir("/proc/self/fd"):  # noqa: PTH208  it ends with a number that is gone
        if os.path.islink(f"/proc/self/fd/{number}"):  # noqa: PTH114
            found.add(os.readlink(f"/proc/self/fd/{number}"))  # noqa: PTH115
    return found


def _mapped() -> list[str]:
    return [line for line in _read("/proc/self/maps").splitlines() if "/" in line]


def _read(path: str) -> str:
    return Path(path).read_text(encoding="utf-8", errors="surrogateescape")


def _denied(path: Any) -> PermissionError:
    return PermissionError(errno.EACCES, "as Windows does", os.fsdecode(path))


def main() -> None:
    become()
    for asked in sys.argv[1:]:
        module, *sys.argv[1:] = json.loads(asked)
        code: Any = 0
        try:
            importlib.import_module(module).main()
        except SystemExit as ended:
            code = ended.code
        print(f"== exit {code or 0}", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
