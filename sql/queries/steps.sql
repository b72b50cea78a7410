-- Recorded steps of handlers, on connections of their own: each statement is a transaction.

-- name: find_step
-- purpose:   what a step has recorded, before its call is made; and whether the run still owns its job
-- called by: worker/steps.py
-- guard:     none; the claim is told, and a run without it makes no further call
-- locks:     none
-- index:     the primary keys
-- returns:   one row: (held boolean, NULL if the job is not live; record_id text, result text, refused text, NULL if nothing is recorded)
SELECT (SELECT j.claim_id = %(claim_id)s FROM pgqueue.jobs j WHERE j.id = %(id)s), s.record_id::text, s.result::text, s.refused
FROM (SELECT) one LEFT JOIN pgqueue.job_steps s ON s.job_id = %(id)s AND s.name = %(name)s

-- name: record_step
-- purpose:   record what a step's call has returned
-- called by: worker/steps.py
-- guard:     claim_id under a lock that every statement which ends a claim waits for, or passes by: a late run records
--            nothing, and none is rescued between this look and this commit
-- locks:     the job's row against the end of its claim; not against its progress
-- index:     the primary keys
-- returns:   one row (result text, NULL if refused), none if nothing was recorded: find_step says why
WITH mine AS MATERIALIZED (
  SELECT j.id, j.attempt, j.worker_id FROM pgqueue.jobs j WHERE j.id = %(id)s AND j.claim_id = %(claim_id)s FOR KEY SHARE
)
INSERT INTO pgqueue.job_steps AS s (job_id, name, result, refused, recorded_at, attempt, run_s, claim_id, worker_id, record_id)
SELECT m.id, %(name)s, %(result)s::jsonb, %(refused)s, clock_timestamp(), m.attempt, %(run_s)s, %(claim_id)s, m.worker_id, %(record_id)s
FROM mine m
ON CONFLICT (job_id, name) DO NOTHING
RETURNING s.result::text

-- name: note_progress
-- purpose:   how far handlers say they are, for others to see while they run
-- called by: worker/progress.py
-- guard:     claim_id, under the lock; a note that a server crash loses need not wait for the flush
-- locks:     the rows, SKIP LOCKED: whoever ends a claim meanwhile goes first, and nothing can be locked in a ring
-- index:     the primary key only; progress is in no index, so the new version stays on its page
-- returns:   the ids that were noted; a missing one is locked, or no longer this claim's
WITH commit_class AS MATERIALIZED (
  SELECT set_config('synchronous_commit', 'off', true)
), mine AS MATERIALIZED (
  SELECT j.id, j.claim_id, a.done, a.total, a.note
  FROM commit_class, jsonb_to_recordset(%(notes)s::jsonb) AS a (id bigint, claim_id uuid, done numeric, total numeric, note text)
  JOIN pgqueue.jobs j ON j.id = a.id AND j.claim_id = a.claim_id
  FOR NO KEY UPDATE OF j SKIP LOCKED
)
UPDATE pgqueue.jobs j SET progress = jsonb_build_object('done', m.done, 'total', m.total, 'note', m.note, 'at', clock_timestamp())
FROM mine m
WHERE j.id = m.id AND j.claim_id = m.claim_id
RETURNING j.id

-- name: prune_steps
-- purpose:   steps of jobs that nothing is known of any more
-- called by: upkeep/steps.py, batch after batch from the oldest, then from the start again
-- guard:     the job is neither live, nor in the history, nor a dead letter
-- locks:     the deleted rows
-- index:     job_steps_recorded_at_idx from the cursor; then the jobs' keys
-- returns:   one row: (looked bigint, deleted bigint, recorded_at timestamptz, job_id bigint, name text) of the last one looked at
WITH looked AS MATERIALIZED (
  SELECT s.recorded_at, s.job_id, s.name FROM pgqueue.job_steps s
  WHERE s.recorded_at < (SELECT clock_timestamp() - make_interval(days => %(keep_days)s))
    AND (s.recorded_at, s.job_id, s.name) > (%(after_at)s::timestamptz, %(after_id)s::bigint, %(after_name)s::text)
  ORDER BY s.recorded_at, s.job_id, s.name
  LIMIT %(batch)s
), gone AS (
  DELETE FROM pgqueue.job_steps s USING looked l
  WHERE s.job_id = l.job_id AND s.name = l.name
    AND NOT EXISTS (SELECT FROM pgqueue.jobs j WHERE j.id = l.job_id)
    AND NOT EXISTS (SELECT FROM pgqueue.job_history h WHERE h.job_id = l.job_id)
    AND NOT EXISTS (SELECT FROM pgqueue.dead_letter_jobs d WHERE d.job_id = l.job_id)
  RETURNING 1
)
SELECT (SELECT count(*) FROM looked), (SELECT count(*) FROM gone), e.recorded_at, e.job_id, e.name
FROM (SELECT) one LEFT JOIN LATERAL
  (SELECT l.* FROM looked l ORDER BY l.recorded_at DESC, l.job_id DESC, l.name DESC LIMIT 1) e ON true

-- name: take_once
-- purpose:   remember under a key that a handler has done something, as part of its job's transaction
-- called by: worker/once.py, on the handler's own connection: its search_path may be anything
-- guard:     the key; a transaction that holds it is waited for
-- locks:     the key's row
-- index:     dedup_keys' primary key
-- returns:   one row: (taken boolean, holder bigint, result text) of the job that has the key
SELECT o.taken, o.holder, o.result::pg_catalog.text FROM pgqueue.take_once(%(task)s::pg_catalog.text, %(key)s::pg_catalog.text, %(job_id)s::bigint,
  pg_catalog.make_interval(secs => %(ttl_s)s::double precision)) AS o

-- name: keep_once
-- purpose:   what later callers of the key get
-- called by: worker/once.py, on the handler's own connection
-- guard:     the key belongs to this job
-- locks:     the key's row, which this transaction has locked already
-- index:     dedup_keys' primary key
-- returns:   (kept boolean)
SELECT pgqueue.keep_once(%(task)s::pg_catalog.text, %(key)s::pg_catalog.text, %(job_id)s::bigint, %(result)s::pg_catalog.jsonb)
