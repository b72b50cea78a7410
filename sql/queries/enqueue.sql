-- Statements of the producer. Most run on the caller's own connection, whose search_path may be anything and whose
-- driver may be psycopg, psycopg2 or asyncpg: types are qualified, and what drivers adapt differently travels as text.

-- name: enqueue_now
-- purpose:   the common case of enqueue_one, one job without any option, in fewer parameters: each costs 2 us
-- called by: producer/plan.py
-- guard:     none
-- locks:     its new row
-- index:     none
-- returns:   the job's id
SELECT pgqueue.put_job(
  task => CAST(%(task)s AS pg_catalog.text),
  args => CAST(CAST(%(args)s AS pg_catalog.text) AS pg_catalog.jsonb),
  queue => CAST(%(queue)s AS pg_catalog.text),
  priority => CAST(%(priority)s AS integer),
  max_attempts => CAST(%(max_attempts)s AS integer),
  wake => CAST(%(wake)s AS boolean),
  checked => true,
  window_s => 0)

-- name: enqueue_one
-- purpose:   one job in the caller's transaction
-- called by: producer/plan.py
-- guard:     the idempotency key, if one is given
-- locks:     its new row, its key's row: only producers of the same key wait for each other
-- index:     dedup_keys' primary key, if a key is given
-- returns:   the job's id, negative when the key already had a job, 2^62 less when that job was replaced
SELECT pgqueue.put_job(
  task => CAST(%(task)s AS pg_catalog.text),
  args => CAST(CAST(%(args)s AS pg_catalog.text) AS pg_catalog.jsonb),
  queue => CAST(%(queue)s AS pg_catalog.text),
  priority => CAST(%(priority)s AS integer),
  delay => pg_catalog.make_interval(secs => CAST(%(delay_s)s AS double precision)),
  run_at => CAST(CAST(%(run_at)s AS pg_catalog.text) AS timestamp with time zone),
  idempotency_key => CAST(%(key)s AS pg_catalog.text),
  key_ttl => pg_catalog.make_interval(secs => CAST(%(key_ttl_s)s AS double precision)),
  headers => CAST(CAST(%(headers)s AS pg_catalog.text) AS pg_catalog.jsonb),
  max_attempts => CAST(%(max_attempts)s AS integer),
  retry => CAST(CAST(%(retry)s AS pg_catalog.text) AS pg_catalog.jsonb),
  timeout_s => CAST(%(timeout_s)s AS double precision),
  expires_at => CAST(CAST(%(expires_at)s AS pg_catalog.text) AS timestamp with time zone),
  concurrency_key => CAST(%(concurrency_key)s AS pg_catalog.text),
  tags => CAST(CAST(%(tags)s AS pg_catalog.text) AS pg_catalog.text[]),
  parent_id => CAST(%(parent_id)s AS bigint),
  wake => CAST(%(wake)s AS boolean),
  checked => true,
  key_scope => CAST(%(key_scope)s AS pg_catalog.text),
  on_conflict => CAST(%(on_conflict)s AS pg_catalog.text),
  window_s => CAST(%(window_s)s AS double precision),
  batch_key => CAST(%(batch_key)s AS pg_catalog.text),
  audit => CAST(%(audit)s AS boolean))

-- name: enqueue_one_own
-- purpose:   one job in a transaction of our own, with what it can be found by, should the answer to COMMIT be lost
-- called by: storage/own_pool.py
-- guard:     the idempotency key, if one is given
-- locks:     its new row, its key's row
-- index:     jobs' primary key; dedup_keys', if a key is given
-- returns:   the job's id, as enqueue_one; the receipt, NULL when no job was written
SELECT e.id, pgqueue.enqueue_receipt(e.id)
FROM (
  SELECT pgqueue.put_job(
    task => CAST(%(task)s AS pg_catalog.text),
    args => CAST(CAST(%(args)s AS pg_catalog.text) AS pg_catalog.jsonb),
    queue => CAST(%(queue)s AS pg_catalog.text),
    priority => CAST(%(priority)s AS integer),
    delay => pg_catalog.make_interval(secs => CAST(%(delay_s)s AS double precision)),
    run_at => CAST(CAST(%(run_at)s AS pg_catalog.text) AS timestamp with time zone),
    idempotency_key => CAST(%(key)s AS pg_catalog.text),
    key_ttl => pg_catalog.make_interval(secs => CAST(%(key_ttl_s)s AS double precision)),
    headers => CAST(CAST(%(headers)s AS pg_catalog.text) AS pg_catalog.jsonb),
    max_attempts => CAST(%(max_attempts)s AS integer),
    retry => CAST(CAST(%(retry)s AS pg_catalog.text) AS pg_catalog.jsonb),
    timeout_s => CAST(%(timeout_s)s AS double precision),
    expires_at => CAST(CAST(%(expires_at)s AS pg_catalog.text) AS timestamp with time zone),
    concurrency_key => CAST(%(concurrency_key)s AS pg_catalog.text),
    tags => CAST(CAST(%(tags)s AS pg_catalog.text) AS pg_catalog.text[]),
    parent_id => CAST(%(parent_id)s AS bigint),
    wake => CAST(%(wake)s AS boolean),
    checked => true,
    key_scope => CAST(%(key_scope)s AS pg_catalog.text),
    on_conflict => CAST(%(on_conflict)s AS pg_catalog.text),
    window_s => CAST(%(window_s)s AS double precision),
    batch_key => CAST(%(batch_key)s AS pg_catalog.text),
    audit => CAST(%(audit)s AS boolean)) AS id
  OFFSET 0
) AS e

-- name: enqueue_many
-- purpose:   up to a thousand jobs of one task in the caller's transaction
-- called by: producer/plan.py
-- guard:     the idempotency keys, if there are any
-- locks:     its new rows, its keys' rows in the order of the keys
-- index:     dedup_keys' primary key, if keys are given
-- returns:   the ids in the order given as an array's text, with the sign as in enqueue_one; one value, for
--            a row per job costs more than the rest of the journey back
SELECT CAST(pgqueue.put_jobs(
  task => CAST(%(task)s AS pg_catalog.text),
  args => CAST(CAST(%(args)s AS pg_catalog.text) AS pg_catalog.jsonb),
  queue => CAST(%(queue)s AS pg_catalog.text),
  priority => CAST(%(priority)s AS integer),
  delay => pg_catalog.make_interval(secs => CAST(%(delay_s)s AS double precision)),
  run_at => CAST(CAST(%(run_at)s AS pg_catalog.text) AS timestamp with time zone),
  idempotency_keys => CAST(CAST(%(keys)s AS pg_catalog.text) AS pg_catalog.text[]),
  key_ttl => pg_catalog.make_interval(secs => CAST(%(key_ttl_s)s AS double precision)),
  headers => CAST(CAST(%(headers)s AS pg_catalog.text) AS pg_catalog.jsonb),
  max_attempts => CAST(%(max_attempts)s AS integer),
  retry => CAST(CAST(%(retry)s AS pg_catalog.text) AS pg_catalog.jsonb),
  timeout_s => CAST(%(timeout_s)s AS double precision),
  expires_at => CAST(CAST(%(expires_at)s AS pg_catalog.text) AS timestamp with time zone),
  concurrency_key => CAST(%(concurrency_key)s AS pg_catalog.text),
  tags => CAST(CAST(%(tags)s AS pg_catalog.text) AS pg_catalog.text[]),
  parent_id => CAST(%(parent_id)s AS bigint),
  wake => CAST(%(wake)s AS boolean),
  checked => true,
  key_scope => CAST(%(key_scope)s AS pg_catalog.text),
  on_conflict => CAST(%(on_conflict)s AS pg_catalog.text),
  window_s => CAST(%(window_s)s AS double precision),
  batch_key => CAST(%(batch_key)s AS pg_catalog.text),
  audit => CAST(%(audit)s AS boolean)) AS pg_catalog.text)

-- name: key_result
-- purpose:   what the job of an idempotency key returned
-- called by: producer/enqueue.py where the caller is; control/jobs.py
-- guard:     none
-- locks:     none
-- index:     dedup_keys' primary key
-- returns:   the result's JSON as text, NULL if there is none
SELECT CAST(pgqueue.key_result(CAST(%(task)s AS pg_catalog.text), CAST(%(key)s AS pg_catalog.text)) AS pg_catalog.text)

-- name: enqueue_begin
-- purpose:   a transaction around the parts of a bulk, on a connection that commits by itself: all or none
-- called by: storage/binding.py
-- guard:     none
-- locks:     none
-- index:     none
-- returns:   nothing
BEGIN

-- name: enqueue_commit
-- purpose:   its end
-- called by: storage/binding.py
-- guard:     none
-- locks:     none
-- index:     none
-- returns:   nothing
COMMIT

-- name: enqueue_rollback
-- purpose:   its end when a part was refused
-- called by: storage/binding.py
-- guard:     none
-- locks:     none
-- index:     none
-- returns:   nothing
ROLLBACK

-- name: enqueue_savepoint
-- purpose:   where the caller's transaction goes back to when a later part of a bulk is refused
-- called by: storage/binding.py
-- guard:     none
-- locks:     none
-- index:     none
-- returns:   nothing
SAVEPOINT pgqueue_enqueue

-- name: enqueue_savepoint_release
-- purpose:   the bulk is complete
-- called by: storage/binding.py
-- guard:     none
-- locks:     none
-- index:     none
-- returns:   nothing
RELEASE SAVEPOINT pgqueue_enqueue

-- name: enqueue_savepoint_undo
-- purpose:   take the parts back that were sent; the caller's transaction goes on
-- called by: storage/binding.py
-- guard:     none
-- locks:     none
-- index:     none
-- returns:   nothing
ROLLBACK TO SAVEPOINT pgqueue_enqueue

-- name: enqueue_receipt
-- purpose:   what a bulk of our own can be found by, through one of its jobs, should the answer to COMMIT be lost
-- called by: storage/own_pool.py
-- guard:     none
-- locks:     none
-- index:     jobs' primary key
-- returns:   the receipt
SELECT pgqueue.enqueue_receipt(CAST(%(job_id)s AS bigint))

-- name: enqueue_outcome
-- purpose:   the truth about a transaction whose answer to COMMIT was lost
-- called by: storage/own_pool.py
-- guard:     the receipt: transaction, job id and the moment of its enqueue
-- locks:     none; a transaction still at work is reported, not waited for
-- index:     jobs' and dead_letter_jobs' primary key, job_history_job_id_idx
-- returns:   running, committed or absent
SELECT pgqueue.enqueue_outcome(CAST(%(receipt)s AS pg_catalog.text))
