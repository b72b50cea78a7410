-- name: promote_due
-- purpose:   scheduled jobs whose time has come take their place at the tail of their lane
-- called by: upkeep/promote.py, by every worker, until it returns less than the limit
-- guard:     no place in a lane and not held, which is state = 'scheduled', re-checked under the row lock; the database's clock decides
-- locks:     the promoted rows, SKIP LOCKED
-- index:     jobs_scheduled_idx, from the place given (the clock in a sub-select: a volatile function is no index condition)
-- returns:   per queue how many were promoted, and in each row the place of the last of all
WITH due AS MATERIALIZED (
  SELECT j.id, j.run_at FROM pgqueue.jobs j
  WHERE j.ready_seq IS NULL AND j.hold_reason IS NULL AND j.run_at <= (SELECT clock_timestamp())
    AND (j.run_at, j.id) > (%(run_at)s::timestamptz, %(id)s::bigint)
  ORDER BY j.run_at, j.id
  LIMIT %(batch)s
  FOR UPDATE SKIP LOCKED
), placed AS MATERIALIZED (
  SELECT d.id, nextval('pgqueue.job_seq') AS ready_seq FROM due d
), moved AS (
  UPDATE pgqueue.jobs j SET state = 'ready', ready_seq = p.ready_seq
  FROM placed p WHERE j.id = p.id
  RETURNING j.id, j.queue, j.task
), told AS MATERIALIZED (
  -- By a function, so that a locked table of transitions holds up no job of another task.
  SELECT pgqueue.note_moves(jsonb_agg(jsonb_build_object('job_id', m.id, 'from_state', 'scheduled', 'to_state', 'ready', 'reason', 'promoted',
    'queue', m.queue, 'task', m.task))) AS moves
  FROM moved m JOIN pgqueue.tasks t ON t.name = m.task WHERE t.audit_full HAVING count(*) > 0
)
SELECT m.queue, count(*) + 0 * coalesce((SELECT t.moves FROM told t), 0) AS count, last.run_at, last.id, pgqueue.wake(m.queue)::text
FROM moved m CROSS JOIN (SELECT d.run_at, d.id FROM due d ORDER BY d.run_at DESC, d.id DESC LIMIT 1) last
GROUP BY m.queue, last.run_at, last.id

-- name: next_due
-- purpose:   seconds until the next scheduled job is due
-- called by: upkeep/promote.py
-- guard:     none
-- locks:     none
-- index:     jobs_scheduled_idx, from the place given
-- returns:   one number, negative when overdue; NULL when nothing is scheduled
SELECT date_part('epoch', (SELECT j.run_at FROM pgqueue.jobs j
  WHERE j.ready_seq IS NULL AND j.hold_reason IS NULL AND (j.run_at, j.id) > (%(run_at)s::timestamptz, %(id)s::bigint)
  ORDER BY j.run_at, j.id LIMIT 1) - clock_timestamp())

-- name: lead_windows
-- purpose:   for each window that has ended, one of its jobs takes a place in its lane; whoever runs it gathers the others
-- called by: upkeep/windows.py, under the lock of try_windows, window after window
-- guard:     hold_reason = 'window', re-checked under the row lock; no other job of the window is anywhere else: one that is ready leads
--            already, one that runs may gather, and what is left when it ends is led then
-- locks:     one job of each window, SKIP LOCKED
-- index:     jobs_window_idx: a few probes per window, however many jobs it holds
-- returns:   windows seen, jobs that lead now, and the last window, from which to go on; no row when there was none
WITH RECURSIVE seen AS (
  SELECT f.run_at, f.queue, f.task, f.batch_key, 1 AS place
  FROM (
    SELECT j.run_at, j.queue, j.task, j.batch_key FROM pgqueue.jobs j
    WHERE j.batch_key IS NOT NULL AND coalesce(j.hold_reason, '') = 'window' AND j.run_at <= (SELECT clock_timestamp())
      AND (j.run_at, j.queue, j.task, j.batch_key) > (%(run_at)s::timestamptz, %(queue)s::text, %(task)s::text, %(key)s::text)
    ORDER BY j.run_at, j.queue, j.task, j.batch_key
    LIMIT 1
  ) f
  UNION ALL
  SELECT n.run_at, n.queue, n.task, n.batch_key, s.place + 1
  FROM seen s
  CROSS JOIN LATERAL (
    SELECT j.run_at, j.queue, j.task, j.batch_key FROM pgqueue.jobs j
    WHERE j.batch_key IS NOT NULL AND coalesce(j.hold_reason, '') = 'window' AND j.run_at <= (SELECT clock_timestamp())
      AND (j.run_at, j.queue, j.task, j.batch_key) > (s.run_at, s.queue, s.task, s.batch_key)
    ORDER BY j.run_at, j.queue, j.task, j.batch_key
    LIMIT 1
  ) n
  WHERE s.place < %(batch)s
), windows AS MATERIALIZED (
  -- Values, not joins: an anti-join with a generic plan may read the whole table.
  SELECT s.run_at, s.queue, s.task, s.batch_key, s.place,
    (SELECT o.id FROM pgqueue.jobs o WHERE o.run_at = s.run_at AND o.queue = s.queue AND o.task = s.task AND o.batch_key = s.batch_key
      AND coalesce(o.hold_reason, '') < 'window' LIMIT 1) IS NULL
    AND (SELECT o.id FROM pgqueue.jobs o WHERE o.run_at = s.run_at AND o.queue = s.queue AND o.task = s.task AND o.batch_key = s.batch_key
      AND coalesce(o.hold_reason, '') > 'window' LIMIT 1) IS NULL AS leaderless
  FROM seen s
), chosen AS MATERIALIZED (
  SELECT c.id
  FROM windows w
  CROSS JOIN LATERAL (
    SELECT j.id FROM pgqueue.jobs j
    WHERE j.run_at = w.run_at AND j.queue = w.queue AND j.task = w.task AND j.batch_key = w.batch_key AND coalesce(j.hold_reason, '') = 'window'
    LIMIT 1
    FOR UPDATE SKIP LOCKED
  ) c
  WHERE w.leaderless
), led AS (
  UPDATE pgqueue.jobs j SET state = 'ready', hold_reason = NULL, ready_seq = nextval('pgqueue.job_seq')
  WHERE j.id = ANY (ARRAY(SELECT c.id FROM chosen c))
  RETURNING j.id, j.queue, j.task
), told AS MATERIALIZED (
  -- As in promote_due.
  SELECT pgqueue.note_moves(jsonb_agg(jsonb_build_object('job_id', l.id, 'from_state', 'held', 'to_state', 'ready', 'reason', 'promoted',
    'queue', l.queue, 'task', l.task))) AS moves
  FROM led l JOIN pgqueue.tasks t ON t.name = l.task WHERE t.audit_full HAVING count(*) > 0
), woken AS (
  SELECT pgqueue.wake(q.queue) FROM (SELECT DISTINCT l.queue FROM led l) q
)
SELECT w.place, (SELECT count(*) FROM led) + 0 * ((SELECT count(*) FROM woken) + coalesce((SELECT t.moves FROM told t), 0)) AS led, w.run_at, w.queue, w.task, w.batch_key
FROM windows w
ORDER BY w.place DESC
LIMIT 1

-- name: try_windows
-- purpose:   one process at a time looks for windows to be led
-- called by: upkeep/windows.py, in the transaction of lead_windows and before it
-- guard:     none
-- locks:     an advisory lock of our own, until the transaction ends
-- index:     none
-- returns:   true or false
SELECT pg_try_advisory_xact_lock(hashtextextended('pgqueue windows', 0))

-- name: next_window
-- purpose:   seconds until the next window ends
-- called by: upkeep/windows.py
-- guard:     none
-- locks:     none
-- index:     jobs_window_idx
-- returns:   one number; NULL when nothing is being collected
SELECT date_part('epoch', (SELECT j.run_at FROM pgqueue.jobs j
  WHERE j.batch_key IS NOT NULL AND coalesce(j.hold_reason, '') = 'window' AND j.run_at > (SELECT clock_timestamp())
  ORDER BY j.run_at, j.queue, j.task, j.batch_key LIMIT 1) - clock_timestamp())
