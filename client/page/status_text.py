"""What the site does now, in a few words, for a terminal and for scripts."""

from __future__ import annotations

from typing import Any

from client.page.site_status import Reading


def in_words(reading: Reading) -> dict[str, Any]:
    """Return the gist of a reading: plain values under plain names."""
    doing = reading.doing
    return {
        "runs": reading.running,
        "stopped": str(reading.halt) if reading.halt else "",
        "order": "" if doing is None else f"{doing.order} of {doing.study}, round {doing.round}",
        "steps": f"{doing.step} of {doing.steps}" if doing and doing.steps else "",
        "hours": reading.window,
        "coordinator_answered": reading.contact or "never",
        "messages_today": len(reading.left),
        "bytes_today": sum(one["bytes"] or 0 for one in reading.left),
        "epsilon": {
            one.study or "all studies": f"{one.epsilon:.3f} of {one.cap:g}"
            for one in reading.budgets
            if one.private
        },
        "disk_free_bytes": reading.machine.disk_free_bytes,
        "troubles": list(reading.troubles),
    }
