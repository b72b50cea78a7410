-- What people do, in batches: each statement calls the function of the deed for each of its ids, in their order,
-- and the function writes the audit row. One batch is one transaction.

-- name: live_upper
-- purpose:   the newest live job: a bulk deed leaves alone what is enqueued after it began
-- called by: control/jobs
-- guard:     none
-- locks:     none
-- index:     the primary key
-- returns:   (id bigint), 0 if there is none
SELECT coalesce(max(j.id), 0) FROM pgqueue.jobs j

-- name: match_live
-- purpose:   which of the next live jobs a filter means
-- called by: control/jobs, window after window
-- guard:     none: the deed looks at each job again under its lock
-- locks:     none
-- index:     the primary key, forwards over at most 20,000 rows
-- returns:   one row: (scanned_to bigint, NULL at the end; ids bigint[], tasks text[], queues text[])
WITH looked AS MATERIALIZED (
  SELECT w.* FROM pgqueue.jobs w WHERE w.id > %(after)s AND w.id <= %(upto)s ORDER BY w.id LIMIT 20000
), matching AS (
  SELECT l.id, l.task, l.queue FROM looked l
  WHERE (%(states)s::text[] IS NULL OR l.state = ANY (%(states)s::text[]))
    AND (%(queue)s::text IS NULL OR l.queue = %(queue)s::text)
    AND (%(task)s::text IS NULL OR l.task = %(task)s::text)
    AND (%(task_prefix)s::text IS NULL OR starts_with(l.task, %(task_prefix)s::text))
    AND CASE WHEN %(path)s::text IS NULL THEN true ELSE jsonb_path_match(jsonb_build_object('id', l.id,
      'queue', l.queue, 'task', l.task, 'attempts', l.attempt, 'max_attempts', l.max_attempts, 'priority', l.priority,
      'age', date_part('epoch', statement_timestamp() - l.created_at), 'created', date_part('epoch', l.created_at),
      'wait', CASE WHEN l.state = 'ready' THEN date_part('epoch', statement_timestamp() - l.run_at) END, 'run', CASE WHEN l.state = 'running' THEN date_part('epoch', statement_timestamp() - l.started_at) END, 'args', l.args, 'tag', to_jsonb(l.tags), 'error_type', l.errors -> -1 ->> 'type', 'reason', coalesce(l.hold_reason, l.cancel_reason),
      'key', l.idempotency_key, 'worker', l.worker_id, 'parent', l.parent_id, 'schedule', l.headers ->> 'pgqueue.schedule',
      'trace', split_part(l.headers ->> 'traceparent', '-', 2)), %(path)s::jsonpath, %(variables)s::jsonb, true) END
  AND (%(words)s::jsonb IS NULL OR NOT EXISTS (SELECT FROM jsonb_array_elements(%(words)s::jsonb) AS w (term)
    WHERE (w.term -> 0)::boolean = EXISTS (SELECT FROM jsonb_array_elements_text(w.term -> 1) AS a (word)
      WHERE strpos(lower(coalesce(l.errors -> -1 ->> 'message', '')), lower(a.word)) > 0)))
)
SELECT (SELECT max(l.id) FROM looked l), coalesce(array_agg(m.id ORDER BY m.id), '{}'), coalesce(array_agg(m.task ORDER BY m.id), '{}'),
  coalesce(array_agg(m.queue ORDER BY m.id), '{}')
FROM matching m

-- name: dead_upper
-- purpose:   the dead letter with the highest id: as live_upper
-- called by: control/dead_letters
-- guard:     none
-- locks:     none
-- index:     the primary key
-- returns:   (job_id bigint), 0 if there is none
SELECT coalesce(max(d.job_id), 0) FROM pgqueue.dead_letter_jobs d

-- name: match_dead
-- purpose:   which of the next dead letters that wait for a decision a filter means
-- called by: control/dead_letters, window after window
-- guard:     none: the deed looks at each letter again under its lock
-- locks:     none
-- index:     the primary key, forwards over at most 20,000 rows
-- returns:   as match_live
WITH looked AS MATERIALIZED (
  SELECT w.* FROM pgqueue.dead_letter_jobs w
  WHERE w.job_id > %(after)s AND w.job_id <= %(upto)s ORDER BY w.job_id LIMIT 20000
), matching AS (
  SELECT l.job_id, l.task, l.queue FROM looked l
  WHERE l.redriven_as IS NULL
    AND l.created_at >= statement_timestamp() - make_interval(secs => %(age_max_s)s)
    AND (%(queue)s::text IS NULL OR l.queue = %(queue)s::text)
    AND (%(task)s::text IS NULL OR l.task = %(task)s::text)
    AND (%(task_prefix)s::text IS NULL OR starts_with(l.task, %(task_prefix)s::text))
    AND (%(reason)s::text IS NULL OR l.reason = %(reason)s::text)
    AND (%(error_type)s::text IS NULL OR l.error_type = %(error_type)s::text)
    AND (%(fingerprint)s::text IS NULL OR l.error_fingerprint = %(fingerprint)s::text)
    AND CASE WHEN %(path)s::text IS NULL THEN true ELSE jsonb_path_match(jsonb_build_object('id', l.job_id,
      'queue', l.queue, 'task', l.task, 'attempts', l.attempts, 'max_attempts', l.max_attempts, 'priority', l.priority,
      'age', date_part('epoch', statement_timestamp() - l.created_at), 'created', date_part('epoch', l.created_at),
      'wait', NULL::text, 'run', NULL::text, 'args', l.args, 'tag', to_jsonb(l.tags), 'error_type', l.error_type, 'reason', l.reason,
      'key', l.idempotency_key, 'worker', l.worker_id, 'parent', l.parent_id, 'schedule', l.headers ->> 'pgqueue.schedule',
      'trace', split_part(l.headers ->> 'traceparent', '-', 2), 'fingerprint', l.error_fingerprint), %(path)s::jsonpath, %(variables)s::jsonb, true) END
  AND (%(words)s::jsonb IS NULL OR NOT EXISTS (SELECT FROM jsonb_array_elements(%(words)s::jsonb) AS w (term)
    WHERE (w.term -> 0)::boolean = EXISTS (SELECT FROM jsonb_array_elements_text(w.term -> 1) AS a (word)
      WHERE strpos(lower(coalesce(l.error_message, '')), lower(a.word)) > 0)))
)
SELECT (SELECT max(l.job_id) FROM looked l), coalesce(array_agg(m.job_id ORDER BY m.job_id), '{}'),
  coalesce(array_agg(m.task ORDER BY m.job_id), '{}'), coalesce(array_agg(m.queue ORDER BY m.job_id), '{}')
FROM matching m

-- name: cancel_jobs
-- purpose:   cancel jobs
-- called by: control/jobs
-- guard:     the function's: each job's state under its lock
-- locks:     the jobs, in the order of their ids
-- index:     the primary key
-- returns:   (id bigint, verdict text)
SELECT u.id, pgqueue.cancel(u.id, %(reason)s, %(actor)s, %(via)s)
FROM (SELECT i.id FROM unnest(%(ids)s::bigint[]) AS i (id) ORDER BY i.id) u

-- name: run_jobs_now
-- purpose:   make scheduled and held jobs ready
-- called by: control/jobs
-- guard:     the function's: each job's state under its lock
-- locks:     the jobs, in the order of their ids
-- index:     the primary key
-- returns:   (id bigint, verdict text)
SELECT u.id, pgqueue.run_now(u.id, %(reason)s, %(actor)s, %(via)s)
FROM (SELECT i.id FROM unnest(%(ids)s::bigint[]) AS i (id) ORDER BY i.id) u

-- name: reschedule_jobs
-- purpose:   move scheduled and ready jobs to another moment
-- called by: control/jobs
-- guard:     the function's: each job's state under its lock
-- locks:     the jobs, in the order of their ids
-- index:     the primary key
-- returns:   (id bigint, verdict text)
SELECT u.id, pgqueue.reschedule(u.id, make_interval(secs => %(delay_s)s::double precision), %(run_at)s::timestamptz, %(reason)s, %(actor)s,
  %(via)s)
FROM (SELECT i.id FROM unnest(%(ids)s::bigint[]) AS i (id) ORDER BY i.id) u

-- name: redrive_jobs
-- purpose:   enqueue dead jobs again; the i-th becomes due i / rate seconds from now, after those of earlier batches
-- called by: control/dead_letters, control/jobs
-- guard:     the function's: a letter is redriven once
-- locks:     the letters, in the order of their ids
-- index:     the primary key
-- returns:   (job_id bigint, redriven_before boolean, redriven_as bigint; NULL if there is no such letter)
SELECT u.id, EXISTS (SELECT FROM pgqueue.dead_letter_jobs d WHERE d.job_id = u.id AND d.redriven_as IS NOT NULL),
  pgqueue.redrive(u.id, %(reason)s, %(actor)s, %(via)s, %(queue)s::text, %(priority)s::integer,
    make_interval(secs => %(delay_s)s::double precision + %(spacing_s)s::double precision * (u.place - 1)))
FROM (SELECT i.id, i.place FROM unnest(%(ids)s::bigint[]) WITH ORDINALITY AS i (id, place) ORDER BY i.id) u

-- name: discard_letters
-- purpose:   give dead letters up
-- called by: control/dead_letters
-- guard:     the function's
-- locks:     the letters, in the order of their ids
-- index:     the primary key
-- returns:   (job_id bigint, discarded boolean)
SELECT u.id, pgqueue.discard(u.id, %(reason)s, %(actor)s, %(via)s)
FROM (SELECT i.id FROM unnest(%(ids)s::bigint[]) AS i (id) ORDER BY i.id) u

-- name: pause_queue
-- purpose:   stop the claims of a queue from this commit on
-- called by: control/queues
-- guard:     none; pausing twice keeps the first moment
-- locks:     the queue's row
-- index:     the primary key
-- returns:   (since timestamptz)
SELECT pgqueue.pause(%(queue)s, %(reason)s,
  coalesce(%(until)s::timestamptz, clock_timestamp() + make_interval(secs => %(for_s)s::double precision)), %(actor)s, %(via)s)

-- name: resume_queue
-- purpose:   lift a pause
-- called by: control/queues
-- guard:     only a paused queue
-- locks:     the queue's row
-- index:     the primary key
-- returns:   (lifted boolean)
SELECT pgqueue.resume(%(queue)s, %(reason)s, %(actor)s, %(via)s)

-- name: set_queue
-- purpose:   set attributes of a queue
-- called by: control/queues
-- guard:     the function's: only known attributes, only what changes
-- locks:     the queue's row
-- index:     the primary key
-- returns:   (change text): created, changed or same
SELECT pgqueue.set_queue(%(queue)s, %(attributes)s::jsonb, %(reason)s, %(actor)s, %(via)s)

-- name: drain_worker
-- purpose:   ask a worker to finish and leave; it hears so with its next beat
-- called by: control/queues
-- guard:     only a living worker
-- locks:     the worker's row
-- index:     none; the table is small
-- returns:   (verdict text)
SELECT pgqueue.drain_worker(%(worker)s, %(reason)s, %(actor)s, %(via)s)

-- name: note_operation
-- purpose:   the audit row of a deed that no function of its own writes: a look at arguments, a bulk deed's sum
-- called by: control
-- guard:     none
-- locks:     the new row
-- index:     none
-- returns:   nothing of use
SELECT pgqueue.note_operation(%(actor)s, %(via)s, %(action)s, %(target)s, %(reason)s, %(matched)s, %(changed)s, %(detail)s::jsonb)

-- name: keep_history
-- purpose:   how long a queue's history is kept
-- called by: control/retention
-- guard:     none
-- locks:     the queue's row
-- index:     the primary key
-- returns:   (known boolean)
SELECT pgqueue.keep_history(%(queue)s, %(days)s, %(reason)s, %(actor)s, %(via)s)
