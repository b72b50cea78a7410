"""`pgqueue demo`: a ride-hailing service in miniature on a throwaway server, with PROOF at the end.

A verb of the command line like the others; it needs no database and reads no settings.
"""

from __future__ import annotations

from typing import Annotated

import typer


def demo(
    *,
    duration: Annotated[
        float, typer.Option(min=1, max=86_400, help="Seconds during which rides are booked.")
    ] = 30.0,
    headless: Annotated[
        bool, typer.Option("--headless", help="No picture, no pause at the end: a line a second.")
    ] = False,
    chaos: Annotated[
        bool, typer.Option("--chaos", help="Kill workers with SIGKILL and cut connections.")
    ] = False,
    speed: Annotated[
        float, typer.Option(min=1, max=3600, help="Seconds of the story that pass in one.")
    ] = 60.0,
    as_json: Annotated[bool, typer.Option("--json", help="End with the result as one line of JSON.")] = False,
    workers: Annotated[int, typer.Option(min=1, max=16, help="Worker processes.")] = 3,
) -> None:
    """Run the ride-hailing demo: exit code 0 only if PROOF holds."""
    from pgqueue.demo.run import DemoOptions, run_demo

    code = run_demo(
        DemoOptions(
            duration_s=duration, headless=headless, chaos=chaos, speed=speed, as_json=as_json, workers=workers
        )
    )
    if code:
        raise typer.Exit(code)
