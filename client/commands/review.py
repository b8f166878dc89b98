"""``gliofed-clinic review``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from common import console


def review(
    result: Annotated[
        Path, typer.Argument(metavar="RESULT_DIR", help="Folder of a result to review.")
    ],
    case: Annotated[
        Path | None,
        typer.Option(help="The case that was segmented, if it lies elsewhere now: folder or zip."),
    ] = None,
    site: Annotated[
        Path | None,
        typer.Option(
            help="A site's folder: it seals the review, and may train on what was accepted or "
            "corrected (train_on_reviews in site.toml)."
        ),
    ] = None,
    reviewer: Annotated[str, typer.Option(metavar="NAME", help="Your name, to begin with.")] = "",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")
    ] = 0,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")
    ] = True,
) -> None:
    """Look at a mask in the browser, correct it, and accept or reject it.

    Prints a link to a page on this machine that opens once. What is drawn is kept as a draft at
    once; a decision becomes a new version in RESULT_DIR/reviews, beside the old ones. Ctrl+C ends.
    """
    from client.review.into_cohort import into_cohort
    from client.review.page_process import serve
    from client.review.session import Desk
    from client.site.folder import Site

    def desk() -> Desk:
        if site is None:
            return Desk(result, case)
        opened = Site.open(site)
        sealer = (opened.name, opened.identity)
        return Desk(result, case, sealer=sealer, decided=into_cohort(opened))

    serve(result, desk, port=port, reviewer=reviewer, browser=browser, told=_tell)


def _tell(address: str) -> None:
    console.say(f"Open {address}")
    console.say("The link opens once, within an hour. Ctrl+C ends the review; drafts are kept.")
