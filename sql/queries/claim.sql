-- name: claim_batch
-- purpose:   take up to `wants[pool]` ready jobs for each pool of slots, in lane order, under one fence
-- called by: worker/claimer.py
-- guard:     state = 'ready', re-checked under the row lock; paused queues give nothing
-- locks:     the taken rows, SKIP LOCKED
-- index:     jobs_lane_idx, one probe per lane from its floor upwards; then the primary key
-- returns:   one row per claimed job
WITH commit_class AS MATERIALIZED (
  -- A claim that a server crash loses is a job that is ready again, so it need not wait for the flush.
  SELECT set_config('synchronous_commit', 'off', true)
), lanes AS MATERIALIZED (
  SELECT l.pool, l.queue, l.priority, l.floor
  FROM commit_class,
    unnest(%(pools)s::integer[], %(queues)s::text[], %(priorities)s::smallint[], %(floors)s::bigint[])
      WITH ORDINALITY AS l (pool, queue, priority, floor, place)
  WHERE NOT EXISTS (SELECT FROM pgqueue.queues q WHERE q.name = l.queue AND q.paused_at IS NOT NULL)
  -- The anti-join may hash the lanes, and a claim takes them as they come.
  ORDER BY l.place
), picked AS MATERIALIZED (
  SELECT head.id
  FROM unnest(%(wants)s::integer[]) WITH ORDINALITY AS w (want, pool)
  CROSS JOIN LATERAL (
    SELECT j.id
    FROM lanes l
    CROSS JOIN LATERAL (
      SELECT r.id FROM pgqueue.jobs r
      WHERE r.state = 'ready' AND r.queue = l.queue AND r.priority = l.priority AND r.ready_seq > l.floor
      ORDER BY r.ready_seq
      LIMIT w.want
      FOR UPDATE SKIP LOCKED
    ) j
    WHERE l.pool = w.pool
    LIMIT w.want
  ) head
), spent AS (
  DELETE FROM pgqueue.claims c WHERE c.claim_id = ANY (%(spent)s::uuid[])
), noted AS (
  INSERT INTO pgqueue.claims (claim_id, worker_id, claimed_at, job_ids)
  SELECT %(claim_id)s, %(worker_id)s, clock_timestamp(), array_agg(p.id) FROM picked p HAVING count(*) > 0
)
UPDATE pgqueue.jobs j
SET state = 'running', claim_id = %(claim_id)s, worker_id = %(worker_id)s, attempt = j.attempt + 1, started_at = clock_timestamp()
-- An array, not a join: for a join a generic plan guesses a tenth of the table and reads all of it.
WHERE j.id = ANY (ARRAY(SELECT p.id FROM picked p))
RETURNING j.id, (%(pools)s::integer[])[array_position(%(queues)s::text[], j.queue)] AS pool, j.task, j.args::text, j.attempt, j.max_attempts, j.priority, j.ready_seq, j.queue,
  date_part('epoch', clock_timestamp() - j.run_at) AS wait_s,
  CASE WHEN j.expires_at < clock_timestamp() THEN true END AS expired,
  CASE WHEN num_nonnulls(j.headers, j.tags, j.idempotency_key, j.concurrency_key, j.timeout_s, j.retry, j.parent_id, j.redrive_of, j.errors) > 0
    THEN jsonb_build_object('headers', j.headers, 'tags', j.tags, 'idempotency_key', j.idempotency_key,
      'concurrency_key', j.concurrency_key, 'timeout_s', j.timeout_s, 'retry', j.retry, 'parent_id', j.parent_id,
      'redrive_of', j.redrive_of, 'first_due_epoch', j.errors -> 0 -> 'due_epoch',
      'claimed_epoch', date_part('epoch', clock_timestamp()))::text END AS extras,
  date_part('epoch', j.created_at) AS created_at

-- name: gather_window
-- purpose:   the jobs that go along with the one that leads their window, at the start of its call; with more left than fit, the next one
--            leads at once
-- called by: worker/windows.py
-- guard:     hold_reason = 'window', re-checked under the row lock; nothing, once the leader's claim is lost
-- locks:     the taken rows, SKIP LOCKED
-- index:     the primary key for the leader, jobs_window_idx for the others
-- returns:   the rows as claim_batch gives them
WITH commit_class AS MATERIALIZED (
  SELECT pg_catalog.set_config('synchronous_commit', 'off', true)
), leader AS MATERIALIZED (
  SELECT l.run_at, l.queue, l.task, l.batch_key FROM commit_class, pgqueue.jobs l
  WHERE l.id = %(leader)s AND l.claim_id = %(leader_claim)s
), taken AS MATERIALIZED (
  SELECT j.id FROM leader l
  CROSS JOIN LATERAL (
    SELECT m.id FROM pgqueue.jobs m
    WHERE m.run_at = l.run_at AND m.queue = l.queue AND m.task = l.task AND m.batch_key = l.batch_key AND coalesce(m.hold_reason, '') = 'window'
    LIMIT %(most)s + 1
    FOR UPDATE SKIP LOCKED
  ) j
), picked AS MATERIALIZED (
  SELECT t.id FROM taken t LIMIT %(most)s
), next AS (
  UPDATE pgqueue.jobs j SET state = 'ready', hold_reason = NULL, ready_seq = pg_catalog.nextval('pgqueue.job_seq')
  WHERE j.id = ANY (ARRAY(SELECT t.id FROM taken t EXCEPT SELECT p.id FROM picked p))
  RETURNING pgqueue.wake(j.queue)
), told AS (
  INSERT INTO pgqueue.job_transitions (job_id, from_state, to_state, reason, actor, queue, task, attempt, worker_id)
  SELECT p.id, 'held', 'running', 'claimed', pg_catalog.concat('worker:', %(worker_id)s::pg_catalog.uuid), l.queue, l.task, 1, %(worker_id)s
  FROM picked p, leader l WHERE %(audit)s::boolean
), noted AS (
  INSERT INTO pgqueue.claims (claim_id, worker_id, claimed_at, job_ids)
  SELECT %(claim_id)s, %(worker_id)s, pg_catalog.clock_timestamp(), pg_catalog.array_agg(p.id) FROM picked p HAVING pg_catalog.count(*) > 0
)
UPDATE pgqueue.jobs j
SET state = 'running', hold_reason = NULL, claim_id = %(claim_id)s, worker_id = %(worker_id)s, attempt = j.attempt + 1,
  started_at = pg_catalog.clock_timestamp(), ready_seq = pg_catalog.nextval('pgqueue.job_seq')
WHERE j.id = ANY (ARRAY(SELECT p.id FROM picked p))
RETURNING j.id, %(pool)s::integer AS pool, j.task, j.args::text, j.attempt, j.max_attempts, j.priority, j.ready_seq, j.queue,
  pg_catalog.date_part('epoch', pg_catalog.clock_timestamp() - j.run_at) AS wait_s,
  CASE WHEN j.expires_at < pg_catalog.clock_timestamp() THEN true END AS expired,
  CASE WHEN num_nonnulls(j.headers, j.tags, j.idempotency_key, j.concurrency_key, j.timeout_s, j.retry, j.parent_id, j.redrive_of) > 0
    THEN pg_catalog.jsonb_build_object('headers', j.headers, 'tags', j.tags, 'idempotency_key', j.idempotency_key,
      'concurrency_key', j.concurrency_key, 'timeout_s', j.timeout_s, 'retry', j.retry, 'parent_id', j.parent_id,
      'redrive_of', j.redrive_of)::text END AS extras,
  pg_catalog.date_part('epoch', j.created_at) AS created_at

-- name: claim_suspect
-- purpose:   take one job whose last process died, to run it in a process that runs nothing else
-- called by: worker/suspects.py
-- guard:     state = 'held' AND hold_reason = 'suspect', re-checked under the row lock
-- locks:     that row, SKIP LOCKED
-- index:     jobs_held_idx
-- returns:   the row as claim_batch gives it, or none
WITH picked AS MATERIALIZED (
  SELECT s.id FROM unnest(%(queues)s::text[]) AS q (name)
  CROSS JOIN LATERAL (
    SELECT j.id FROM pgqueue.jobs j
    WHERE j.state = 'held' AND j.hold_reason = 'suspect' AND j.queue = q.name
      AND NOT EXISTS (SELECT FROM pgqueue.queues p WHERE p.name = j.queue AND p.paused_at IS NOT NULL)
    ORDER BY j.id
    LIMIT 1
    FOR UPDATE SKIP LOCKED
  ) s
  LIMIT 1
), noted AS (
  INSERT INTO pgqueue.claims (claim_id, worker_id, claimed_at, job_ids)
  SELECT %(claim_id)s, %(worker_id)s, clock_timestamp(), ARRAY[p.id] FROM picked p
)
UPDATE pgqueue.jobs j
SET state = 'running', hold_reason = NULL, claim_id = %(claim_id)s, worker_id = %(worker_id)s, attempt = j.attempt + 1,
  started_at = clock_timestamp(), ready_seq = nextval('pgqueue.job_seq')
FROM picked p
WHERE j.id = p.id
RETURNING j.id, 1 AS pool, j.task, j.args::text, j.attempt, j.max_attempts, j.priority, j.ready_seq, j.queue,
  date_part('epoch', clock_timestamp() - j.run_at) AS wait_s,
  CASE WHEN j.expires_at < clock_timestamp() THEN true END AS expired,
  jsonb_build_object('headers', j.headers, 'tags', j.tags, 'idempotency_key', j.idempotency_key,
    'concurrency_key', j.concurrency_key, 'timeout_s', j.timeout_s, 'retry', j.retry, 'parent_id', j.parent_id,
    'redrive_of', j.redrive_of, 'first_due_epoch', j.errors -> 0 -> 'due_epoch',
    'claimed_epoch', date_part('epoch', clock_timestamp()))::text AS extras,
  date_part('epoch', j.created_at) AS created_at

-- name: count_suspects
-- purpose:   how many suspects wait in these queues and could be claimed, capped
-- called by: worker/suspects.py
-- guard:     none
-- locks:     none
-- index:     jobs_held_idx
-- returns:   one number, at most 100
SELECT count(*) FROM (
  SELECT FROM pgqueue.jobs j
  WHERE j.hold_reason = 'suspect' AND j.queue = ANY (%(queues)s::text[])
    AND NOT EXISTS (SELECT FROM pgqueue.queues p WHERE p.name = j.queue AND p.paused_at IS NOT NULL)
  LIMIT 100
) c

-- name: free_held
-- purpose:   jobs held because no worker knew their task, now that one does
-- called by: worker/duties.py at start and every upkeep round, until it returns less than the limit
-- guard:     state = 'held' AND hold_reason = 'unknown_task', re-checked under the row lock
-- locks:     the freed rows, SKIP LOCKED
-- index:     jobs_held_idx
-- returns:   one number: how many were freed
WITH freed AS MATERIALIZED (
  SELECT j.id, j.queue, j.task, j.attempt FROM pgqueue.jobs j
  WHERE j.state = 'held' AND j.hold_reason = 'unknown_task' AND j.queue = ANY (%(queues)s::text[]) AND j.task = ANY (%(tasks)s::text[])
  LIMIT %(batch)s
  FOR UPDATE SKIP LOCKED
), moved AS (
  UPDATE pgqueue.jobs j SET state = 'ready', hold_reason = NULL, run_at = clock_timestamp(), ready_seq = nextval('pgqueue.job_seq')
  FROM freed f WHERE j.id = f.id
), noted AS (
  INSERT INTO pgqueue.job_transitions (job_id, from_state, to_state, reason, actor, queue, task, attempt)
  SELECT f.id, 'held', 'ready', 'freed', %(actor)s, f.queue, f.task, f.attempt FROM freed f
), woken AS (
  SELECT pgqueue.wake(q.queue) FROM (SELECT DISTINCT queue FROM freed) q
)
SELECT (SELECT count(*) FROM freed) + 0 * (SELECT count(*) FROM woken)

-- name: own_claims
-- purpose:   a worker's open claims as the database has them: one whose answer was lost is known nowhere else
-- called by: worker/heart.py
-- guard:     age, so that an answer on its way is not mistaken for a lost one
-- locks:     none
-- index:     claims_worker_id_idx
-- returns:   claim ids
SELECT c.claim_id FROM pgqueue.claims c
WHERE c.worker_id = %(worker_id)s AND c.claimed_at < clock_timestamp() - interval '5 seconds'

-- name: release_claim
-- purpose:   give back a claim whose answer was lost: nothing of it started, so no attempt is used up
-- called by: worker/heart.py
-- guard:     claim_id
-- locks:     the claim's rows
-- index:     the primary keys
-- returns:   ids of the released jobs
WITH claim AS (
  DELETE FROM pgqueue.claims c WHERE c.claim_id = %(claim_id)s RETURNING c.claim_id, c.job_ids
), back AS (
  UPDATE pgqueue.jobs j
  -- A job of a window goes back to the others: its call is to be one.
  SET state = CASE WHEN j.batch_key IS NOT NULL AND j.attempt = 1 THEN 'held' ELSE 'ready' END,
    hold_reason = CASE WHEN j.batch_key IS NOT NULL AND j.attempt = 1 THEN 'window' END,
    ready_seq = CASE WHEN j.batch_key IS NOT NULL AND j.attempt = 1 THEN NULL ELSE nextval('pgqueue.job_seq') END,
    run_at = CASE WHEN j.batch_key IS NOT NULL AND j.attempt = 1 THEN j.run_at ELSE clock_timestamp() END,
    attempt = greatest(0, j.attempt - 1), claim_id = NULL, worker_id = NULL, started_at = NULL
  FROM claim c CROSS JOIN LATERAL unnest(c.job_ids) AS m (id)
  WHERE j.id = m.id AND j.claim_id = c.claim_id
  RETURNING j.id, j.queue, j.task, j.attempt, j.state
), noted AS (
  INSERT INTO pgqueue.job_transitions (job_id, from_state, to_state, reason, actor, queue, task, attempt, claim_id)
  SELECT b.id, 'running', b.state, 'released', %(actor)s, b.queue, b.task, b.attempt, %(claim_id)s FROM back b
)
SELECT b.id FROM back b

-- name: close_claims
-- purpose:   rows of claims whose last job is settled, when no further claim statement will take them along
-- called by: worker/heart.py, at the end
-- guard:     claim_id
-- locks:     those rows
-- index:     the primary key
-- returns:   nothing
DELETE FROM pgqueue.claims c WHERE c.claim_id = ANY (%(spent)s::uuid[])
