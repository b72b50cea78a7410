-- What `pgqueue doctor` asks. Each statement is bounded and takes no lock.

-- name: doctor_server
-- purpose:   the server and the promises it keeps
-- called by: control/doctor
-- guard:     none
-- locks:     none
-- index:     none
-- returns:   one row
SELECT current_setting('server_version_num')::integer AS version, pg_is_in_recovery() AS standby, current_setting('fsync') AS fsync,
  current_setting('full_page_writes') AS full_page_writes, current_setting('synchronous_commit') AS synchronous_commit,
  current_setting('autovacuum') AS autovacuum, current_setting('max_connections')::integer AS connections_max,
  (SELECT count(*) FROM pg_stat_activity a WHERE a.backend_type = 'client backend') AS connections

-- name: doctor_settings
-- purpose:   settings of roles and this database that switch the flush off
-- called by: control/doctor
-- guard:     none
-- locks:     none
-- index:     none
-- returns:   one row per override
SELECT coalesce(r.rolname, 'every role') AS role, o.setting
FROM pg_db_role_setting s CROSS JOIN LATERAL unnest(s.setconfig) AS o (setting)
LEFT JOIN pg_roles r ON r.oid = s.setrole
WHERE o.setting IN ('synchronous_commit=off', 'synchronous_commit=local')
  AND s.setdatabase IN (0, (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()))

-- name: doctor_tables
-- purpose:   unlogged tables, invalid indexes, triggers and foreign keys where none belong
-- called by: control/doctor
-- guard:     none
-- locks:     none
-- index:     none
-- returns:   what and name
SELECT 'unlogged' AS what, c.relname::text AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'pgqueue' AND c.relkind = 'r' AND c.relpersistence = 'u'
UNION ALL
SELECT 'invalid index', i.indexrelid::regclass::text FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'pgqueue' AND NOT i.indisvalid
UNION ALL
SELECT 'trigger', t.tgname::text FROM pg_trigger t WHERE t.tgrelid = 'pgqueue.jobs'::regclass AND NOT t.tgisinternal

-- name: doctor_partitions
-- purpose:   days made ahead, and whether rows lie in the default partition
-- called by: control/doctor
-- guard:     none
-- locks:     none
-- index:     none
-- returns:   one row
SELECT (SELECT count(*) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent = 'pgqueue.job_history'::regclass AND c.relname ~ '_[0-9]{8}$'
      AND to_date(right(c.relname, 8), 'YYYYMMDD') > (clock_timestamp() AT TIME ZONE 'UTC')::date) AS ahead,
  EXISTS (SELECT FROM pgqueue.job_history_default) OR EXISTS (SELECT FROM pgqueue.job_transitions_default) AS default_filled

-- name: doctor_transactions
-- purpose:   the oldest open transaction, whoever holds it
-- called by: control/doctor
-- guard:     none
-- locks:     none
-- index:     none
-- returns:   one row, or none
SELECT a.pid, coalesce(a.application_name, '') AS application, coalesce(a.state, '') AS state,
  date_part('epoch', clock_timestamp() - a.xact_start) AS age_s
FROM pg_stat_activity a
WHERE a.xact_start IS NOT NULL AND a.pid <> pg_backend_pid() AND a.backend_type = 'client backend'
ORDER BY a.xact_start LIMIT 1

-- name: doctor_held
-- purpose:   jobs whose task no worker knows
-- called by: control/doctor
-- guard:     none
-- locks:     none
-- index:     jobs_held_idx
-- returns:   (n bigint), capped at 10,001
SELECT count(*) AS n FROM (SELECT FROM pgqueue.jobs j WHERE j.hold_reason = 'unknown_task' LIMIT 10001) c
