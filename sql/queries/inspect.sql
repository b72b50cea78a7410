-- What people ask about jobs, queues and workers. Every read is bounded: by keys, or by a window over the newest
-- 100,000 rows in which filters without an index look; callers say where a window ended.

-- name: list_live
-- purpose:   live jobs, newest first
-- called by: control/jobs
-- guard:     none
-- locks:     none
-- index:     the primary key, backwards over at most 100,000 rows
-- returns:   one row per job, as list_ended gives it
SELECT j.id, j.task, j.queue, j.state, j.priority, j.attempt, j.max_attempts, j.created_at, j.run_at, j.started_at,
  NULL::timestamptz AS finished_at, j.worker_id::text, coalesce(j.hold_reason, j.cancel_reason) AS reason, j.idempotency_key,
  coalesce(j.tags, '{}') AS tags, j.parent_id, j.redrive_of, NULL::bigint AS redriven_as, j.errors -> -1 ->> 'type' AS error_type,
  j.errors -> -1 ->> 'message' AS error_message, j.progress
FROM (SELECT w.* FROM pgqueue.jobs w WHERE w.id < %(before)s ORDER BY w.id DESC LIMIT 100000) j
WHERE (%(states)s::text[] IS NULL OR j.state = ANY (%(states)s::text[]))
  AND (%(queue)s::text IS NULL OR j.queue = %(queue)s::text)
  AND (%(task)s::text IS NULL OR j.task = %(task)s::text)
  AND (%(task_prefix)s::text IS NULL OR starts_with(j.task, %(task_prefix)s::text))
  AND CASE WHEN %(path)s::text IS NULL THEN true ELSE jsonb_path_match(jsonb_build_object('id', j.id,
      'queue', j.queue, 'task', j.task, 'attempts', j.attempt, 'max_attempts', j.max_attempts, 'priority', j.priority,
      'age', date_part('epoch', statement_timestamp() - j.created_at), 'created', date_part('epoch', j.created_at),
      'wait', CASE WHEN j.state = 'ready' THEN date_part('epoch', statement_timestamp() - j.run_at) END, 'run', CASE WHEN j.state = 'running' THEN date_part('epoch', statement_timestamp() - j.started_at) END, 'args', j.args, 'tag', to_jsonb(j.tags), 'error_type', j.errors -> -1 ->> 'type', 'reason', coalesce(j.hold_reason, j.cancel_reason),
      'key', j.idempotency_key, 'worker', j.worker_id, 'parent', j.parent_id, 'schedule', j.headers ->> 'pgqueue.schedule',
      'trace', split_part(j.headers ->> 'traceparent', '-', 2)), %(path)s::jsonpath, %(variables)s::jsonb, true) END
  AND (%(words)s::jsonb IS NULL OR NOT EXISTS (SELECT FROM jsonb_array_elements(%(words)s::jsonb) AS w (term)
    WHERE (w.term -> 0)::boolean = EXISTS (SELECT FROM jsonb_array_elements_text(w.term -> 1) AS a (word)
      WHERE strpos(lower(coalesce(j.errors -> -1 ->> 'message', '')), lower(a.word)) > 0)))
ORDER BY j.id DESC
LIMIT %(limit)s

-- name: live_window
-- purpose:   where the window of list_live ends, to go on from there
-- called by: control/jobs, when a page came back short
-- guard:     none
-- locks:     none
-- index:     the primary key
-- returns:   (id bigint), no row if the window held everything
SELECT w.id FROM pgqueue.jobs w WHERE w.id < %(before)s ORDER BY w.id DESC OFFSET 99999 LIMIT 1

-- name: list_ended
-- purpose:   succeeded and cancelled jobs, newest first by their id
-- called by: control/jobs
-- guard:     none
-- locks:     none
-- index:     job_history_job_id_idx of each partition, merged, over at most 100,000 rows
-- returns:   one row per job
SELECT h.job_id AS id, h.task, h.queue, h.state, h.priority, h.attempts AS attempt, h.max_attempts, h.enqueued_at AS created_at,
  h.due_at AS run_at, h.started_at, h.finished_at, h.worker_id::text, NULL::text AS reason, h.idempotency_key, coalesce(h.tags, '{}') AS tags, h.parent_id, h.redrive_of,
  NULL::bigint AS redriven_as, h.errors -> -1 ->> 'type' AS error_type, h.errors -> -1 ->> 'message' AS error_message, NULL::jsonb AS progress
FROM (SELECT w.* FROM pgqueue.job_history w WHERE w.job_id < %(before)s ORDER BY w.job_id DESC LIMIT 100000) h
WHERE h.state = ANY (%(states)s::text[])
  AND (%(queue)s::text IS NULL OR h.queue = %(queue)s::text)
  AND (%(task)s::text IS NULL OR h.task = %(task)s::text)
  AND (%(task_prefix)s::text IS NULL OR starts_with(h.task, %(task_prefix)s::text))
  AND CASE WHEN %(path)s::text IS NULL THEN true ELSE jsonb_path_match(jsonb_build_object('id', h.job_id,
      'queue', h.queue, 'task', h.task, 'attempts', h.attempts, 'max_attempts', h.max_attempts, 'priority', h.priority,
      'age', date_part('epoch', statement_timestamp() - h.enqueued_at), 'created', date_part('epoch', h.enqueued_at),
      'wait', h.wait_s, 'run', h.run_s, 'args', h.args, 'tag', to_jsonb(h.tags), 'error_type', h.errors -> -1 ->> 'type', 'reason', NULL::text,
      'key', h.idempotency_key, 'worker', h.worker_id, 'parent', h.parent_id, 'schedule', h.headers ->> 'pgqueue.schedule',
      'trace', split_part(h.headers ->> 'traceparent', '-', 2)), %(path)s::jsonpath, %(variables)s::jsonb, true) END
  AND (%(words)s::jsonb IS NULL OR NOT EXISTS (SELECT FROM jsonb_array_elements(%(words)s::jsonb) AS w (term)
    WHERE (w.term -> 0)::boolean = EXISTS (SELECT FROM jsonb_array_elements_text(w.term -> 1) AS a (word)
      WHERE strpos(lower(coalesce(h.errors -> -1 ->> 'message', '')), lower(a.word)) > 0)))
ORDER BY h.job_id DESC
LIMIT %(limit)s

-- name: ended_window
-- purpose:   where the window of list_ended ends
-- called by: control/jobs, when a page came back short
-- guard:     none
-- locks:     none
-- index:     job_history_job_id_idx of each partition
-- returns:   (job_id bigint), no row if the window held everything
SELECT w.job_id FROM pgqueue.job_history w WHERE w.job_id < %(before)s ORDER BY w.job_id DESC OFFSET 99999 LIMIT 1

-- name: list_dead
-- purpose:   dead jobs, newest first by their id, as list_live shows jobs
-- called by: control/jobs
-- guard:     none
-- locks:     none
-- index:     the primary key, backwards over at most 100,000 rows
-- returns:   one row per job
SELECT d.job_id AS id, d.task, d.queue, 'dead' AS state, d.priority, d.attempts AS attempt, d.max_attempts, d.job_created_at AS created_at,
  d.job_created_at AS run_at, NULL::timestamptz AS started_at, d.failed_at AS finished_at, d.worker_id::text, d.reason, d.idempotency_key,
  coalesce(d.tags, '{}') AS tags, d.parent_id, d.redrive_of, d.redriven_as, d.error_type, d.error_message,
  NULL::jsonb AS progress
FROM (SELECT w.* FROM pgqueue.dead_letter_jobs w WHERE w.job_id < %(before)s ORDER BY w.job_id DESC LIMIT 100000) d
WHERE (%(queue)s::text IS NULL OR d.queue = %(queue)s::text)
  AND (%(task)s::text IS NULL OR d.task = %(task)s::text)
  AND (%(task_prefix)s::text IS NULL OR starts_with(d.task, %(task_prefix)s::text))
  AND CASE WHEN %(path)s::text IS NULL THEN true ELSE jsonb_path_match(jsonb_build_object('id', d.job_id,
      'queue', d.queue, 'task', d.task, 'attempts', d.attempts, 'max_attempts', d.max_attempts, 'priority', d.priority,
      'age', date_part('epoch', statement_timestamp() - d.job_created_at), 'created', date_part('epoch', d.job_created_at),
      'wait', NULL::text, 'run', NULL::text, 'args', d.args, 'tag', to_jsonb(d.tags), 'error_type', d.error_type, 'reason', d.reason,
      'key', d.idempotency_key, 'worker', d.worker_id, 'parent', d.parent_id, 'schedule', d.headers ->> 'pgqueue.schedule',
      'trace', split_part(d.headers ->> 'traceparent', '-', 2), 'fingerprint', d.error_fingerprint), %(path)s::jsonpath, %(variables)s::jsonb, true) END
  AND (%(words)s::jsonb IS NULL OR NOT EXISTS (SELECT FROM jsonb_array_elements(%(words)s::jsonb) AS w (term)
    WHERE (w.term -> 0)::boolean = EXISTS (SELECT FROM jsonb_array_elements_text(w.term -> 1) AS a (word)
      WHERE strpos(lower(coalesce(d.error_message, '')), lower(a.word)) > 0)))
ORDER BY d.job_id DESC
LIMIT %(limit)s

-- name: dead_window
-- purpose:   where the window of list_dead ends
-- called by: control/jobs, when a page came back short
-- guard:     none
-- locks:     none
-- index:     the primary key
-- returns:   (job_id bigint), no row if the window held everything
SELECT w.job_id FROM pgqueue.dead_letter_jobs w WHERE w.job_id < %(before)s ORDER BY w.job_id DESC OFFSET 99999 LIMIT 1

-- name: find_job
-- purpose:   one job, wherever it is, with all that is kept of it
-- called by: control/jobs
-- guard:     none
-- locks:     none
-- index:     the primary keys; job_history_job_id_idx, one probe per partition
-- returns:   one row; none if nobody knows the id. Arguments and result as text, so that big numbers stay whole
SELECT j.id, j.task, j.queue, j.state, j.priority, j.attempt, j.max_attempts, j.created_at, j.run_at, j.started_at,
  NULL::timestamptz AS finished_at, j.worker_id::text, coalesce(j.hold_reason, j.cancel_reason) AS reason, j.idempotency_key,
  coalesce(j.tags, '{}') AS tags, j.parent_id, j.redrive_of, NULL::bigint AS redriven_as, j.errors -> -1 ->> 'type' AS error_type,
  j.errors -> -1 ->> 'message' AS error_message,
  j.args::text AS args, NULL::text AS result, coalesce(j.headers, '{}') AS headers, coalesce(j.errors, '[]') AS errors, j.progress,
  j.concurrency_key, j.timeout_s, j.expires_at, j.cancel_requested_at, NULL::double precision AS wait_s, NULL::double precision AS run_s
FROM pgqueue.jobs j WHERE j.id = %(id)s
UNION ALL
SELECT h.job_id, h.task, h.queue, h.state, h.priority, h.attempts, h.max_attempts, h.enqueued_at, h.due_at, h.started_at, h.finished_at,
  h.worker_id::text, NULL, h.idempotency_key, coalesce(h.tags, '{}'), h.parent_id, h.redrive_of, NULL, h.errors -> -1 ->> 'type',
  h.errors -> -1 ->> 'message', h.args::text, h.result::text, coalesce(h.headers, '{}'), coalesce(h.errors, '[]'), NULL, NULL, NULL, NULL,
  NULL, h.wait_s, h.run_s
FROM pgqueue.job_history h WHERE h.job_id = %(id)s
UNION ALL
SELECT d.job_id, d.task, d.queue, 'dead', d.priority, d.attempts, d.max_attempts, d.job_created_at, d.job_created_at, NULL, d.failed_at,
  d.worker_id::text, d.reason, d.idempotency_key, coalesce(d.tags, '{}'), d.parent_id, d.redrive_of, d.redriven_as, d.error_type,
  d.error_message, d.args::text, NULL, coalesce(d.headers, '{}'), coalesce(d.errors, '[]'), NULL, NULL, d.timeout_s, NULL, NULL, NULL, NULL
FROM pgqueue.dead_letter_jobs d WHERE d.job_id = %(id)s

-- name: tail_jobs
-- purpose:   the attempts that ended since a moment, the newest first
-- called by: control/tail, every second
-- guard:     none
-- locks:     none
-- index:     job_history_finished_at_idx and job_transitions_at_idx of the last day or two
-- returns:   one row per attempt
SELECT e.* FROM (
  SELECT h.finished_at AS at, h.job_id AS id, h.task, h.queue, h.state, NULL::text AS reason, h.attempts::integer AS attempt, h.wait_s, h.run_s,
    NULL::text AS error_type, NULL::timestamptz AS next_run_at
  FROM pgqueue.job_history h WHERE h.finished_at > %(since)s AND h.state = 'succeeded'
  UNION ALL
  SELECT t.at, t.job_id, t.task, t.queue, t.to_state, t.reason, coalesce(t.attempt, 0)::integer, t.wait_s, t.run_s, t.error_type, t.next_run_at
  FROM pgqueue.job_transitions t WHERE t.at > %(since)s AND (t.run_s IS NOT NULL OR t.to_state IN ('dead', 'cancelled'))
) e
WHERE (%(queue)s::text IS NULL OR e.queue = %(queue)s::text)
  AND (%(task)s::text IS NULL OR e.task = %(task)s::text)
  AND (%(task_prefix)s::text IS NULL OR starts_with(e.task, %(task_prefix)s::text))
ORDER BY e.at DESC, e.id DESC
LIMIT %(limit)s

-- name: complete_names
-- purpose:   names that begin so, for a shell's completion
-- called by: control/names
-- guard:     none
-- locks:     none
-- index:     none; the tables are small
-- returns:   names, in order
SELECT n.name FROM (
  SELECT 'queue' AS kind, q.name FROM pgqueue.queues q
  UNION ALL SELECT 'task', t.name FROM pgqueue.tasks t
  UNION ALL SELECT 'schedule', s.name FROM pgqueue.schedules s
  UNION ALL SELECT 'rule', r.name FROM pgqueue.alert_rules r
  UNION SELECT 'topic', o.pattern FROM pgqueue.outbox_subscriptions o
  UNION ALL SELECT 'worker', left(w.id::text, 8) FROM pgqueue.workers w WHERE w.status IN ('live', 'draining')
) n
WHERE n.kind = %(kind)s AND starts_with(n.name, %(prefix)s) ORDER BY n.name LIMIT %(limit)s

-- name: job_end
-- purpose:   whether a job has ended, and how
-- called by: control/jobs (wait), again and again
-- guard:     none
-- locks:     none
-- index:     the primary keys; job_history_job_id_idx
-- returns:   (state text, reason text); no row if nobody knows the id
SELECT j.state, NULL::text AS reason FROM pgqueue.jobs j WHERE j.id = %(id)s
UNION ALL
SELECT h.state, NULL FROM pgqueue.job_history h WHERE h.job_id = %(id)s
UNION ALL
SELECT 'dead', d.reason FROM pgqueue.dead_letter_jobs d WHERE d.job_id = %(id)s

-- name: explain
-- purpose:   the one reason why a job is not running
-- called by: control/jobs
-- guard:     none
-- locks:     none
-- index:     those of explain()
-- returns:   one row, for an unknown id too
SELECT e.id AS job_id, e.state, e.reason, e.sentence, e.command FROM pgqueue.explain(%(id)s) e

-- name: timeline
-- purpose:   one job's life in order
-- called by: control/jobs
-- guard:     none
-- locks:     none
-- index:     those of job_timeline()
-- returns:   its rows
SELECT t.at, t.event, t.from_state, t.to_state, t.reason, t.actor, t.attempt, nullif(t.detail, '') AS detail
FROM pgqueue.job_timeline(%(id)s) t

-- name: list_dead_letters
-- purpose:   dead letters, newest first
-- called by: control/dead_letters, control/jobs
-- guard:     none
-- locks:     none
-- index:     dead_letter_jobs_created_at_idx, backwards over at most 100,000 rows
-- returns:   one row per letter, without arguments
SELECT d.job_id, d.task, d.queue, d.reason, d.error_type, d.error_message, d.error_fingerprint, d.attempts, d.max_attempts, d.priority,
  d.first_failed_at, d.failed_at, d.created_at, d.job_created_at, d.worker_id::text, d.idempotency_key, coalesce(d.tags, '{}') AS tags,
  d.redrive_of, d.redriven_as, d.redriven_at
FROM (SELECT w.* FROM pgqueue.dead_letter_jobs w
  WHERE (w.created_at, w.job_id) < (%(before_at)s::timestamptz, %(before)s::bigint)
    AND w.created_at >= statement_timestamp() - make_interval(secs => %(age_max_s)s)
  ORDER BY w.created_at DESC, w.job_id DESC LIMIT 100000) d
WHERE (%(waiting)s::boolean IS NOT TRUE OR d.redriven_as IS NULL)
  AND (%(queue)s::text IS NULL OR d.queue = %(queue)s::text)
  AND (%(task)s::text IS NULL OR d.task = %(task)s::text)
  AND (%(task_prefix)s::text IS NULL OR starts_with(d.task, %(task_prefix)s::text))
  AND (%(reason)s::text IS NULL OR d.reason = %(reason)s::text)
  AND (%(error_type)s::text IS NULL OR d.error_type = %(error_type)s::text)
  AND (%(fingerprint)s::text IS NULL OR d.error_fingerprint = %(fingerprint)s::text)
  AND CASE WHEN %(path)s::text IS NULL THEN true ELSE jsonb_path_match(jsonb_build_object('id', d.job_id,
      'queue', d.queue, 'task', d.task, 'attempts', d.attempts, 'max_attempts', d.max_attempts, 'priority', d.priority,
      'age', date_part('epoch', statement_timestamp() - d.created_at), 'created', date_part('epoch', d.created_at),
      'wait', NULL::text, 'run', NULL::text, 'args', d.args, 'tag', to_jsonb(d.tags), 'error_type', d.error_type, 'reason', d.reason,
      'key', d.idempotency_key, 'worker', d.worker_id, 'parent', d.parent_id, 'schedule', d.headers ->> 'pgqueue.schedule',
      'trace', split_part(d.headers ->> 'traceparent', '-', 2), 'fingerprint', d.error_fingerprint), %(path)s::jsonpath, %(variables)s::jsonb, true) END
  AND (%(words)s::jsonb IS NULL OR NOT EXISTS (SELECT FROM jsonb_array_elements(%(words)s::jsonb) AS w (term)
    WHERE (w.term -> 0)::boolean = EXISTS (SELECT FROM jsonb_array_elements_text(w.term -> 1) AS a (word)
      WHERE strpos(lower(coalesce(d.error_message, '')), lower(a.word)) > 0)))
ORDER BY d.created_at DESC, d.job_id DESC
LIMIT %(limit)s

-- name: dead_letters_window
-- purpose:   where the window of list_dead_letters ends
-- called by: control/dead_letters, when a page came back short
-- guard:     none
-- locks:     none
-- index:     dead_letter_jobs_created_at_idx
-- returns:   (created_at timestamptz, job_id bigint), no row if the window held everything
SELECT w.created_at, w.job_id FROM pgqueue.dead_letter_jobs w
WHERE (w.created_at, w.job_id) < (%(before_at)s::timestamptz, %(before)s::bigint)
  AND w.created_at >= statement_timestamp() - make_interval(secs => %(age_max_s)s)
ORDER BY w.created_at DESC, w.job_id DESC OFFSET 99999 LIMIT 1

-- name: find_dead_letters
-- purpose:   dead letters by id, with all that is kept of them
-- called by: control/dead_letters (get, export)
-- guard:     none
-- locks:     none
-- index:     the primary key
-- returns:   one row per letter that exists, in the order of the ids asked for
SELECT d.job_id, d.task, d.queue, d.reason, d.error_type, d.error_message, d.error_fingerprint, d.attempts, d.max_attempts, d.priority,
  d.first_failed_at, d.failed_at, d.created_at, d.job_created_at, d.worker_id::text, d.idempotency_key, coalesce(d.tags, '{}') AS tags,
  d.redrive_of, d.redriven_as, d.redriven_at,
  d.args::text AS args, coalesce(d.headers, '{}') AS headers, coalesce(d.errors, '[]') AS errors, d.traceback
FROM unnest(%(ids)s::bigint[]) WITH ORDINALITY AS u (id, place)
JOIN pgqueue.dead_letter_jobs d ON d.job_id = u.id
ORDER BY u.place

-- name: dead_letter_groups
-- purpose:   dead letters that wait for a decision, by cause, the most frequent first
-- called by: control/dead_letters
-- guard:     none
-- locks:     none
-- index:     none; the table holds what went wrong, and the statement has its time limit
-- returns:   the view's rows
SELECT s.error_fingerprint, s.queue, s.task, s.reason, s.error_type, s.dead, s.first_at, s.last_at, s.sample_message
FROM pgqueue.dead_letter_summary s
WHERE (%(queue)s::text IS NULL OR s.queue = %(queue)s::text) AND (%(task)s::text IS NULL OR s.task = %(task)s::text)
ORDER BY s.dead DESC, s.last_at DESC, s.error_fingerprint
LIMIT %(limit)s

-- name: queue_health
-- purpose:   every queue: what is due, how late, who works on it, what was promised
-- called by: control/queues, control/doctor
-- guard:     none
-- locks:     none
-- index:     those of the view
-- returns:   the view's rows, by name, with the pause's why and until
SELECT h.queue, h.known, h.display_name, h.tier, h.owner, h.paused, h.due, h.due_capped, h.scheduled, h.scheduled_capped, h.held, h.running,
  h.lag_s, h.limited_lag_s, h.sla_s, h.sla_target, h.run_objective_s, h.run_target, h.dead_letter_limit, h.workers_live, h.slots,
  h.dead_recent, h.dead_waiting, q.paused_at, q.paused_by, q.pause_reason, q.paused_until
FROM pgqueue.queue_health h LEFT JOIN pgqueue.queues q ON q.name = h.queue
WHERE %(queue)s::text IS NULL OR h.queue = %(queue)s::text
ORDER BY h.queue

-- name: queue_exists
-- purpose:   tell an unknown queue from one that was not paused
-- called by: control/queues
-- guard:     none
-- locks:     none
-- index:     the primary key
-- returns:   (known boolean)
SELECT EXISTS (SELECT FROM pgqueue.queues q WHERE q.name = %(queue)s)

-- name: pause_witnesses
-- purpose:   who may still start jobs of a queue: workers that serve it, with the beats that show what they have heard
-- called by: control/queues (pause), again and again
-- guard:     a worker whose lease has run out starts nothing
-- locks:     none
-- index:     none; the table is small
-- returns:   (id text, beat_at timestamptz)
SELECT w.id::text, w.beat_at FROM pgqueue.workers w
WHERE w.status IN ('live', 'draining') AND %(queue)s = ANY (w.queues) AND w.beat_at + make_interval(secs => w.lease_s) > clock_timestamp()

-- name: list_workers
-- purpose:   worker processes, the living first
-- called by: control/queues
-- guard:     none
-- locks:     none
-- index:     none; the table is small and old rows are forgotten
-- returns:   one row per process; `stale` = it should have beaten by now
SELECT w.id::text, w.kind, w.status, w.status IN ('live', 'draining') AND w.beat_at + make_interval(secs => w.lease_s) < clock_timestamp() AS stale,
  w.host, w.pid, w.port, w.version, w.queues, w.slots, w.busy, w.claimed, w.settled, w.failed, w.claims_lost, w.beats_late, w.started_at, w.beat_at, w.ended_at, w.lease_s,
  w.lock_key IS NOT NULL AS has_lock, w.drain_requested_at IS NOT NULL AS drain_requested
FROM pgqueue.workers w
WHERE %(ended)s::boolean OR w.status IN ('live', 'draining')
ORDER BY w.status IN ('live', 'draining') DESC, w.beat_at DESC, w.id
LIMIT %(limit)s

-- name: fleet
-- purpose:   the totals above the queues
-- called by: control/queues (stats)
-- guard:     none
-- locks:     none
-- index:     none; the tables are small
-- returns:   one row: workers alive, their slots and busy ones, counters of those that are remembered, the clock
SELECT count(*) FILTER (WHERE w.alive) AS workers, coalesce(sum(w.slots) FILTER (WHERE w.alive), 0) AS slots,
  coalesce(sum(w.busy) FILTER (WHERE w.alive), 0) AS busy, coalesce(sum(w.settled), 0)::bigint AS settled,
  coalesce(sum(w.failed), 0)::bigint AS failed, clock_timestamp() AS clock
FROM (SELECT v.*, v.status IN ('live', 'draining') AND v.beat_at + make_interval(secs => v.lease_s) > clock_timestamp() AS alive
  FROM pgqueue.workers v) w
