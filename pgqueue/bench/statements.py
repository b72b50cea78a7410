"""The benchmark's own SQL, one statement a file in `sql/`, and the pgbench scripts made of the project's own statements."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import Final

from pgqueue.storage.statements import statement

_FOLDER: Final = files("pgqueue.bench") / "sql"


def sql(name: str) -> bytes:
    """The statement of that name."""
    return (_FOLDER / f"{name}.sql").read_bytes()


# The claim that `claim_all.sql` makes.
_CLAIM: Final = "00000000-0000-0000-0000-000000000001"
_PARAMETER: Final = re.compile(r"%\((\w+)\)s")


def _with(name: str, values: dict[str, str]) -> str:
    """One of the project's statements for pgbench, with constants or pgbench variables for its parameters."""
    text = "\n".join(
        line for line in statement(name).decode().splitlines() if not line.lstrip().startswith("--")
    )
    return _PARAMETER.sub(lambda match: values[match[1]], text).replace("%%", "%")


def effect_script() -> str:
    """The round trips and statements of a job with one effect and one commit, by hand: begin and effect, settle and commit."""
    settle = _with(
        "settle_in_transaction",
        {
            "id": ":id::bigint",
            "claim_id": f"'{_CLAIM}'::uuid",
            "buffered": "0.0",
            "run": "0.0",
            "result": "'null'",
            "mark": f"'{_CLAIM}'",
        },
    )
    return f"""\\set id :base + :client_id * :each + :at
\\set at :at + 1
\\startpipeline
BEGIN;
SELECT pg_catalog.set_config('pgqueue.claim', '{_CLAIM}', true);
INSERT INTO pgqueue_bench.effects (job_id) VALUES (:id);
\\endpipeline
\\startpipeline
{settle};
COMMIT;
\\endpipeline
"""


def claim_function() -> str:
    """claim_batch as a function that gives ids and the new floor, so that a pgbench client can go on from them."""
    body = _with(
        "claim_batch",
        {
            "pools": "ARRAY[1]",
            "queues": "ARRAY[claim.queue_name]",
            "priorities": "ARRAY[5]::smallint[]",
            "floors": "ARRAY[claim.floor]",
            "wants": "ARRAY[claim.want]",
            "spent": "ARRAY[claim.spent]",
            "claim_id": "claim.claim_id",
            "worker_id": f"'{_CLAIM}'::uuid",
        },
    )
    return f"""CREATE OR REPLACE FUNCTION pgqueue_bench.claim(queue_name text, want integer, floor bigint, claim_id uuid, spent uuid)
RETURNS TABLE (id bigint, pool integer, task text, args text, attempt smallint, max_attempts smallint, priority smallint,
  ready_seq bigint, queue text, wait_s double precision, expired boolean, extras text, created_at double precision)
LANGUAGE sql VOLATILE AS $body$ {body} $body$"""


def claimer_script(batch: int, queues: int) -> str:
    """Claim a batch and settle it, over and over: what one claimer asks of the server, without Python in between.

    Client n claims from queue n modulo `queues`.
    """
    settle = _with(
        "settle_succeeded",
        {
            "ids": ":ids::bigint[]",
            "claims": "array_fill(:claim::uuid, ARRAY[:taken::integer])",
            "buffered": "array_fill(0.0::real, ARRAY[:taken::integer])",
            "runs": "array_fill(0.0::real, ARRAY[:taken::integer])",
            "results": "to_jsonb(array_fill(NULL::text, ARRAY[:taken::integer]))",
        },
    )
    return f"""SELECT gen_random_uuid() AS claim \\gset
SELECT coalesce(array_agg(c.id), ARRAY[]::bigint[]) AS ids, count(*) AS taken, coalesce(max(c.ready_seq), :floor::bigint) AS floor
FROM pgqueue_bench.claim('q' || :client_id::integer % {queues}, {batch}, :floor::bigint, :claim::uuid, :spent::uuid) c \\gset
SELECT :claim::uuid AS spent \\gset
{settle};
"""
