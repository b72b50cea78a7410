-- name: take_duty
-- purpose:   one process does a duty for all: the first that comes once it is due takes it
-- called by: upkeep/duties.py
-- guard:     next_at, re-checked under the row lock. One that lies further ahead than an interval was set by a clock that has been put back since
-- locks:     the duty's row
-- index:     the primary key
-- returns:   seconds until the duty is due: 0 = this process has taken it, and nobody else comes for the length of the lease
WITH commit_class AS MATERIALIZED (
  SELECT set_config('synchronous_commit', 'off', true)
), taken AS (
  INSERT INTO pgqueue.upkeep_duties AS u (duty, next_at)
  SELECT %(duty)s, clock_timestamp() + make_interval(secs => %(lease_s)s) FROM commit_class
  ON CONFLICT (duty) DO UPDATE SET next_at = excluded.next_at
    WHERE coalesce(u.next_at <= clock_timestamp()
      OR u.next_at > clock_timestamp() + make_interval(secs => greatest(%(interval_s)s, %(lease_s)s) + 1), true)
  RETURNING u.duty
)
SELECT CASE WHEN EXISTS (SELECT FROM taken) THEN 0 ELSE
  greatest(0.01, coalesce((SELECT date_part('epoch', u.next_at - clock_timestamp()) FROM pgqueue.upkeep_duties u WHERE u.duty = %(duty)s), 0)) END

-- name: note_duty
-- purpose:   what a round did, or why it failed; and when the next is due, of a duty that one process does for all
-- called by: upkeep/duties.py
-- guard:     none
-- locks:     the duty's row
-- index:     the primary key
-- returns:   nothing
WITH commit_class AS MATERIALIZED (
  SELECT set_config('synchronous_commit', 'off', true)
), done AS (
  SELECT clock_timestamp() AS moment, %(error)s::text AS error, make_interval(secs => %(ago_s)s) AS ago,
    make_interval(secs => %(next_in_s)s::double precision) AS next_in
  FROM commit_class
)
INSERT INTO pgqueue.upkeep_duties AS u (duty, next_at, started_at, took_s, rounds, changed, failures, failed_at, error, by_whom)
SELECT %(duty)s, d.moment + d.next_in, CASE WHEN d.error IS NULL THEN d.moment - d.ago END,
  CASE WHEN d.error IS NULL THEN %(took_s)s::double precision END, %(rounds)s, %(changed)s,
  CASE WHEN d.error IS NULL THEN 0 ELSE 1 END, CASE WHEN d.error IS NOT NULL THEN d.moment END, d.error, %(actor)s
FROM done d
ON CONFLICT (duty) DO UPDATE SET next_at = excluded.next_at, started_at = coalesce(excluded.started_at, u.started_at),
  took_s = coalesce(excluded.took_s, u.took_s), rounds = u.rounds + excluded.rounds, changed = u.changed + excluded.changed,
  failures = u.failures + excluded.failures, failed_at = coalesce(excluded.failed_at, u.failed_at),
  error = coalesce(excluded.error, u.error), by_whom = excluded.by_whom

-- name: expire_keys
-- purpose:   idempotency keys whose life is over; a key that follows a job stays while the job can still want it
-- called by: upkeep/expiry.py, until it returns less than the limit
-- guard:     expires_at, re-checked under the row lock: a key that was taken anew, or follows a redrive, has a new one
-- locks:     the handled rows, SKIP LOCKED
-- index:     dedup_keys_expires_at_idx; the primary keys of jobs and dead_letter_jobs
-- returns:   one number: how many were looked at
WITH old AS MATERIALIZED (
  SELECT k.task, k.key, k.job_id, k.scope FROM pgqueue.dedup_keys k
  WHERE k.expires_at <= (SELECT clock_timestamp())
  ORDER BY k.expires_at
  LIMIT %(batch)s
  FOR UPDATE SKIP LOCKED
), judged AS MATERIALIZED (
  SELECT o.task, o.key, o.scope IN ('live', 'waiting')
      AND (EXISTS (SELECT FROM pgqueue.jobs j WHERE j.id = o.job_id)
        OR EXISTS (SELECT FROM pgqueue.dead_letter_jobs d WHERE d.job_id = o.job_id AND d.redriven_as IS NULL)) AS wanted
  FROM old o
), kept AS (
  UPDATE pgqueue.dedup_keys k SET expires_at = clock_timestamp() + interval '5 minutes'
  FROM judged o WHERE o.wanted AND k.task = o.task AND k.key = o.key
), gone AS (
  DELETE FROM pgqueue.dedup_keys k USING judged o WHERE NOT o.wanted AND k.task = o.task AND k.key = o.key
)
SELECT count(*) FROM old

-- name: ensure_partitions
-- purpose:   day partitions ahead of time
-- called by: upkeep/partitions.py
-- guard:     existing ones are left alone
-- locks:     the default partitions, waiting for at most 500 ms; the parents only against other changes of the table
-- index:     none
-- returns:   one number: how many were made
SELECT pgqueue.ensure_partitions(%(ahead_days)s)

-- name: drop_partition
-- purpose:   the oldest day partition past its retention
-- called by: upkeep/retention.py, until it returns none
-- guard:     age
-- locks:     the parent, for a moment, waiting for at most 200 ms: settlements queue behind the wait
-- index:     none
-- returns:   its name, or NULL
SELECT pgqueue.drop_partition(%(keep_days)s)

-- name: prune_default_partitions
-- purpose:   rows that found no day partition, when their time is over
-- called by: upkeep/retention.py, until it returns nothing
-- guard:     age
-- locks:     the deleted rows
-- index:     none; the default partitions are empty while days are made ahead
-- returns:   one number: how many were deleted
SELECT pgqueue.prune_default_partitions(%(keep_days)s, %(batch)s)

-- name: sweep_history
-- purpose:   rows of queues that keep their history shorter than the rest, from so many blocks of one day
-- called by: upkeep/retention.py, until no day is left to search
-- guard:     only days that are over and counted
-- locks:     the deleted rows
-- index:     none; a range of the table's blocks
-- returns:   (deleted bigint, looked boolean)
SELECT s.deleted, s.looked FROM pgqueue.sweep_history(%(blocks)s) s

-- name: prune_redriven
-- purpose:   dead letters that were redriven long ago
-- called by: upkeep/retention.py, until it returns less than the limit
-- guard:     redriven_at, re-checked under the row lock
-- locks:     the deleted rows, SKIP LOCKED
-- index:     dead_letter_jobs_redriven_at_idx
-- returns:   one number: how many were deleted
SELECT pgqueue.prune_redriven(%(keep_days)s, %(batch)s)

-- name: discard_old_letters
-- purpose:   dead letters that nobody decided about in time
-- called by: upkeep/retention.py, until it returns less than the limit; only where a retention is set
-- guard:     not redriven, and age, re-checked under the row lock: one that is being redriven stays
-- locks:     the discarded rows, SKIP LOCKED
-- index:     dead_letter_jobs_created_at_idx
-- returns:   one number: how many were discarded
SELECT pgqueue.discard_old_letters(%(keep_days)s, %(batch)s, %(actor)s)
