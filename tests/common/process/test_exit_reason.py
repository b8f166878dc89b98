"""Of the logs that children leave: what a person needs to know."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.process.exit_reason import last_words

# As a SuperNode that does not trust the coordinator's certificate leaves it.
FLOWER = """\
\x1b[92mINFO \x1b[0m:      Starting Flower SuperNode
INFO:     Uvicorn running on http://127.0.0.1:23342 (Press CTRL+C to quit)
\x1b[91mERROR \x1b[0m:     SSL/TLS handshake error detected.
\x1b[91mERROR \x1b[0m:     Exit Code: 305
Failed to initialize the connection to the SuperLink.
[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed (_ssl.c:1006)

For more information, visit: <https://flower.ai/docs/framework/1.41/en/ref-exit-codes/305.html>
INFO:     Shutting down
INFO:     Waiting for application shutdown.
\x1b[92mINFO \x1b[0m:      FastAPI lifespan: shutdown
INFO:     Application shutdown complete.
INFO:     Finished server process [13173]
"""
TRACEBACK = """\
time=2026-01-01T00:00:00Z level=info process=worker event=begun
Traceback (most recent call last):
  File "client/runtime/supernode.py", line 1, in <module>
    raise OSError("the port is taken")
OSError: the port is taken
"""
WORKER = """\
time=2026-01-01T00:00:00Z level=info process=worker event=begun
time=2026-01-01T00:00:09Z level=critical process=worker event="The process ended by an error."
"""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            FLOWER,
            "Exit Code: 305 Failed to initialize the connection to the SuperLink. "
            "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed (_ssl.c:1006)",
        ),
        (TRACEBACK, "OSError: the port is taken"),
        (WORKER, WORKER.splitlines()[1]),
        ('{"event": "begun"}\n{"event": "ended"}\n', '{"event": "ended"}'),
        ("half a line", "half a line"),
        ("", ""),
        ("INFO:     Shutting down\n", ""),
        ("x" * 400, "x" * 297 + "..."),
        ("ERROR : old\n" * 5000 + "ERROR : new\n", "new"),
    ],
)
def test_last_words(tmp_path: Path, text: str, words: str) -> None:
    log = tmp_path / "child.log"
    log.write_text(text)
    assert last_words(log) == words


def test_a_log_that_is_not_there_has_none(tmp_path: Path) -> None:
    assert last_words(tmp_path / "nowhere.log") == ""
