"""How a page of ours is kept up to date: server-sent events say that it changed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Final

from starlette.concurrency import run_in_threadpool

from common.errors import StateError

LIVE_FOR_S: Final = 600.0
"""After so long a browser asks anew for what is live, and is asked again who it is."""


async def changes(mark: Callable[[], str], *, poll_s: float, for_s: float) -> AsyncIterator[str]:
    """Yield a server-sent event each time that ``mark`` changes, and a sign of life between."""
    yield "retry: 2000\n\n"
    loop = asyncio.get_running_loop()
    until, spoke = loop.time() + for_s, loop.time()
    before = await _marked(mark)
    while loop.time() < until:
        await asyncio.sleep(poll_s)
        now = await _marked(mark)
        if now != before:
            before, spoke = now, loop.time()
            yield "event: changed\ndata: \n\n"
        elif loop.time() - spoke > 15:
            spoke = loop.time()
            yield ": here\n\n"


async def _marked(mark: Callable[[], str]) -> str:
    try:
        return await run_in_threadpool(mark)
    except StateError as error:  # the page itself says so, once it is asked for
        return error.code
