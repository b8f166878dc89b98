"""Networks that go wrong: the coordinator and each site in a namespace of its own, wired by us.

Each site hangs on the coordinator's namespace by one wire: two TUN devices whose packets this
process carries from one to the other, later (delay, jitter), not at all (loss, cut) or not faster
than a rate. The protocols above are the kernel's own; so are their retries. Nothing outside the
namespaces changes, and they end with this process, however it ends. It needs root, TUN and network
namespaces, but no ``netem``, which many kernels lack.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import pytest

from tests import children
from tests.programs import needed

HUB: Final = "10.77.0.1"
"""The coordinator's address."""

_CLONE_NEWNET: Final = 0x40000000
_TUNSETIFF: Final = 0x400454CA
_IFF_TUN_NO_PI: Final = 0x0001 | 0x1000
_PACKET_BYTES: Final = 65536
_QUEUE_S: Final = 1.0
"""What would wait longer than this for a slow wire is dropped, as routers do."""


@dataclass
class Wire:
    """One site's wire. Its settings may be changed while it carries; they hold for both ways."""

    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    rate_bit_s: float = 0.0
    """0 for as fast as it goes."""
    cut: bool = False
    up_bytes: int = 0
    """What the site has sent."""
    down_bytes: int = 0
    _free_at: dict[bool, float] = field(default_factory=lambda: {True: 0.0, False: 0.0})

    def mend(self) -> None:
        self.delay_s = self.jitter_s = self.loss = self.rate_bit_s = 0.0
        self.cut = False

    def arrives(self, size: int, draw: random.Random, *, up: bool) -> float | None:
        """Return when a packet that is sent now arrives, or None if it never does."""
        if up:
            self.up_bytes += size
        else:
            self.down_bytes += size
        now = time.monotonic()
        if self.cut or draw.random() < self.loss:
            return None
        leaves = now
        if self.rate_bit_s:
            leaves = max(now, self._free_at[up])
            if leaves - now > _QUEUE_S:
                return None
            leaves += size * 8 / self.rate_bit_s
            self._free_at[up] = leaves
        return leaves + self.delay_s + draw.uniform(0, self.jitter_s)


class Wires:
    """The namespaces of the coordinator (``server``) and of ``sites``, and the wires between."""

    def __init__(self, sites: Sequence[str]) -> None:
        self.wires = {name: Wire() for name in sites}
        self._spaces: dict[str, int] = {}
        self._ends: dict[int, tuple[Wire, int, bool]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._carry, daemon=True)
        try:
            self._in_thread(lambda: self._lay(sites))
            for number, name in enumerate(sites, start=1):
                self._configure(number, name)
        except BaseException:
            self.close()
            raise
        self._thread.start()

    def __getitem__(self, site: str) -> Wire:
        return self.wires[site]

    def entry(self, name: str) -> list[str]:
        """Return the words before a command that let it run in the namespace ``name``."""
        return ["nsenter", f"--net=/proc/{os.getpid()}/fd/{self._spaces[name]}"]

    def within(self, name: str) -> Callable[[Callable[[], None]], None]:
        """Return what does something in the namespace ``name``, for a thread to run and end."""

        def act(action: Callable[[], None]) -> None:
            _call("setns", self._spaces[name], _CLONE_NEWNET)
            action()

        return act

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        for descriptor in [*self._ends, *self._spaces.values()]:
            os.close(descriptor)
        self._ends.clear()
        self._spaces.clear()

    @staticmethod
    def _in_thread(action: object) -> None:
        """Run ``action`` in a thread of its own, whose namespace ends with it; raise its error."""
        failed: list[BaseException] = []

        def act() -> None:
            try:
                action()  # type: ignore[operator]
            except OSError as error:
                failed.append(error)

        thread = threading.Thread(target=act)
        thread.start()
        thread.join()
        if failed:
            raise failed[0]

    def _lay(self, sites: Sequence[str]) -> None:
        for name in ("server", *sites):
            _call("unshare", _CLONE_NEWNET)
            self._spaces[name] = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        for name in sites:
            ends = []
            for space in (name, "server"):
                _call("setns", self._spaces[space], _CLONE_NEWNET)
                ends.append(_tun("wire" if space == name else f"to-{name}"[:15]))
            for here, there, up in ((*ends, True), (*reversed(ends), False)):
                self._ends[here] = (self.wires[name], there, up)

    def _configure(self, number: int, name: str) -> None:
        own, device = f"10.77.{number}.1", f"to-{name}"[:15]
        for space, words in (
            ("server", "link set lo up"),
            ("server", f"address replace {HUB}/32 dev lo"),
            ("server", f"link set {device} up"),
            ("server", f"route add {own} dev {device} src {HUB}"),
            (name, "link set lo up"),
            (name, f"address add {own}/32 dev wire"),
            (name, "link set wire up"),
            (name, f"route add {HUB} dev wire src {own}"),
        ):
            children.run([*self.entry(space), "ip", *words.split()], check=True)

    def _carry(self) -> None:
        draw = random.Random(1)  # noqa: S311
        travelling: list[tuple[float, int, int, bytes]] = []
        count = 0
        poll = select.poll()
        for descriptor in self._ends:
            poll.register(descriptor, select.POLLIN)
        while not self._stop.is_set():
            wait_s = travelling[0][0] - time.monotonic() if travelling else 0.1
            for descriptor, _ in poll.poll(max(0.0, min(0.1, wait_s)) * 1000):
                wire, there, up = self._ends[descriptor]
                with contextlib.suppress(BlockingIOError):
                    for _ in range(64):
                        packet = os.read(descriptor, _PACKET_BYTES)
                        due = wire.arrives(len(packet), draw, up=up)
                        if due is not None:
                            count += 1
                            heapq.heappush(travelling, (due, count, there, packet))
            while travelling and travelling[0][0] <= time.monotonic():
                _, _, there, packet = heapq.heappop(travelling)
                with contextlib.suppress(BlockingIOError):  # the kernel's queue is full: it is lost
                    os.write(there, packet)


def needed_here() -> None:
    """Skip the test where there can be no such networks, but fail where CI should have them."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("network namespaces need Linux and root")
    needed("ip")
    needed("nsenter")
    if why := refused():
        pytest.skip(why)


def refused() -> str:
    """Return why this machine cannot have such networks, or nothing if it can."""
    try:
        Wires(["probe"]).close()
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no network namespaces with TUN devices here: {error}"
    return ""


@contextlib.contextmanager
def laid(sites: Sequence[str]) -> Iterator[Wires]:
    wires = Wires(sites)
    try:
        yield wires
    finally:
        wires.close()


def _tun(name: str) -> int:
    """Return a descriptor of a new TUN device in the namespace of this thread."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN_NO_PI))
    return descriptor


def _call(name: str, *arguments: int) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments):
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
