-- name: register_worker
-- purpose:   a worker's row, before its first claim
-- called by: worker/heart.py
-- guard:     none; the id is new for every start
-- locks:     the new row
-- index:     the primary key
-- returns:   nothing
INSERT INTO pgqueue.workers (id, lock_key, lease_s, pid, host, version, kind, queues, slots)
VALUES (%(id)s, %(lock_key)s, %(lease_s)s, %(pid)s, %(host)s, %(version)s, %(kind)s, %(queues)s::text[], %(slots)s)

-- name: register_queues
-- purpose:   queues that a worker serves are known from its start on, with what its configuration says of them
-- called by: worker/heart.py
-- guard:     the function's: only rows that change
-- locks:     new and changed rows, in the order of their names
-- index:     the primary key
-- returns:   nothing
SELECT pgqueue.register_queues(%(queues)s::text[], %(defaults)s::jsonb)

-- name: register_tasks
-- purpose:   the tasks' defaults, for producers that do not have the code
-- called by: worker/heart.py
-- guard:     only rows that change
-- locks:     new and changed rows, in the order of their names
-- index:     the primary key
-- returns:   nothing
INSERT INTO pgqueue.tasks AS t (name, queue, priority, max_attempts, batch_window_s, batch_key, audit_full)
SELECT s.name, s.queue, s.priority, s.max_attempts, s.batch_window_s, s.batch_key, coalesce(s.audit_full, false)
FROM jsonb_to_recordset(%(tasks)s::jsonb) AS s (name text, queue text, priority smallint, max_attempts smallint, batch_window_s double precision,
  batch_key text, audit_full boolean)
ORDER BY s.name
ON CONFLICT (name) DO UPDATE SET queue = excluded.queue, priority = excluded.priority, max_attempts = excluded.max_attempts,
  batch_window_s = excluded.batch_window_s, batch_key = excluded.batch_key, audit_full = excluded.audit_full,
  updated_at = clock_timestamp()
WHERE (t.queue, t.priority, t.max_attempts, t.batch_window_s, t.batch_key, t.audit_full)
  IS DISTINCT FROM (excluded.queue, excluded.priority, excluded.max_attempts, excluded.batch_window_s, excluded.batch_key, excluded.audit_full)

-- name: beat
-- purpose:   the sign of life, with the counters
-- called by: worker/heart.py, from its own thread and connection
-- guard:     status: a worker that was declared dead stays dead and gets no row back
-- locks:     the worker's own row
-- index:     the primary key
-- returns:   whether an operator wants it to drain
UPDATE pgqueue.workers w
SET beat_at = clock_timestamp(), suspected_at = NULL, claimed = %(claimed)s, settled = %(settled)s, failed = %(failed)s, busy = %(busy)s,
  status = %(status)s, port = %(port)s, claims_lost = %(claims_lost)s, beats_late = %(beats_late)s,
  claim_lost_at = CASE WHEN %(claims_lost)s > w.claims_lost THEN clock_timestamp() ELSE w.claim_lost_at END,
  beat_late_at = CASE WHEN %(beats_late)s > w.beats_late THEN clock_timestamp() ELSE w.beat_late_at END
WHERE w.id = %(id)s AND w.status IN ('live', 'draining')
RETURNING w.drain_requested_at IS NOT NULL

-- name: cancel_requests
-- purpose:   which of a worker's running jobs somebody wants to stop
-- called by: worker/heart.py, with each beat
-- guard:     none
-- locks:     none
-- index:     claims_worker_id_idx, then the primary key
-- returns:   id and claim_id
SELECT j.id, j.claim_id FROM pgqueue.claims c CROSS JOIN LATERAL unnest(c.job_ids) AS m (id)
JOIN pgqueue.jobs j ON j.id = m.id AND j.claim_id = c.claim_id
WHERE c.worker_id = %(id)s AND j.cancel_requested_at IS NOT NULL

-- name: paused_queues
-- purpose:   which queues are paused now; a pause that has ended by itself is lifted
-- called by: worker/heart.py, with each beat
-- guard:     none
-- locks:     rows whose pause has ended
-- index:     none; the table is small
-- returns:   names
SELECT q.name FROM pgqueue.paused_queues() AS q (name)

-- name: queue_objectives
-- purpose:   within how many seconds jobs of a worker's queues are to start, so that it can count which did
-- called by: worker/heart.py, with each beat
-- guard:     only numbers, whatever somebody wrote by hand
-- locks:     none
-- index:     none; the table is small
-- returns:   (name text, sla_s double precision) of queues with a promise
SELECT o.name, o.sla_s
FROM (SELECT q.name, coalesce(q.sla_s,
    CASE WHEN jsonb_typeof(q.defaults -> 'sla_s') = 'number' THEN (q.defaults ->> 'sla_s')::double precision END) AS sla_s
  FROM pgqueue.queues q WHERE q.name = ANY (%(queues)s::text[])) o
WHERE o.sla_s IS NOT NULL

-- name: end_worker
-- purpose:   a worker that leaves in order
-- called by: worker/heart.py, after its claims were settled or released
-- guard:     status
-- locks:     the worker's own row
-- index:     the primary key
-- returns:   nothing
UPDATE pgqueue.workers SET status = 'stopped', ended_at = clock_timestamp(), busy = 0, claimed = %(claimed)s, settled = %(settled)s,
  failed = %(failed)s, claims_lost = %(claims_lost)s, port = NULL,
  claim_lost_at = CASE WHEN %(claims_lost)s > claims_lost THEN clock_timestamp() ELSE claim_lost_at END
WHERE id = %(id)s AND status IN ('live', 'draining')

-- name: fall_asleep
-- purpose:   ask producers of these queues for wake-ups
-- called by: worker/claimer.py, which claims once more after this commit
-- guard:     ON CONFLICT
-- locks:     the new rows
-- index:     the primary key
-- returns:   nothing
INSERT INTO pgqueue.sleepers (queue, worker_id) SELECT q, %(id)s FROM unnest(%(queues)s::text[]) AS q ORDER BY q
ON CONFLICT (queue, worker_id) DO NOTHING

-- name: stay_awake
-- purpose:   no wake-ups wanted any more
-- called by: worker/claimer.py, worker/heart.py
-- guard:     none
-- locks:     the worker's own rows
-- index:     none; the table is small
-- returns:   nothing
DELETE FROM pgqueue.sleepers WHERE worker_id = %(id)s

-- name: drained
-- purpose:   whether `--drain` has done its work
-- called by: worker/runtime.py, control/queues
-- guard:     none
-- locks:     none
-- index:     the partial index of each state
-- returns:   true when these queues hold nothing ready, running, suspect, waiting for a retry or left of a window that has ended
SELECT NOT EXISTS (SELECT FROM pgqueue.jobs j WHERE j.ready_seq IS NOT NULL AND j.queue = ANY (%(queues)s::text[])
    AND NOT (j.state = 'ready' AND EXISTS (SELECT FROM pgqueue.queues q WHERE q.name = j.queue AND q.paused_at IS NOT NULL)))
  AND NOT EXISTS (SELECT FROM pgqueue.jobs j WHERE j.hold_reason = 'suspect' AND j.queue = ANY (%(queues)s::text[]))
  AND NOT EXISTS (SELECT FROM pgqueue.jobs j WHERE j.ready_seq IS NULL AND j.hold_reason IS NULL AND j.queue = ANY (%(queues)s::text[])
    AND (j.attempt > 0 OR j.run_at <= (SELECT clock_timestamp())))
  AND NOT EXISTS (SELECT FROM pgqueue.jobs j WHERE j.batch_key IS NOT NULL AND coalesce(j.hold_reason, '') = 'window' AND j.queue = ANY (%(queues)s::text[])
    AND j.run_at <= (SELECT clock_timestamp()))
