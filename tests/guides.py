"""The guides' own command blocks, run in their order, as a reader would type them.

A block opens with three backticks and ``sh NUMBER``; the numbers give the order over all guides.
Words after the number: ``background`` runs until the story ends, ``wait`` is tried until it
succeeds, ``install`` makes the installation itself. A block that names the hospital ``north`` is
run for each hospital. Nothing else is changed but what no reader's machine shares: name, port, and
the digest of the protocol, which the reader copies from what ``plan`` has printed.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from common.process.loopback_tls import free_port
from tests import children

ROOT: Final = Path(__file__).parents[1]
GUIDES: Final = ("server/README.md", "client/README.md", "deploy/README.md")
HOSPITALS: Final = ("north", "south")
_FENCE: Final = re.compile(r"^```(?P<info>.*?)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_WAIT_S: Final = 180.0
_BLOCK_S: Final = 900.0
_INSTALL_S: Final = 2400.0  # pip compiles torch's modules; on a busy machine that took over 900 s


@dataclass(frozen=True)
class Block:
    """Commands of a guide."""

    guide: str
    info: tuple[str, ...]
    text: str

    @property
    def order(self) -> int:
        return int(self.info[1])

    def __str__(self) -> str:
        return f"{self.guide}, block {' '.join(self.info)}:\n{self.text}"


def blocks() -> list[Block]:
    """Return every fenced block of the guides, as they stand."""
    return [
        Block(guide, tuple(found["info"].split()), found["text"])
        for guide in GUIDES
        for found in _FENCE.finditer((ROOT / guide).read_text())
    ]


def commands() -> list[Block]:
    """Return the blocks to run, in their order."""
    return sorted((b for b in blocks() if b.info[:1] == ("sh",)), key=lambda b: b.order)


@dataclass
class Story:
    """A reader at work in ``folder`` whose programs are looked for in ``programs`` first.

    ``entry`` goes before every shell, to start it elsewhere (a namespace).
    """

    folder: Path
    programs: Path
    entry: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    said: str = ""
    _port: int = field(default_factory=free_port)
    _running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def tell(self, chosen: Sequence[Block], *, hospitals: Sequence[str] = HOSPITALS) -> None:
        """Run the blocks; raise RuntimeError with the block and its output if one fails."""
        for block in chosen:
            for hospital in hospitals if re.search(r"\bnorth\b", block.text) else ("north",):
                self._run(block, self._own(block.text, hospital))

    def _own(self, text: str, hospital: str) -> str:
        text = re.sub(r"\bnorth\b", hospital, text).replace("fl.example.org", "127.0.0.1")
        if printed := re.findall(r"--digest\s+([0-9a-f]{8})", self.said):
            text = text.replace("--digest 0123abcd", f"--digest {printed[-1]}")
        return re.sub(r"\b9443\b", str(self._port), text)

    def _run(self, block: Block, text: str) -> None:
        shell = [*self.entry, "bash", "-euo", "pipefail", "-c", text]
        if "background" in block.info:
            log = self.folder / f"background-{len(self._running)}.log"
            with log.open("wb") as out:
                self._running.append(
                    children.start(
                        [*self.entry, "bash", "-c", f"exec {text.strip()}"],
                        cwd=self.folder,
                        env=self._environment,
                        stdin=subprocess.DEVNULL,
                        stdout=out,
                        stderr=subprocess.STDOUT,
                    )
                )
            return
        until = time.monotonic() + (_WAIT_S if "wait" in block.info else 0)
        while True:
            done = children.run(
                shell,
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=_INSTALL_S if "install" in block.info else _BLOCK_S,
                check=False,
            )
            if done.returncode == 0:
                self.said += done.stdout
                if "gliofed-site request" in text:
                    self._with_one_thread()
                return
            if time.monotonic() > until:
                logs = [p.read_text()[-2000:] for p in self.folder.glob("background-*.log")]
                raise RuntimeError("\n".join([str(block), done.stdout, *logs]))

    def _with_one_thread(self) -> None:
        """Several hospitals share this machine's cores."""
        for path in self.folder.glob("*/site.toml"):
            path.write_text(path.read_text().replace("threads = 0", "threads = 1"))

    @property
    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            **self.environment,
            "PATH": f"{self.programs}:{os.environ['PATH']}",
        }

    def end(self) -> None:
        """End what still runs, by its process id, as a person would with Ctrl+C."""
        for process in self._running:
            process.send_signal(signal.SIGINT)
        for process in self._running:
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def story(
    folder: Path,
    programs: Path,
    *,
    entry: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Iterator[Story]:
    """Yield a reader at work; end all that they started."""
    reader = Story(folder, programs, entry, environment or {})
    try:
        yield reader
    finally:
        reader.end()
