-- What `pgqueue doctor` asks. Each statement is bounded and takes no lock.

-- name: doctor_server
-- purpose:   the server and the promises it keeps
-- called by: control/doctor
-- guard:     none
-- locks:     none
-- index:     none
-- returns:   one row; `sees_all`: whether this role is shown other roles' transactions
SELECT current_setting('server_version_num')::integer AS version, pg_is_in_recovery() AS standby, current_setting('fsync') AS fsync,
  current_setting('full_page_writes') AS full_page_writes, current_setting('synchronous_commit') AS synchronous_commit,
  current_setting('autovacuum') AS autovacuum, current_setting('max_connections')::integer AS connections_max,
  (SELECT count(*) FROM pg_stat_activity a WHERE a.backend_type = 'client backend') AS connections,
  pg_has_role('pg_read_all_stats', 'USAGE') AS sees_all

-- name: doctor_settings
-- purpose:   settings of roles and this database that switch the flush off
-- called by: control/doctor
-- guard:     none
-- locks:     none
-- index:     none
-- returns:   one row per override: whose, which setting, and the statement that takes it back
SELECT coalesce('role ' || r.rolname, 'every role') AS whose, o.setting,
  CASE WHEN r.rolname IS NULL THEN format('ALTER DATABASE %I RESET synchronous_commit', current_database())
    WHEN s.setdatabase = 0 THEN format('ALTER ROLE %I RESET synchronous_commit', r.rolname)
    ELSE format('ALTER ROLE %I IN DATABASE %I RESET synchronous_commit', r.rolname, current_database()) END AS fix
FROM pg_db_role_setting s CROSS JOIN LATERAL unnest(s.setconfig) AS o (setting)
LEFT JOIN pg_roles r ON r.oid = s.setrole
WHERE o.setting IN ('synchronous_commit=off', 'synchronous_commit=local')
  AND s.setdatabase IN (0, (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()))
ORDER BY 1

-- name: doctor_tables
-- purpose:   unlogged tables, indexes left invalid, triggers on jobs, tables that autovacuum leaves alone
-- called by: control/doctor
-- guard:     none
-- locks:     none
-- index:     none
-- returns:   what, which, and the statement that mends it
SELECT 'unlogged table' AS what, c.relname::text AS name, format('ALTER TABLE pgqueue.%I SET LOGGED', c.relname) AS fix
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'pgqueue' AND c.relkind = 'r' AND c.relpersistence = 'u'
UNION ALL
SELECT 'invalid index', x.relname::text, format('REINDEX INDEX CONCURRENTLY pgqueue.%I', x.relname)
FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_namespace n ON n.oid = x.relnamespace
WHERE n.nspname = 'pgqueue' AND x.relkind = 'i' AND NOT (i.indisvalid AND i.indisready)
UNION ALL
SELECT 'trigger on jobs', t.tgname::text, format('DROP TRIGGER %I ON pgqueue.jobs', t.tgname)
FROM pg_trigger t WHERE t.tgrelid = 'pgqueue.jobs'::regclass AND NOT t.tgisinternal
UNION ALL
SELECT 'table without autovacuum', c.relname::text, format('ALTER TABLE pgqueue.%I RESET (autovacuum_enabled)', c.relname)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace CROSS JOIN LATERAL pg_options_to_table(c.reloptions) o
WHERE n.nspname = 'pgqueue' AND o.option_name = 'autovacuum_enabled' AND NOT o.option_value::boolean
ORDER BY 1, 2

-- name: doctor_partitions
-- purpose:   days made ahead without a gap, of the table that has fewest, and whether rows lie in a default partition
-- called by: control/doctor
-- guard:     none
-- locks:     none
-- index:     none
-- returns:   one row
SELECT (SELECT min(p.ahead) FROM (
    SELECT (SELECT coalesce(min(d.day) - 1, 60) FROM generate_series(1, 60) AS d (day)
      WHERE to_regclass(format('pgqueue.%I', t.name || to_char((clock_timestamp() AT TIME ZONE 'UTC')::date + d.day, '"_"YYYYMMDD'))) IS NULL) AS ahead
    FROM (VALUES ('job_history'), ('job_transitions')) AS t (name)) p) AS ahead,
  EXISTS (SELECT FROM pgqueue.job_history_default) OR EXISTS (SELECT FROM pgqueue.job_transitions_default) AS default_filled

-- name: doctor_transactions
-- purpose:   who holds the oldest snapshot: a session, a prepared transaction, a replication slot
-- called by: control/doctor
-- guard:     none
-- locks:     none
-- index:     none
-- returns:   at most one row of each kind: who, for how long (NULL = cannot be told), and the statement that ends it
(SELECT format('pid %s (%s, %s)', a.pid, coalesce(nullif(a.application_name, ''), 'no name'), coalesce(a.state, 'state not shown')) AS who,
  date_part('epoch', clock_timestamp() - a.xact_start) AS age_s, format('SELECT pg_terminate_backend(%s)', a.pid) AS fix
FROM pg_stat_activity a
WHERE a.xact_start IS NOT NULL AND a.pid <> pg_backend_pid() AND a.backend_type = 'client backend'
ORDER BY a.xact_start LIMIT 1)
UNION ALL
(SELECT format('prepared transaction %L', p.gid), date_part('epoch', clock_timestamp() - p.prepared), format('ROLLBACK PREPARED %L', p.gid)
FROM pg_prepared_xacts p WHERE p.database = current_database() ORDER BY p.prepared LIMIT 1)
UNION ALL
(SELECT format('replication slot %s, which nobody reads', s.slot_name), NULL, format('SELECT pg_drop_replication_slot(%L)', s.slot_name)
FROM pg_replication_slots s WHERE NOT s.active AND num_nonnulls(s.xmin, s.catalog_xmin) > 0 ORDER BY s.slot_name LIMIT 1)

-- name: doctor_waiting
-- purpose:   jobs that wait for something nobody does: a task no worker knows, a promotion that does not come
-- called by: control/doctor
-- guard:     none
-- locks:     none
-- index:     jobs_held_idx, jobs_scheduled_idx
-- returns:   one row: (held bigint, a sample of their tasks; overdue bigint, the oldest in seconds); counts end at 10,001
SELECT (SELECT count(*) FROM (SELECT FROM pgqueue.jobs j WHERE j.hold_reason = 'unknown_task' LIMIT 10001) c) AS held,
  (SELECT string_agg(DISTINCT s.task, ', ') FROM (SELECT j.task FROM pgqueue.jobs j WHERE j.hold_reason = 'unknown_task' LIMIT 100) s) AS tasks,
  (SELECT count(*) FROM (SELECT FROM pgqueue.jobs j
    WHERE j.ready_seq IS NULL AND j.hold_reason IS NULL AND j.run_at < clock_timestamp() - interval '1 minute' LIMIT 10001) c) AS overdue,
  coalesce((SELECT date_part('epoch', clock_timestamp() - min(j.run_at)) FROM pgqueue.jobs j
    WHERE j.ready_seq IS NULL AND j.hold_reason IS NULL), 0) AS overdue_s

-- name: doctor_dead_letters
-- purpose:   dead letters that wait for a decision
-- called by: control/doctor
-- guard:     none
-- locks:     none
-- index:     dead_letter_jobs_queue_idx
-- returns:   per queue: how many (to 10,001), the oldest in seconds
SELECT q.queue, (SELECT count(*) FROM (SELECT FROM pgqueue.dead_letter_jobs d WHERE d.queue = q.queue AND d.redriven_as IS NULL LIMIT 10001) c) AS n
FROM (SELECT DISTINCT s.queue FROM (SELECT d.queue FROM pgqueue.dead_letter_jobs d WHERE d.redriven_as IS NULL LIMIT 100000) s) q
ORDER BY 1

-- name: doctor_upkeep
-- purpose:   duties that fail, or are overdue by more than ten minutes
-- called by: control/doctor_upkeep
-- guard:     none
-- locks:     none
-- index:     none; a row per duty
-- returns:   one row per such duty: (duty, failing, failed_s, error, overdue, overdue_s)
SELECT s.duty, s.failing, date_part('epoch', clock_timestamp() - s.failed_at) AS failed_s, s.error, coalesce(s.overdue_s > 600, false) AS overdue, s.overdue_s
FROM pgqueue.upkeep_status s
WHERE s.failing OR s.overdue_s > 600
ORDER BY s.duty

-- name: doctor_rollups
-- purpose:   how far the rollups have come
-- called by: control/doctor_upkeep
-- guard:     none
-- locks:     none
-- index:     none; two rows
-- returns:   one row: (rollups_s, recount_s), the age of what is counted in seconds; NULL = nothing is counted yet
SELECT max(date_part('epoch', clock_timestamp() - p.done_upto)) FILTER (WHERE p.what = 'rollups') AS rollups_s,
  max(date_part('epoch', clock_timestamp() - p.done_upto)) FILTER (WHERE p.what = 'recount') AS recount_s
FROM pgqueue.stats_progress p

-- name: doctor_watch
-- purpose:   whether alerts are evaluated and told, and how full the server's queue of notifications is
-- called by: control/doctor_watch
-- guard:     none
-- locks:     none
-- index:     none; the tables are small
-- returns:   one row; workers_settled: workers that have lived long enough to have evaluated
SELECT clock_timestamp() AS now,
  (SELECT date_part('epoch', clock_timestamp() - e.evaluated_at) FROM pgqueue.alert_evaluations e) AS evaluation_age_s,
  (SELECT count(*) FROM pgqueue.workers w WHERE w.status = 'live' AND w.started_at < clock_timestamp() - interval '3 minutes'
    AND w.beat_at > clock_timestamp() - make_interval(secs => w.lease_s)) AS workers_settled,
  ARRAY(SELECT a.name FROM pgqueue.alert_rules a WHERE a.last_error IS NOT NULL ORDER BY a.name) AS failing_rules,
  ARRAY(SELECT s.name FROM pgqueue.shipped_alert_rules s
    WHERE NOT EXISTS (SELECT FROM pgqueue.alert_rules a WHERE a.name = s.name) ORDER BY s.name) AS missing_rules,
  (SELECT count(*) FROM pgqueue.alert_deliveries d JOIN pgqueue.alert_events e ON e.id = d.event_id
    WHERE d.sent_at IS NULL AND d.next_at IS NULL AND e.fired_at > clock_timestamp() - interval '1 day') AS given_up,
  pg_notification_queue_usage() AS notifications

-- name: doctor_identity
-- purpose:   whether two addresses lead to one database of one server
-- called by: control/doctor_address
-- guard:     none
-- locks:     none
-- index:     none
-- returns:   one row: (place text)
SELECT concat_ws(' ', current_database(), pg_postmaster_start_time()) AS place

-- name: doctor_clock
-- purpose:   the database's moment, to be laid beside the host's
-- called by: control/doctor_address
-- guard:     none
-- locks:     none
-- index:     none
-- returns:   one row: (moment double precision), seconds since 1970
SELECT date_part('epoch', clock_timestamp()) AS moment

-- name: doctor_self_test
-- purpose:   tell oneself something, to see whether it arrives
-- called by: control/doctor_address, on a connection that listens
-- guard:     none
-- locks:     none
-- index:     none
-- returns:   nothing of use
SELECT pg_notify('pgqueue_doctor', %(token)s)

-- name: doctor_space
-- purpose:   size and dead rows of each table with its partitions
-- called by: control/doctor_space
-- guard:     none
-- locks:     none
-- index:     none; statistics and the file system
-- returns:   one row per table, the largest first: (name text, bytes bigint, live bigint, dead bigint)
SELECT coalesce(p.relname, c.relname)::text AS name, sum(pg_total_relation_size(c.oid))::bigint AS bytes,
  coalesce(sum(s.n_live_tup), 0)::bigint AS live, coalesce(sum(s.n_dead_tup), 0)::bigint AS dead
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_inherits i ON i.inhrelid = c.oid LEFT JOIN pg_class p ON p.oid = i.inhparent
LEFT JOIN pg_stat_all_tables s ON s.relid = c.oid
WHERE n.nspname = 'pgqueue' AND c.relkind = 'r'
GROUP BY 1 ORDER BY 2 DESC, 1

-- name: doctor_limits
-- purpose:   how near the server is to the end of its transaction ids, and what the living workers may open in connections
-- called by: control/doctor_space
-- guard:     none
-- locks:     none
-- index:     none
-- returns:   one row; wanted: of each worker seven of its own and up to 32 for handlers
SELECT d.datname::text AS name, age(d.datfrozenxid)::bigint AS xid_age,
  current_setting('max_connections')::integer - current_setting('superuser_reserved_connections')::integer AS connections_free,
  coalesce((SELECT sum(7 + least(w.slots, 32)) FROM pgqueue.workers w
    WHERE w.status = 'live' AND w.beat_at > clock_timestamp() - make_interval(secs => w.lease_s)), 0)::bigint AS wanted
FROM pg_database d WHERE d.datname = current_database()

-- name: doctor_leader
-- purpose:   whether somebody fires the schedules that are enabled, and how many schedulers are connected
-- called by: control/doctor_time
-- guard:     none
-- locks:     none
-- index:     none
-- returns:   one row: (leads boolean, schedulers bigint, enabled bigint)
SELECT EXISTS (SELECT FROM pg_locks l WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
    AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
    AND (l.classid::bigint << 32) + l.objid::bigint = hashtextextended('pgqueue scheduler', 0)) AS leads,
  (SELECT count(*) FROM pg_stat_activity a WHERE a.application_name LIKE 'pgqueue/leader%%' AND a.datname = current_database()) AS schedulers,
  (SELECT count(*) FROM pgqueue.schedules s WHERE s.paused_at IS NULL AND s.orphaned_at IS NULL) AS enabled

-- name: doctor_zones
-- purpose:   what the server knows of the zones in use: their offset from UTC at given moments
-- called by: control/doctor_time
-- guard:     zones the server does not know are told as such, and not asked for
-- locks:     none
-- index:     none
-- returns:   a row per zone and moment: (zone text, moment timestamptz, offset_s double precision); NULLs for an unknown zone
SELECT z.zone, m.moment, date_part('epoch', (m.moment AT TIME ZONE z.known) - (m.moment AT TIME ZONE 'UTC')) AS offset_s
FROM (SELECT u.zone, (SELECT n.name FROM pg_timezone_names n WHERE lower(n.name) = lower(u.zone) LIMIT 1) AS known
  FROM unnest(%(zones)s::text[]) AS u (zone)) z
LEFT JOIN unnest(%(moments)s::timestamptz[]) AS m (moment) ON z.known IS NOT NULL
ORDER BY z.zone, m.moment

-- name: doctor_named_tasks
-- purpose:   which tasks jobs, schedules and subscriptions name, to be laid beside those that an application registers
-- called by: control/doctor_work
-- guard:     none
-- locks:     none
-- index:     the primary key of jobs, over the newest 10,000
-- returns:   one row per task and place: (task text, place text, n bigint, example text); place: jobs, schedules, outbox
SELECT j.task, 'jobs' AS place, count(*) AS n, min(j.id)::text AS example
FROM (SELECT w.id, w.task FROM pgqueue.jobs w ORDER BY w.id DESC LIMIT 10000) j GROUP BY j.task
UNION ALL
SELECT s.task, 'schedules', count(*), min(s.name) FROM pgqueue.schedules s WHERE s.orphaned_at IS NULL GROUP BY s.task
UNION ALL
SELECT substr(o.sink, 6), 'outbox', count(*), min(o.pattern) FROM pgqueue.outbox_subscriptions o WHERE starts_with(o.sink, 'task:') GROUP BY o.sink
ORDER BY 1, 2
