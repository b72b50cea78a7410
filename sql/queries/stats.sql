-- name: roll_up
-- purpose:   the minutes that have ended are counted, and the hours and days they complete
-- called by: upkeep/rollups.py, until it is no longer behind
-- guard:     the progress row, held for the transaction: one at a time, and each minute once
-- locks:     the progress row, SKIP LOCKED; the rows of stats_minutely that change
-- index:     job_history_finished_at_idx and job_transitions_at_idx of the days in question
-- returns:   (written bigint, behind boolean)
SELECT r.written, r.behind FROM pgqueue.roll_up(%(minutes_max)s) r

-- name: recount
-- purpose:   each day is counted once more after its end, for what was settled late or when the clock had been put back
-- called by: upkeep/rollups.py, until it is no longer behind
-- guard:     the progress row, held for the transaction
-- locks:     the progress row, SKIP LOCKED; the rows of stats_minutely that were wrong
-- index:     as roll_up
-- returns:   (corrected bigint, behind boolean)
SELECT r.corrected, r.behind FROM pgqueue.recount(%(minutes_max)s) r

-- name: summarize_days
-- purpose:   the newest blocks of today's history get their index entries
-- called by: upkeep/rollups.py, after roll_up
-- guard:     none
-- locks:     today's partitions, as vacuum does, waiting for at most 50 ms
-- index:     none
-- returns:   one number: how many ranges of blocks
SELECT pgqueue.summarize_days()

-- name: sample_queues
-- purpose:   depth and lag of each queue at this moment
-- called by: upkeep/rollups.py
-- guard:     one sample per minute; the view is not even read when there is one
-- locks:     the new rows
-- index:     those of queue_health; the primary key
-- returns:   nothing
INSERT INTO pgqueue.stats_minutely (grain_s, bucket_at, series, queue, task, outcome, n, due, due_max, lag_s, lag_max_s, scheduled, held, running, slots)
SELECT 60, date_bin('1 minute', clock_timestamp(), '2000-01-01 00:00:00+00'), 'queue', h.queue, '', '', 1, h.due, h.due, h.lag_s, h.lag_s,
  h.scheduled, h.held, h.running, h.slots
FROM pgqueue.queue_health h
WHERE NOT EXISTS (SELECT FROM pgqueue.stats_minutely s
  WHERE s.grain_s = 60 AND s.bucket_at = date_bin('1 minute', clock_timestamp(), '2000-01-01 00:00:00+00') AND s.series = 'queue')
ON CONFLICT DO NOTHING

-- name: prune_stats
-- purpose:   minutes after 48 hours, hours after 90 days, days after 2 years
-- called by: upkeep/rollups.py, until it returns less than the limit
-- guard:     age; a minute that the recount has not passed yet stays, since its hour is made from it
-- locks:     the deleted rows
-- index:     the primary key
-- returns:   one number: how many were deleted
WITH old AS MATERIALIZED (
  SELECT s.ctid FROM (VALUES (60, interval '48 hours'), (3600, interval '90 days'), (86400, interval '2 years')) AS g (grain_s, keep)
  CROSS JOIN LATERAL (
    SELECT m.ctid FROM pgqueue.stats_minutely m
    WHERE m.grain_s = g.grain_s
      AND m.bucket_at < (SELECT least(clock_timestamp() - g.keep, coalesce(p.done_upto, '-infinity')) FROM pgqueue.stats_progress p WHERE p.what = 'recount')
    ORDER BY m.bucket_at
    LIMIT %(batch)s
  ) s
), gone AS (
  DELETE FROM pgqueue.stats_minutely m WHERE m.ctid = ANY (ARRAY(SELECT o.ctid FROM old o)) RETURNING 1
)
SELECT count(*) FROM gone

-- name: recent_work
-- purpose:   what ended in the last minutes that are counted, by queue and task, and by queue
-- called by: control/stats.py
-- guard:     none
-- locks:     none
-- index:     the primary key of stats_minutely
-- returns:   one row per queue (task NULL) and task
SELECT w.queue, w.task, p.since, p.until, w.ended, w.succeeded, w.retried, w.dead, w.other,
  w.ended / (date_part('epoch', p.until - p.since) / 60) AS per_minute,
  w.wait_p50_s, w.wait_p95_s, w.wait_p99_s, w.wait_max_s, w.run_p50_s, w.run_p95_s, w.run_p99_s, w.run_max_s
FROM (
  SELECT p.done_upto - make_interval(mins => %(minutes)s) AS since, p.done_upto AS until FROM pgqueue.stats_progress p
  WHERE p.what = 'rollups' AND p.done_upto IS NOT NULL
) p
CROSS JOIN LATERAL pgqueue.work_stats(p.since, p.until) w
ORDER BY w.queue, w.task NULLS FIRST
