-- name: promote_due
-- purpose:   scheduled jobs whose time has come take their place at the tail of their lane
-- called by: upkeep/promote.py, by every worker, until it returns less than the limit
-- guard:     no place in a lane and not held, which is state = 'scheduled', re-checked under the row lock; the database's clock decides
-- locks:     the promoted rows, SKIP LOCKED
-- index:     jobs_scheduled_idx (the clock in a sub-select: a volatile function is no index condition)
-- returns:   the queue of each promoted job
WITH due AS MATERIALIZED (
  SELECT j.id FROM pgqueue.jobs j
  WHERE j.ready_seq IS NULL AND j.hold_reason IS NULL AND j.run_at <= (SELECT clock_timestamp())
  ORDER BY j.run_at
  LIMIT %(batch)s
  FOR UPDATE SKIP LOCKED
), placed AS MATERIALIZED (
  SELECT d.id, nextval('pgqueue.job_seq') AS ready_seq FROM due d
), moved AS (
  UPDATE pgqueue.jobs j SET state = 'ready', ready_seq = p.ready_seq
  FROM placed p WHERE j.id = p.id
  RETURNING j.queue
)
SELECT m.queue, count(*), pgqueue.wake(m.queue)::text FROM moved m GROUP BY m.queue

-- name: next_due
-- purpose:   seconds until the next scheduled job is due
-- called by: upkeep/promote.py
-- guard:     none
-- locks:     none
-- index:     jobs_scheduled_idx
-- returns:   one number, negative when overdue; NULL when nothing is scheduled
SELECT date_part('epoch', (SELECT j.run_at FROM pgqueue.jobs j WHERE j.ready_seq IS NULL AND j.hold_reason IS NULL ORDER BY j.run_at LIMIT 1) - clock_timestamp())
