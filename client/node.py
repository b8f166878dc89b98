"""The site's SuperNode: Flower's own, ended whole when a part of it ends.

Flower's SuperNode is a loop that speaks to the coordinator and a server that hands orders to the
worker. When the loop gives up, on an answer that it does not try again, the server stays: the
site would look alive and never take an order. Here the process ends, and the supervisor starts
another.
"""

from __future__ import annotations

import os
import sys
import traceback

from flwr.supernode.cli.flower_supernode import flower_supernode


def main() -> None:
    """Run the SuperNode with the arguments of ``flower-supernode``; never return."""
    code = 1
    try:
        flower_supernode()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:  # noqa: BLE001  the process's edge
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
