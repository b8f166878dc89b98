"""Every program of gliofed as a user without a name, with one folder to write.

The fast twin of ``test_images``, which does a whole study so: here each program is imported, a
coordinator and a site are made, and one step of training and one segmentation are done.
"""

from __future__ import annotations

import stat
from pathlib import Path

from client.site.folder import Site
from tests.unnamed import NUMBER, unnamed

COORDINATOR = """
import getpass
import server.commands.coordinator, server.executor, server.transport.gateway
import server.reporting.dashboard.__main__, server.reporting.study_chart
import matplotlib
matplotlib.get_cachedir()
print(getpass.getuser())
"""


def test_a_coordinator_whose_home_cannot_be_written(tmp_path: Path) -> None:
    found = unnamed(
        ["gliofed-server", "init", "north", "--name=North", "--host=localhost", "--port=9443"],
        writable=tmp_path,
        environment={"HOME": "/"},
    )
    assert found.returncode == 0, found.stderr
    (key,) = (tmp_path / "north" / "keys").glob("coordinator.key")
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    done = unnamed(
        ["python", "-c", COORDINATOR],
        writable=tmp_path,
        environment={"HOME": "/", "TMPDIR": str(tmp_path / "north")},
        umask="0077",
    )
    assert (done.returncode, done.stdout) == (0, f"uid{NUMBER}\n"), done.stderr
    assert done.stderr == ""
    assert (tmp_path / "north" / f"gliofed-{NUMBER}" / "matplotlib").is_dir()


def test_a_site_without_a_home_trains_and_segments(site: Site, tmp_path: Path) -> None:
    done = unnamed(["python", "-m", "client.views.compute_check", site.folder], writable=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Matplotlib" not in done.stderr  # it found a folder for its cache


def test_without_a_name_this_would_fail(tmp_path: Path) -> None:
    """The world is as strict as a container's: MONAI alone cannot be imported in it."""
    done = unnamed(["python", "-c", "import getpass; getpass.getuser()"], writable=tmp_path)
    assert done.returncode == 1
    assert f"uid not found: {NUMBER}" in done.stderr
    for path in ("/tmp", Path.home(), Path(__file__).parent):  # noqa: S108
        refused = unnamed(["touch", f"{path}/x"], writable=tmp_path)
        assert "Read-only file system" in refused.stderr
