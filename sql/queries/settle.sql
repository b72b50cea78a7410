-- name: settle_succeeded
-- purpose:   end the claims of any number of succeeded jobs that touched no transaction
-- called by: worker/settler.py
-- guard:     claim_id, so that only the newest claim of a job settles it
-- locks:     the settled rows
-- index:     the primary key only; a predicate that fits a partial index would let the planner walk its dead entries
-- returns:   the ids that were settled; a missing one is a lost claim
WITH asked AS MATERIALIZED (
  SELECT a.id, a.claim_id, a.buffered_s, a.run_s, nullif(a.result, 'null') AS result
  FROM ROWS FROM (
    unnest(%(ids)s::bigint[], %(claims)s::uuid[], %(buffered)s::real[], %(runs)s::real[]),
    jsonb_array_elements(%(results)s::jsonb)
  ) AS a (id, claim_id, buffered_s, run_s, result)
), gone AS (
  DELETE FROM pgqueue.jobs j USING asked a
  WHERE j.id = a.id AND j.claim_id = a.claim_id
  RETURNING j.*, a.buffered_s, a.run_s, a.result
)
INSERT INTO pgqueue.job_history (job_id, enqueued_at, due_at, started_at, finished_at, claim_id, worker_id, ready_seq, wait_s, run_s,
  priority, attempts, max_attempts, state, queue, task, args, result, headers, tags, idempotency_key, errors, parent_id, redrive_of)
SELECT g.id, g.created_at, g.run_at, g.started_at, clock_timestamp(), g.claim_id, g.worker_id, g.ready_seq,
  greatest(0, date_part('epoch', g.started_at - g.run_at) + g.buffered_s), g.run_s,
  g.priority, g.attempt, g.max_attempts, 'succeeded', g.queue, g.task, g.args, g.result, g.headers, g.tags, g.idempotency_key, g.errors,
  g.parent_id, g.redrive_of
FROM gone g
RETURNING job_id

-- name: settle_in_transaction
-- purpose:   end one claim as the last statement of the transaction that holds the handler's effect
-- called by: worker/executor.py, sent in one go with COMMIT
-- guard:     claim_id, and the transaction-local mark set when the transaction began; raises PQ001 or PQ002
-- locks:     the settled row
-- index:     the primary key
-- returns:   nothing of interest. It runs under the application's own search_path, so all in it is
--            qualified
WITH gone AS (
  DELETE FROM pgqueue.jobs j
  WHERE j.id OPERATOR(pg_catalog.=) %(id)s AND j.claim_id OPERATOR(pg_catalog.=) %(claim_id)s
  RETURNING j.*
), kept AS (
  INSERT INTO pgqueue.job_history (job_id, enqueued_at, due_at, started_at, finished_at, claim_id, worker_id, ready_seq, wait_s, run_s,
    priority, attempts, max_attempts, state, queue, task, args, result, headers, tags, idempotency_key, errors, parent_id, redrive_of)
  SELECT g.id, g.created_at, g.run_at, g.started_at, pg_catalog.clock_timestamp(), g.claim_id, g.worker_id, g.ready_seq,
    greatest(0, pg_catalog.date_part('epoch', g.started_at OPERATOR(pg_catalog.-) g.run_at) OPERATOR(pg_catalog.+) %(buffered)s::pg_catalog.float8), %(run)s::pg_catalog.float4,
    g.priority, g.attempt, g.max_attempts, 'succeeded', g.queue, g.task, g.args, %(result)s::pg_catalog.jsonb, g.headers, g.tags, g.idempotency_key,
    g.errors, g.parent_id, g.redrive_of
  FROM gone g
  RETURNING job_id
)
SELECT pgqueue.assert_settled((SELECT pg_catalog.count(*) FROM kept), 1, %(mark)s)

-- name: settle_many_in_transaction
-- purpose:   end the claims of a batch or a group as the last statement of the transaction that holds their effects
-- called by: worker/grouped.py, sent in one go with COMMIT
-- guard:     claim_id, and the transaction-local mark; raises PQ001 or PQ002
-- locks:     the settled rows
-- index:     the primary key
-- returns:   nothing of interest. Qualified as above; unnest of several arrays takes no schema, and is the server's own
WITH asked AS MATERIALIZED (
  SELECT a.id, a.claim_id, a.buffered_s, a.run_s, CASE WHEN a.result OPERATOR(pg_catalog.<>) 'null' THEN a.result END AS result
  FROM ROWS FROM (
    unnest(%(ids)s::bigint[], %(claims)s::pg_catalog.uuid[], %(buffered)s::real[], %(runs)s::real[]),
    pg_catalog.jsonb_array_elements(%(results)s::pg_catalog.jsonb)
  ) AS a (id, claim_id, buffered_s, run_s, result)
), gone AS (
  DELETE FROM pgqueue.jobs j USING asked a
  WHERE j.id OPERATOR(pg_catalog.=) a.id AND j.claim_id OPERATOR(pg_catalog.=) a.claim_id
  RETURNING j.*, a.buffered_s, a.run_s, a.result
), kept AS (
INSERT INTO pgqueue.job_history (job_id, enqueued_at, due_at, started_at, finished_at, claim_id, worker_id, ready_seq, wait_s, run_s,
  priority, attempts, max_attempts, state, queue, task, args, result, headers, tags, idempotency_key, errors, parent_id, redrive_of)
SELECT g.id, g.created_at, g.run_at, g.started_at, pg_catalog.clock_timestamp(), g.claim_id, g.worker_id, g.ready_seq,
  greatest(0, pg_catalog.date_part('epoch', g.started_at OPERATOR(pg_catalog.-) g.run_at) OPERATOR(pg_catalog.+) g.buffered_s), g.run_s,
  g.priority, g.attempt, g.max_attempts, 'succeeded', g.queue, g.task, g.args, g.result, g.headers, g.tags, g.idempotency_key, g.errors,
  g.parent_id, g.redrive_of
FROM gone g
RETURNING job_id
)
SELECT pgqueue.assert_settled((SELECT pg_catalog.count(*) FROM kept), (SELECT pg_catalog.count(*)::integer FROM asked), %(mark)s)

-- name: keep_results
-- purpose:   store what succeeded jobs returned with their idempotency keys, in the transaction that settles them
-- called by: storage/settling.py, worker/settler.py, after the settlement and only if such a job is among the settled
-- guard:     the settlement before it, which found the claims; the key still belongs to the job and has not expired
-- locks:     the keys' rows, in the order of the keys
-- index:     dedup_keys' primary key
-- returns:   how many were stored
SELECT pgqueue.keep_results(%(rows)s::pg_catalog.jsonb)

-- name: note_moves
-- purpose:   write the claims and successes of jobs whose tasks are audited in full, in the transaction of the move
-- called by: storage/settling.py, worker/settler.py, worker/claimer.py, and only if such a job is among them
-- guard:     the statement before it, which found the claims
-- locks:     its new rows
-- index:     none
-- returns:   how many were written
SELECT pgqueue.note_moves(%(rows)s::pg_catalog.jsonb)

-- name: release_session
-- purpose:   free the session locks that a handler took, and tell whether it left temporary tables or channels behind
-- called by: storage/settling.py, in one message with the settlement and COMMIT
-- guard:     none; nothing of another session is touched
-- locks:     none
-- index:     none
-- returns:   nothing of interest, the oid of the session's schema of temporary tables or 0, whether it listens
SELECT pg_catalog.pg_advisory_unlock_all(), pg_catalog.pg_my_temp_schema()::pg_catalog.int8,
  EXISTS (SELECT FROM pg_catalog.pg_listening_channels())

-- name: settle_otherwise
-- purpose:   end claims in any other way: retry, snooze, release, hold, dead letter, cancel; with their audit rows
-- called by: worker/settler.py
-- guard:     claim_id
-- locks:     the settled rows
-- index:     the primary key only
-- returns:   the ids that were settled; a missing one is a lost claim
WITH asked AS MATERIALIZED (
  -- The rows are locked before anything is decided: a cancel that somebody asked for meanwhile, even one that
  -- commits while this statement waits for it, ends a job that would have run again.
  SELECT j.id, j.claim_id, clock_timestamp() AS moment, s.delay_s, s.max_attempts, s.buffered_s, s.run_s, s.error_type, s.error_message,
    s.error_fingerprint, s.traceback, s.note,
    -- A job of a window that is given back before it failed goes back to the others, or the window's call falls apart.
    CASE WHEN j.cancel_requested_at IS NOT NULL AND s.kind <> 'dead' THEN 'cancelled'
      WHEN s.kind = 'released' AND j.batch_key IS NOT NULL AND j.attempt = 1 THEN 'returned' ELSE s.kind END AS kind,
    CASE WHEN j.cancel_requested_at IS NULL THEN s.reason WHEN s.kind = 'dead' THEN s.reason ELSE 'cancel_requested' END AS reason
  FROM jsonb_to_recordset(%(batch)s::jsonb) AS s (id bigint, claim_id uuid, kind text, reason text, delay_s double precision,
    max_attempts smallint, buffered_s real, run_s real, error_type text, error_message text, error_fingerprint text, traceback text,
    note text)
  JOIN pgqueue.jobs j ON j.id = s.id AND j.claim_id = s.claim_id
  FOR UPDATE OF j
), again AS (
  UPDATE pgqueue.jobs j SET
    state = CASE a.kind WHEN 'released' THEN 'ready' WHEN 'held' THEN 'held' WHEN 'returned' THEN 'held' ELSE 'scheduled' END,
    hold_reason = CASE a.kind WHEN 'held' THEN a.reason WHEN 'returned' THEN 'window' END,
    ready_seq = CASE a.kind WHEN 'released' THEN nextval('pgqueue.job_seq') END,
    run_at = CASE a.kind WHEN 'held' THEN j.run_at WHEN 'returned' THEN j.run_at WHEN 'released' THEN a.moment ELSE a.moment + make_interval(secs => a.delay_s) END,
    attempt = CASE a.kind WHEN 'retry' THEN j.attempt ELSE greatest(0, j.attempt - 1) END,
    max_attempts = coalesce(a.max_attempts, j.max_attempts),
    errors = CASE a.kind WHEN 'retry' THEN
      (CASE WHEN jsonb_array_length(coalesce(j.errors, '[]')) >= 25 THEN j.errors - 1 ELSE coalesce(j.errors, '[]') END)
      || jsonb_build_object('attempt', j.attempt, 'at', a.moment, 'type', a.error_type, 'message', left(a.error_message, 1000),
        'fingerprint', a.error_fingerprint, 'worker_id', j.worker_id, 'due_epoch', date_part('epoch', j.run_at))
      ELSE j.errors END,
    claim_id = NULL, worker_id = NULL, started_at = NULL, progress = NULL
  FROM asked a, pgqueue.jobs old
  WHERE a.kind IN ('retry', 'snoozed', 'released', 'returned', 'held') AND j.id = a.id AND j.claim_id = a.claim_id AND old.id = j.id
  RETURNING j.id, j.queue, j.task, j.state, old.attempt, old.claim_id, old.worker_id,
    date_part('epoch', old.started_at - old.run_at) AS waited_s, j.run_at AS next_run_at, a.reason, a.note, a.buffered_s, a.run_s,
    a.error_type, a.error_fingerprint
), gone AS (
  DELETE FROM pgqueue.jobs j USING asked a
  WHERE a.kind IN ('dead', 'cancelled') AND j.id = a.id AND j.claim_id = a.claim_id
  RETURNING j.*, a.kind, a.moment, a.reason, a.note, a.buffered_s, a.run_s, a.error_type, a.error_message, a.error_fingerprint, a.traceback,
    coalesce(a.max_attempts, j.max_attempts) AS allowed
), buried AS (
  INSERT INTO pgqueue.dead_letter_jobs (job_id, queue, task, args, headers, tags, priority, reason, error_type, error_message,
    error_fingerprint, traceback, attempts, max_attempts, errors, idempotency_key, retry, timeout_s, claim_id, worker_id, first_failed_at,
    failed_at, created_at, job_created_at, parent_id, redrive_of)
  SELECT g.id, g.queue, g.task, g.args, g.headers, g.tags, g.priority, g.reason, g.error_type, g.error_message, g.error_fingerprint,
    g.traceback, g.attempt, g.allowed,
    coalesce(g.errors, '[]') || jsonb_build_object('attempt', g.attempt, 'at', g.moment, 'type', g.error_type,
      'message', left(g.error_message, 1000), 'fingerprint', g.error_fingerprint, 'worker_id', g.worker_id),
    g.idempotency_key, g.retry, g.timeout_s, g.claim_id, g.worker_id, coalesce((g.errors -> 0 ->> 'at')::timestamptz, g.moment),
    g.moment, g.moment, g.created_at, g.parent_id, g.redrive_of
  FROM gone g WHERE g.kind = 'dead'
), kept AS (
  INSERT INTO pgqueue.job_history (job_id, enqueued_at, due_at, started_at, finished_at, claim_id, worker_id, ready_seq, wait_s, run_s,
    priority, attempts, max_attempts, state, queue, task, args, headers, tags, idempotency_key, errors, parent_id, redrive_of)
  SELECT g.id, g.created_at, g.run_at, g.started_at, g.moment, g.claim_id, g.worker_id, g.ready_seq,
    greatest(0, date_part('epoch', g.started_at - g.run_at) + g.buffered_s), g.run_s, g.priority, g.attempt, g.allowed, 'cancelled',
    g.queue, g.task, g.args, g.headers, g.tags, g.idempotency_key, g.errors, g.parent_id, g.redrive_of
  FROM gone g WHERE g.kind = 'cancelled'
), ended AS (
  SELECT id, queue, task, state, attempt, claim_id, worker_id, waited_s, next_run_at, reason, note, buffered_s, run_s, error_type, error_fingerprint
  FROM again
  UNION ALL
  SELECT id, queue, task, kind, attempt, claim_id, worker_id, date_part('epoch', started_at - run_at), NULL, reason, note, buffered_s, run_s,
    error_type, error_fingerprint
  FROM gone
)
INSERT INTO pgqueue.job_transitions (job_id, from_state, to_state, reason, actor, queue, task, attempt, claim_id, worker_id, wait_s, run_s,
  error_type, error_fingerprint, next_run_at, note)
SELECT e.id, 'running', e.state, e.reason, 'worker:' || e.worker_id, e.queue, e.task, e.attempt, e.claim_id, e.worker_id,
  greatest(0, e.waited_s + e.buffered_s), e.run_s, e.error_type, e.error_fingerprint, e.next_run_at, e.note
FROM ended e
RETURNING job_id

-- name: find_claim
-- purpose:   the truth about one claim after the answer to COMMIT was lost
-- called by: worker/settler.py, worker/executor.py
-- guard:     none; the locking read waits for an old backend that still works on the COMMIT
-- locks:     the live row, if it is there
-- index:     the primary key
-- returns:   the claim_id that holds the live row (or NULL), one row; none if the job is not live
SELECT j.claim_id FROM pgqueue.jobs j WHERE j.id = %(id)s FOR UPDATE

-- name: find_settled
-- purpose:   whether this claim settled this job
-- called by: worker/settler.py, worker/executor.py, after find_claim found no live row with the claim
-- guard:     none
-- locks:     none
-- index:     job_history_job_id_idx, the primary key of dead_letter_jobs, job_transitions_job_id_idx
-- returns:   true or false
SELECT EXISTS (SELECT FROM pgqueue.job_history h WHERE h.job_id = %(id)s AND h.claim_id = %(claim_id)s)
  OR EXISTS (SELECT FROM pgqueue.dead_letter_jobs d WHERE d.job_id = %(id)s AND d.claim_id = %(claim_id)s)
  OR EXISTS (SELECT FROM pgqueue.job_transitions t WHERE t.job_id = %(id)s AND t.claim_id = %(claim_id)s)
