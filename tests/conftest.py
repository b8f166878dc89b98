"""What tests of both sides share: a founded consortium, joined hospitals, phantom cohorts."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

from client.phantoms.cohort import write_cohort
from client.phantoms.profiles import PROFILES
from client.runtime.order_handler import Participation
from client.site import execution
from client.site.folder import Site
from common.process.child_processes import die_with_parent
from common.process.proxies import without_proxies
from common.study.protocol import StudyProtocol
from server.consortium.provisioning import Consortium
from server.release.release_folder import release
from tests import consortia, file_seconds, slow_part
from tests.consortia import World

for _name in set(os.environ) - set(without_proxies(os.environ)):
    del os.environ[_name]  # tests speak to this machine alone, their children too
torch.set_num_threads(1)
execution.THREADS = 1  # tests run side by side
if "PYTEST_XDIST_WORKER" in os.environ and sys.platform == "linux":
    die_with_parent()
hypothesis.settings.register_profile("gliofed", deadline=None, derandomize=True)
hypothesis.settings.load_profile("gliofed")

MakeSite = Callable[..., Site]


def pytest_addoption(parser: pytest.Parser) -> None:
    slow_part.add_options(parser)
    group = parser.getgroup("files")
    group.addoption("--fast", action="store_true", help="run only the files that are cheap")
    group.addoption("--file-seconds", action="store_true", help="keep what each file costs")


def pytest_configure(config: pytest.Config) -> None:
    if any(config.getoption(f"--slow-{what}") for what in ("turn", "minutes", "seconds")):
        config.pluginmanager.register(slow_part.SlowPart(config))
    if config.getoption("--file-seconds"):
        config.pluginmanager.register(file_seconds.Meter())


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Pass over the files that are not cheap, so that they are not even imported."""
    if not config.getoption("--fast") or collection_path.suffix != ".py":
        return None
    return collection_path.relative_to(config.rootpath).as_posix() not in _fast_files() or None


@functools.cache
def _fast_files() -> set[str]:
    root = Path(__file__).parents[1]
    there = {path.relative_to(root).as_posix() for path in root.glob("tests/**/test_*.py")}
    return file_seconds.fast(there, file_seconds.known())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    seconds = file_seconds.known()
    items[:] = file_seconds.dearest_first(items, seconds)


@pytest.fixture(scope="session")
def cohorts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """The patients of three phantom hospitals: folders to read, never to change."""
    root = tmp_path_factory.mktemp("cohorts")
    profiles = ("reference", "3t-research", "1.5t-community")
    for number, profile in enumerate(profiles):
        write_cohort(
            root / f"{number}",
            PROFILES[profile],
            patients=consortia.PATIENTS,
            size=24,
            seed=1,
            site=number,
        )
    return tuple(root / f"{number}" for number in range(len(profiles)))


@pytest.fixture
def cohort(cohorts: tuple[Path, ...]) -> Path:
    return cohorts[0]


@pytest.fixture
def own_cohort(cohort: Path, tmp_path: Path) -> Path:
    """A cohort that the test may damage."""
    return Path(shutil.copytree(cohort, tmp_path / "own-cohort"))


@pytest.fixture
def protocol() -> StudyProtocol:
    return consortia.tiny_protocol()


@pytest.fixture
def consortium(tmp_path: Path) -> Consortium:
    return consortia.found(tmp_path / "coordinator")


@pytest.fixture
def make_site(consortium: Consortium, tmp_path: Path, cohort: Path) -> MakeSite:
    """Return a function that makes a joined site; ``data`` is the first cohort by default."""

    def make(name: str = "north", data: Path = cohort) -> Site:
        return consortia.enrol(consortium, tmp_path / name, name=name, data=data)

    return make


@pytest.fixture
def site(make_site: MakeSite) -> Site:
    return make_site()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, cohorts: tuple[Path, ...]) -> Path:
    root = tmp_path_factory.mktemp("finished")
    consortium = consortia.found(root / "coordinator")
    site = consortia.enrol(consortium, root / "north", name="north", data=cohorts[0])
    protocol = consortia.publish(consortium, consortia.tiny_protocol())
    consortia.approve(site, consortium, protocol)
    consortia.rounds(consortium, protocol.study, {"north": Participation(site)}).run()
    for number in (1, 2):
        release(consortium, protocol.study, root / f"release-{number}", number=number)
    return root


@pytest.fixture
def world(finished: Path, tmp_path: Path) -> World:
    """A copy that the test may change."""
    root = Path(shutil.copytree(finished, tmp_path / "world"))
    return World(
        Consortium.open(root / "coordinator"),
        Site.open(root / "north"),
        (root / "release-1", root / "release-2"),
    )


@pytest.fixture
def at_once() -> Iterator[None]:
    """Whoever waits for a pipe's other end is interrupted, and the test fails."""

    def waited(*_: object) -> None:
        raise TimeoutError("it waits for the other end of a pipe")

    before = signal.signal(signal.SIGALRM, waited)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
