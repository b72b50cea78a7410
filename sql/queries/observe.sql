-- What `pgqueue exporter` asks, one snapshot for any number of scrapes. Each statement is bounded in rows, has two
-- seconds, takes no lock that anybody waits for, and reads what pgqueue_reader may read.

-- name: snapshot_queues
-- purpose:   what is due, how late, and who works on it
-- called by: observe/snapshot
-- guard:     none
-- locks:     none
-- index:     those of the view
-- returns:   one row per queue, at most 1,000
SELECT h.queue, h.paused, h.due, h.scheduled, h.held, h.running, h.lag_s, h.limited_lag_s, h.slots, h.dead_recent,
  h.sla_s, h.sla_target, h.dead_letter_limit, h.tier, coalesce(h.owner, '') AS owner
FROM pgqueue.queue_health h ORDER BY h.queue LIMIT 1000

-- name: snapshot_held
-- purpose:   what held jobs wait for
-- called by: observe/snapshot
-- guard:     none
-- locks:     none
-- index:     those of the view
-- returns:   (queue text, hold_reason text, held bigint)
SELECT s.queue, s.hold_reason, s.held FROM pgqueue.held_summary s ORDER BY s.queue, s.hold_reason LIMIT 1000

-- name: snapshot_dead_letters
-- purpose:   dead letters that wait for a decision, by queue and task
-- called by: observe/snapshot
-- guard:     none
-- locks:     none
-- index:     dead_letter_jobs_queue_idx, a probe per group (a loose scan), then up to 10,001 entries of each
-- returns:   (queue text, task text, waiting bigint, oldest_age_s double precision), at most 500 groups
WITH RECURSIVE groups AS (
  (SELECT d.queue, d.task, d.created_at, 1 AS place FROM pgqueue.dead_letter_jobs d WHERE d.redriven_as IS NULL
    ORDER BY d.queue, d.task, d.created_at LIMIT 1)
  UNION ALL
  SELECT f.queue, f.task, f.created_at, g.place + 1 FROM groups g CROSS JOIN LATERAL (
    SELECT d.queue, d.task, d.created_at FROM pgqueue.dead_letter_jobs d
    WHERE d.redriven_as IS NULL AND (d.queue, d.task) > (g.queue, g.task)
    ORDER BY d.queue, d.task, d.created_at LIMIT 1) f
  WHERE g.place < 500
)
SELECT g.queue, g.task,
  (SELECT count(*) FROM (SELECT FROM pgqueue.dead_letter_jobs d
    WHERE d.redriven_as IS NULL AND d.queue = g.queue AND d.task = g.task LIMIT 10001) c) AS waiting,
  greatest(0, date_part('epoch', clock_timestamp() - g.created_at)) AS oldest_age_s
FROM groups g

-- name: snapshot_workers
-- purpose:   worker processes per queue; 0 for a queue that nobody serves
-- called by: observe/snapshot
-- guard:     none
-- locks:     none
-- index:     none; the tables are small
-- returns:   (queue text, live bigint, draining bigint, stale bigint)
SELECT q.name AS queue, count(*) FILTER (WHERE w.status = 'live' AND NOT w.stale) AS live,
  count(*) FILTER (WHERE w.status = 'draining' AND NOT w.stale) AS draining, count(*) FILTER (WHERE w.stale) AS stale
FROM pgqueue.queues q
LEFT JOIN (SELECT v.queues, v.status, v.beat_at + make_interval(secs => v.lease_s) < clock_timestamp() AS stale
  FROM pgqueue.workers v WHERE v.status IN ('live', 'draining')) w ON q.name = ANY (w.queues)
GROUP BY q.name ORDER BY q.name LIMIT 1000

-- name: snapshot_leader
-- purpose:   whether a scheduler holds the leader's lock
-- called by: observe/snapshot
-- guard:     none
-- locks:     none; it looks at them
-- index:     none
-- returns:   (led boolean)
SELECT EXISTS (
  SELECT FROM pg_locks l CROSS JOIN (SELECT hashtextextended('pgqueue scheduler', 0)) AS k (key)
  WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted
    AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
    AND ((l.classid::bigint << 32) | l.objid::bigint) = k.key)

-- name: snapshot_schedules
-- purpose:   schedules: their plan, their last fire and what became of it
-- called by: observe/snapshot
-- guard:     none
-- locks:     none
-- index:     those of the view
-- returns:   one row per schedule, at most 501
SELECT s.schedule, s.state, date_part('epoch', s.next_fire_at) AS next_fire, date_part('epoch', s.last_fire_at) AS last_fire, s.last_outcome
FROM pgqueue.schedule_status s ORDER BY s.schedule LIMIT 501

-- name: snapshot_server
-- purpose:   connections, and what holds the horizon of vacuum back
-- called by: observe/snapshot
-- guard:     none
-- locks:     none
-- index:     none
-- returns:   (connections bigint, connections_max integer, oldest_s double precision, horizon bigint)
SELECT (SELECT count(*) FROM pg_stat_activity a WHERE a.backend_type = 'client backend'),
  current_setting('max_connections')::integer,
  greatest(0, (SELECT date_part('epoch', clock_timestamp() - min(a.xact_start)) FROM pg_stat_activity a
      WHERE a.datname = current_database() AND a.backend_type = 'client backend' AND a.pid <> pg_backend_pid()),
    (SELECT date_part('epoch', clock_timestamp() - min(p.prepared)) FROM pg_prepared_xacts p WHERE p.database = current_database())),
  greatest(0, (SELECT max(age(a.backend_xmin)) FROM pg_stat_activity a WHERE a.pid <> pg_backend_pid()),
    (SELECT max(age(p.transaction)) FROM pg_prepared_xacts p),
    (SELECT max(greatest(age(r.xmin), age(r.catalog_xmin))) FROM pg_replication_slots r))

-- name: snapshot_tables
-- purpose:   sizes and dead rows, partitions summed under their table
-- called by: observe/snapshot, twice a minute
-- guard:     none
-- locks:     ACCESS SHARE on each table for a moment
-- index:     none
-- returns:   (name text, bytes bigint, live bigint, dead bigint)
SELECT coalesce(p.relname, c.relname)::text AS name, sum(pg_total_relation_size(c.oid))::bigint AS bytes,
  sum(pg_stat_get_live_tuples(c.oid))::bigint AS live, sum(pg_stat_get_dead_tuples(c.oid))::bigint AS dead
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = 'pgqueue'
LEFT JOIN pg_inherits i ON i.inhrelid = c.oid
LEFT JOIN pg_class p ON p.oid = i.inhparent
WHERE c.relkind = 'r'
GROUP BY 1 ORDER BY 1

-- name: snapshot_partitions
-- purpose:   days made ahead without a gap
-- called by: observe/snapshot, twice a minute
-- guard:     none
-- locks:     none
-- index:     none
-- returns:   (name text, ahead integer)
SELECT t.name, (SELECT coalesce(min(d.day) - 1, 60) FROM generate_series(1, 60) AS d (day)
  WHERE to_regclass(format('pgqueue.%I', t.name || to_char((clock_timestamp() AT TIME ZONE 'UTC')::date + d.day, '"_"YYYYMMDD'))) IS NULL)
FROM (VALUES ('job_history'), ('job_transitions')) AS t (name)

-- name: snapshot_recent
-- purpose:   what ended in the last five minutes that are counted, by queue
-- called by: observe/snapshot, twice a minute
-- guard:     none
-- locks:     none
-- index:     the primary key of stats_minutely
-- returns:   one row per queue, at most 1,000: counts by outcome, about how long they waited and ran, the share that met the promise
WITH span AS (
  SELECT p.done_upto - interval '5 minutes' AS since, p.done_upto AS until FROM pgqueue.stats_progress p
  WHERE p.what = 'rollups' AND p.done_upto IS NOT NULL
), met AS (
  SELECT m.queue, sum(m.wait_met)::double precision / nullif(sum(m.n), 0) AS share
  FROM span s CROSS JOIN LATERAL (SELECT m.queue, m.wait_met, m.n FROM pgqueue.stats_minutely m
    WHERE m.grain_s = 60 AND m.series = 'work' AND m.bucket_at >= s.since AND m.bucket_at < s.until AND m.wait_met IS NOT NULL) m
  GROUP BY m.queue
)
SELECT w.queue, w.succeeded, w.retried, w.dead, w.other, w.wait_p50_s, w.wait_p95_s, w.wait_p99_s, w.wait_max_s, w.run_p50_s, w.run_p95_s,
  w.run_p99_s, w.run_max_s, met.share
FROM span s CROSS JOIN LATERAL pgqueue.work_stats(s.since, s.until) w LEFT JOIN met ON met.queue = w.queue
WHERE w.task IS NULL ORDER BY w.queue LIMIT 1000

-- name: snapshot_rollups
-- purpose:   how far behind the counting of minutes is
-- called by: observe/snapshot
-- guard:     none
-- locks:     none
-- index:     the primary key
-- returns:   (age_s double precision), no row before the first count
SELECT greatest(0, date_part('epoch', clock_timestamp() - p.done_upto)) FROM pgqueue.stats_progress p
WHERE p.what = 'rollups' AND p.done_upto IS NOT NULL

-- name: snapshot_upkeep
-- purpose:   duties of upkeep: how late, and whether the newest round failed
-- called by: observe/snapshot
-- guard:     none
-- locks:     none
-- index:     none; the table is small
-- returns:   (duty text, overdue_s double precision, failing boolean)
SELECT u.duty, coalesce(u.overdue_s, 0), u.failing FROM pgqueue.upkeep_status u ORDER BY u.duty LIMIT 100

-- name: snapshot_outbox
-- purpose:   messages that wait, by topic
-- called by: observe/snapshot
-- guard:     none
-- locks:     none
-- index:     those of the view
-- returns:   one row per topic, at most 1,000
SELECT o.topic, o.pending, o.failing, o.dead, o.oldest_age_s FROM pgqueue.outbox_status o ORDER BY o.topic LIMIT 1000

-- name: snapshot_alerts
-- purpose:   how many incidents of each rule are open
-- called by: observe/snapshot
-- guard:     none
-- locks:     none
-- index:     none; rules are few, and open incidents have an index of their own
-- returns:   (rule text, severity text, firing bigint); 0 for a rule that is at peace
SELECT r.name, coalesce(e.severity, CASE r.severity WHEN 'tier' THEN 'warn' ELSE r.severity END) AS severity, count(e.id) AS firing
FROM pgqueue.alert_rules r LEFT JOIN pgqueue.alert_events e ON e.rule_id = r.id AND e.resolved_at IS NULL AND e.state = 'firing'
WHERE r.enabled GROUP BY 1, 2 ORDER BY 1, 2 LIMIT 500

-- name: snapshot_evaluation
-- purpose:   when alerts were last evaluated
-- called by: observe/snapshot
-- guard:     none
-- locks:     none
-- index:     none; one row
-- returns:   (age_s double precision), no row before the first evaluation
SELECT greatest(0, date_part('epoch', clock_timestamp() - a.evaluated_at)) FROM pgqueue.alert_evaluations a WHERE a.evaluated_at IS NOT NULL
