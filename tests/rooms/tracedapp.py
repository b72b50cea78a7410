"""The application whose real worker process traces: its spans go to a file, a JSON object each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

from pgqueue import App, JobContext


class ToFile(SpanExporter):
    """A line per span."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        with Path(os.environ["SPANS_FILE"]).open("a") as file:
            file.writelines(span.to_json(indent=None) + "\n" for span in spans)
        return SpanExportResult.SUCCESS


provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(ToFile()))
trace.set_tracer_provider(provider)

app = App(log_format="json", log_level="debug")


@app.task(name="pay", queue="critical")
def pay(ctx: JobContext, ride_id: int) -> None:
    ctx.emit("ride.paid", {"ride_id": ride_id}, key=f"ride:{ride_id}")
