"""What libraries ask of the account that a process runs as: a name, a home, a folder for caches.

A container runs as a number without a name (OpenShift: any number, in group 0), perhaps without a
home and on a root that is read only. MONAI asks for the user's name while it is imported; torch and
matplotlib keep caches in the home or beside the temporary files. ``provide`` puts what is missing
into the environment, which child processes inherit, and changes nothing that is there. Importing
``common`` calls it, so that it comes before those libraries however a program is started.

Out of scope: where temporary files go, which TMPDIR says.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import stat
import sys
import tempfile
from pathlib import Path


def provide() -> None:
    """Give this process, and those that it starts, what its account lacks."""
    try:
        getpass.getuser()
    except (KeyError, ImportError, OSError):  # which one, depends on Python's version
        os.environ["LOGNAME"] = f"uid{_user()}"
    try:
        home = Path.home()
    except RuntimeError:
        home = None
    if home is not None and home.is_dir():
        if "MPLCONFIGDIR" in os.environ or os.access(home, os.W_OK | os.X_OK):
            return
        variable, name = "MPLCONFIGDIR", "matplotlib"
    else:
        variable, name = "HOME", "home"
    try:
        folder = own_folder() / name
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError:
        return  # Nothing can be written: what needs no cache works, and `doctor` says the rest.
    os.environ[variable] = str(folder)


def own_folder() -> Path:
    """Return a folder beside the temporary files that only this user can enter; raise OSError.

    It is the same for all processes of the user, unless another user was there first.
    """
    folder = Path(tempfile.gettempdir()) / f"gliofed-{_user()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    about = folder.lstat()
    if stat.S_ISDIR(about.st_mode) and about.st_uid == _user() and not about.st_mode & 0o077:
        return folder
    return Path(tempfile.mkdtemp(prefix="gliofed-"))


def _user() -> int:
    return 0 if sys.platform == "win32" else os.getuid()
