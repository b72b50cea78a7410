-- name: watch_workers
-- purpose:   note since when a worker's advisory lock is free, and forget it when it was retaken; times that lie ahead, since the clock was put back, count from now
-- called by: upkeep/rescue.py
-- guard:     only rows whose note changes
-- locks:     those rows of workers
-- index:     none; the table is small
-- returns:   nothing
UPDATE pgqueue.workers w
SET suspected_at = CASE WHEN v.held THEN NULL ELSE least(w.suspected_at, clock_timestamp()) END, beat_at = least(w.beat_at, clock_timestamp())
FROM (
  SELECT x.id, x.lock_key IS NULL OR EXISTS (
    SELECT FROM pg_locks l
    WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
      AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
      AND (l.classid::bigint << 32) | l.objid::bigint = x.lock_key
  ) AS held
  FROM pgqueue.workers x
  WHERE x.status IN ('live', 'draining')
) v
WHERE w.id = v.id AND w.status IN ('live', 'draining')
  AND ((w.suspected_at IS NULL) <> v.held OR greatest(w.beat_at, w.suspected_at) > clock_timestamp() + interval '1 second')

-- name: bury_workers
-- purpose:   declare dead whose lock has been free for 2 s, or whose lease has run out
-- called by: upkeep/rescue.py
-- guard:     status, re-checked under the row lock: a beat in between saves it
-- locks:     those rows of workers
-- index:     none; the table is small
-- returns:   id and why of each dead worker
UPDATE pgqueue.workers w
SET status = 'dead', ended_at = clock_timestamp()
WHERE w.status IN ('live', 'draining')
  AND (w.beat_at < clock_timestamp() - make_interval(secs => w.lease_s)
    OR (w.suspected_at < clock_timestamp() - interval '2 seconds' AND w.beat_at < clock_timestamp() - interval '2 seconds'))
RETURNING w.id, CASE WHEN w.beat_at < clock_timestamp() - make_interval(secs => w.lease_s) THEN 'lease_expired' ELSE 'lock_free' END

-- name: dead_claims
-- purpose:   open claims of workers that are not alive, whatever became of their row
-- called by: upkeep/rescue.py
-- guard:     none
-- locks:     none
-- index:     none; the table holds one row per open batch
-- returns:   claim_id and worker_id, oldest first, after the cursor
SELECT c.claim_id, c.worker_id FROM pgqueue.claims c
WHERE c.claim_id > %(after)s
  AND NOT EXISTS (SELECT FROM pgqueue.workers w WHERE w.id = c.worker_id AND w.status IN ('live', 'draining'))
ORDER BY c.claim_id
LIMIT %(batch)s

-- name: rescue_claim
-- purpose:   take a dead worker's claim back: its jobs are held as suspects to be run alone, or dead-lettered when their attempts are used up
-- called by: upkeep/rescue.py
-- guard:     claim_id and worker_id, re-checked under the row lock, and the worker is not alive; a settlement that came first leaves nothing to take
-- locks:     the taken rows, SKIP LOCKED: a locked one is taken in a later round, so its claim row stays
-- index:     the primary keys
-- returns:   id, new state, queue and task of each rescued job
WITH claim AS MATERIALIZED (
  SELECT c.claim_id, c.worker_id, c.job_ids FROM pgqueue.claims c
  WHERE c.claim_id = %(claim_id)s
    AND NOT EXISTS (SELECT FROM pgqueue.workers w WHERE w.id = c.worker_id AND w.status IN ('live', 'draining'))
  FOR UPDATE OF c SKIP LOCKED
), lost AS MATERIALIZED (
  SELECT j.id,
    j.attempt >= CASE WHEN j.retry IS NULL THEN coalesce(t.max_attempts, j.max_attempts) ELSE j.max_attempts END AS spent
  FROM claim c CROSS JOIN LATERAL unnest(c.job_ids) AS m (id)
  JOIN pgqueue.jobs j ON j.id = m.id AND j.claim_id = c.claim_id
  LEFT JOIN pgqueue.tasks t ON t.name = j.task
  FOR UPDATE OF j SKIP LOCKED
), closed AS (
  DELETE FROM pgqueue.claims c USING claim k
  WHERE c.claim_id = k.claim_id
    AND (SELECT count(*) FROM lost) = (SELECT count(*) FROM unnest(k.job_ids) AS m (id) JOIN pgqueue.jobs j ON j.id = m.id AND j.claim_id = k.claim_id)
), again AS (
  UPDATE pgqueue.jobs j
  SET state = 'held', hold_reason = 'suspect', claim_id = NULL, worker_id = NULL, run_at = clock_timestamp(), ready_seq = NULL,
    started_at = NULL, progress = NULL,
    errors = (CASE WHEN jsonb_array_length(coalesce(j.errors, '[]')) >= 25 THEN j.errors - 1 ELSE coalesce(j.errors, '[]') END)
      || jsonb_build_object('attempt', j.attempt, 'at', clock_timestamp(), 'type', 'WorkerCrash',
        'message', 'the worker process ended before the job was settled', 'worker_id', old.worker_id,
        'due_epoch', date_part('epoch', j.run_at))
  FROM lost l, pgqueue.jobs old
  WHERE j.id = l.id AND NOT l.spent AND old.id = j.id
  RETURNING j.id, j.queue, j.task, j.attempt, old.claim_id, old.worker_id, 'held' AS to_state, 'rescued' AS reason
), gone AS (
  DELETE FROM pgqueue.jobs j USING lost l WHERE j.id = l.id AND l.spent
  RETURNING j.*
), buried AS (
  INSERT INTO pgqueue.dead_letter_jobs (job_id, queue, task, args, headers, tags, priority, reason, error_type, error_message,
    error_fingerprint, attempts, max_attempts, errors, idempotency_key, retry, timeout_s, claim_id, worker_id, first_failed_at, failed_at,
    created_at, job_created_at, parent_id, redrive_of)
  SELECT g.id, g.queue, g.task, g.args, g.headers, g.tags, g.priority, 'worker_crash', 'WorkerCrash',
    'the worker process ended before the job was settled; its attempts are used up', left(md5('worker_crash ' || g.task), 16),
    g.attempt, g.max_attempts,
    coalesce(g.errors, '[]') || jsonb_build_object('attempt', g.attempt, 'at', clock_timestamp(), 'type', 'WorkerCrash',
      'message', 'the worker process ended before the job was settled', 'worker_id', g.worker_id),
    g.idempotency_key, g.retry, g.timeout_s, g.claim_id, g.worker_id,
    coalesce((g.errors -> 0 ->> 'at')::timestamptz, clock_timestamp()), clock_timestamp(), clock_timestamp(), g.created_at,
    g.parent_id, g.redrive_of
  FROM gone g
), ended AS (
  SELECT id, queue, task, attempt, claim_id, worker_id, to_state, reason FROM again
  UNION ALL
  SELECT id, queue, task, attempt, claim_id, worker_id, 'dead', 'worker_crash' FROM gone
), noted AS (
  INSERT INTO pgqueue.job_transitions (job_id, from_state, to_state, reason, actor, queue, task, attempt, claim_id, worker_id, error_type)
  SELECT e.id, 'running', e.to_state, e.reason, %(actor)s, e.queue, e.task, e.attempt, e.claim_id, e.worker_id, 'WorkerCrash' FROM ended e
)
SELECT e.id, e.to_state, e.queue, e.task, pgqueue.wake(e.queue)::text FROM ended e

-- name: forget_workers
-- purpose:   rows of workers that ended a day ago and hold no claim any more
-- called by: upkeep/rescue.py
-- guard:     status and age
-- locks:     the deleted rows
-- index:     none; the table is small
-- returns:   nothing
DELETE FROM pgqueue.workers w
WHERE w.status IN ('stopped', 'dead') AND w.ended_at < clock_timestamp() - interval '1 day'
  AND NOT EXISTS (SELECT FROM pgqueue.claims c WHERE c.worker_id = w.id)

-- name: forget_sleepers
-- purpose:   wishes of workers that are not alive, so that producers stop notifying for them
-- called by: upkeep/rescue.py
-- guard:     the worker's status
-- locks:     the deleted rows
-- index:     none; the table is small
-- returns:   nothing
DELETE FROM pgqueue.sleepers s
WHERE NOT EXISTS (SELECT FROM pgqueue.workers w WHERE w.id = s.worker_id AND w.status IN ('live', 'draining'))
