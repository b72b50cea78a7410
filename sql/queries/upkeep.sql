-- name: expire_keys
-- purpose:   idempotency keys whose life is over
-- called by: upkeep/expiry.py, until it returns less than the limit
-- guard:     expires_at, re-checked under the row lock: a key that was taken anew stays
-- locks:     the deleted rows, SKIP LOCKED
-- index:     dedup_keys_expires_at_idx
-- returns:   one number: how many were deleted
WITH old AS MATERIALIZED (
  SELECT k.task, k.key FROM pgqueue.dedup_keys k
  WHERE k.expires_at <= (SELECT clock_timestamp())
  ORDER BY k.expires_at
  LIMIT %(batch)s
  FOR UPDATE SKIP LOCKED
), gone AS (
  DELETE FROM pgqueue.dedup_keys k USING old o WHERE k.task = o.task AND k.key = o.key RETURNING 1
)
SELECT count(*) FROM gone

-- name: ensure_partitions
-- purpose:   day partitions ahead of time
-- called by: upkeep/partitions.py
-- guard:     existing ones are left alone
-- locks:     the parents, briefly
-- index:     none
-- returns:   one number: how many were made
SELECT pgqueue.ensure_partitions(%(ahead_days)s)

-- name: drop_partitions
-- purpose:   day partitions past their retention
-- called by: upkeep/partitions.py
-- guard:     age
-- locks:     the parents, briefly; lock_timeout is set by the caller
-- index:     none
-- returns:   one number: how many were dropped
SELECT pgqueue.drop_partitions(%(keep_days)s)

-- name: try_duty
-- purpose:   one process at a time per duty; a free lock is taken until the transaction ends
-- called by: upkeep/duties.py
-- guard:     none
-- locks:     the advisory lock of the duty
-- index:     none
-- returns:   true or false
SELECT pg_try_advisory_xact_lock(hashtextextended('pgqueue ' || %(duty)s, 0))
