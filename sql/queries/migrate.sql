-- What the migrator asks and notes. The version table is made by Alembic; everything else by alembic/versions.

-- name: migrate_settings
-- purpose:   the migrator's own session, for one transaction: SET LOCAL, because behind a pooler anything else leaks
-- called by: storage/migrate, first statement of each transaction
-- returns:   nothing of use
SELECT set_config('search_path', 'pg_catalog', true), set_config('statement_timeout', '0', true),
  set_config('lock_timeout', '3s', true), set_config('idle_in_transaction_session_timeout', '0', true),
  set_config('client_encoding', 'UTF8', true),
  set_config('default_tablespace', '', true), set_config('default_table_access_method', 'heap', true),
  set_config('check_function_bodies', 'on', true)

-- name: migrate_no_transaction_timeout
-- purpose:   lift the limit that a role or database may set since PostgreSQL 17
-- called by: storage/migrate, on such servers
-- returns:   nothing of use
SELECT set_config('transaction_timeout', '0', true)

-- name: migrate_try_lock
-- purpose:   let one migrator in; tried again and again, because one that waits inside a statement holds a snapshot
-- called by: storage/migrate, at the start of each revision's transaction
-- locks:     the advisory lock of migrations, until the end of the transaction
-- returns:   (taken boolean)
SELECT pg_try_advisory_xact_lock(7307203601231412837)

-- name: migrate_wait_lock
-- purpose:   the same lock for those who start Alembic themselves or run its SQL: no loop there to try again in
-- called by: storage/frozen, under the lock timeout
-- locks:     the advisory lock of migrations, until the end of the transaction
-- returns:   nothing of use
SELECT pg_advisory_xact_lock(7307203601231412837)

-- name: migrate_lock_holder
-- purpose:   who has the migration lock
-- called by: storage/migrate, when its patience ends
-- returns:   (pid integer, application_name text), no row if it was let go
SELECT l.pid, coalesce(a.application_name, '') FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
  AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
  AND (l.classid::bigint << 32) + l.objid::bigint = 7307203601231412837
LIMIT 1

-- name: migrate_table_holders
-- purpose:   who else has locks on our tables
-- called by: storage/migrate, when a revision could not get its locks
-- returns:   (pids integer[]), oldest transaction first
SELECT coalesce(array_agg(h.pid ORDER BY h.since, h.pid), '{}') FROM (
  SELECT l.pid, min(a.xact_start) AS since FROM pg_locks l
    JOIN pg_class c ON c.oid = l.relation JOIN pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN pg_stat_activity a ON a.pid = l.pid
  WHERE n.nspname = 'pgqueue' AND l.granted AND l.pid <> pg_backend_pid()
    AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
  GROUP BY l.pid) h

-- name: migrate_state
-- purpose:   what there is of our schema, before its tables may be named
-- called by: storage/migrate
-- returns:   (recorded boolean, relations bigint, broken text[]): the version table exists; how many of the tables
--            that no revision is without; indexes that a build left behind half made
SELECT pg_catalog.to_regclass('pgqueue.alembic_version') IS NOT NULL,
  (SELECT count(*) FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = 'pgqueue' AND c.relname IN ('jobs', 'job_history', 'dead_letter_jobs')),
  (SELECT coalesce(array_agg(c.relname::text ORDER BY c.relname), '{}') FROM pg_catalog.pg_index i
    JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = 'pgqueue' AND NOT i.indisvalid AND c.relkind = 'i')

-- name: migrate_recorded
-- purpose:   the revision the database is at, and the oldest code that may run on it
-- called by: storage/migrate, storage/frozen
-- returns:   (version_num text, code_from text), one row; none before the first revision
SELECT v.version_num::text, pg_catalog.to_jsonb(v) ->> 'code_from' FROM pgqueue.alembic_version v ORDER BY 1

-- name: migrate_make_schema
-- purpose:   a place for the version table. Not IF NOT EXISTS: that asks for the right to create schemas even where
--            an administrator has made this one for a role without it
-- called by: storage/migrate, alembic/env.py
-- returns:   nothing
DO $$
BEGIN
  IF pg_catalog.to_regnamespace('pgqueue') IS NULL THEN
    CREATE SCHEMA pgqueue;
  END IF;
END $$

-- name: migrate_version_table
-- purpose:   the version table, for an application's own Alembic, which keeps one elsewhere
-- called by: storage/frozen
-- returns:   nothing
CREATE TABLE IF NOT EXISTS pgqueue.alembic_version (
  version_num varchar(32) NOT NULL, CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num))

-- name: migrate_code_column
-- purpose:   room beside the revision for the oldest code that may run on it
-- called by: storage/frozen, after each revision
-- returns:   nothing
ALTER TABLE pgqueue.alembic_version ADD COLUMN IF NOT EXISTS code_from varchar(32)

-- name: migrate_describe_table
-- purpose:   comments for people, and the rights of our roles on what Alembic made itself
-- called by: storage/frozen, after each revision
-- returns:   nothing
DO $$
BEGIN
  COMMENT ON TABLE pgqueue.alembic_version IS 'Which revision this schema is at; written by pgqueue db upgrade';
  COMMENT ON COLUMN pgqueue.alembic_version.version_num IS 'The revision';
  COMMENT ON COLUMN pgqueue.alembic_version.code_from IS 'Programs whose own newest revision is this one or later run on the schema; older ones refuse';
  REVOKE ALL ON pgqueue.alembic_version FROM PUBLIC;
  PERFORM pgqueue.grant_roles();
END $$

-- name: migrate_drop_version_table
-- purpose:   the last thing of ours, after the first revision was taken back
-- called by: storage/frozen
-- returns:   nothing
DROP TABLE IF EXISTS pgqueue.alembic_version

-- name: migrate_drop_schema
-- purpose:   leave nothing behind; a schema that holds other people's objects stays, with them
-- called by: storage/frozen
-- returns:   nothing
DO $$
BEGIN
  DROP SCHEMA IF EXISTS pgqueue RESTRICT;
EXCEPTION
  WHEN dependent_objects_still_exist THEN
    RAISE NOTICE 'schema pgqueue: kept, it holds objects that pgqueue did not make';
END $$

-- name: migrate_allow_loss
-- purpose:   tell the first revision's downgrade that the loss of jobs is wanted
-- called by: storage/migrate
-- guard:     for this transaction only
-- returns:   nothing of use
SELECT set_config('pgqueue.downgrade_force', 'on', true)

-- name: migrate_at_stake
-- purpose:   how many jobs and messages a downgrade to base would end
-- called by: storage/migrate
-- returns:   (live bigint, dead bigint, messages bigint): live jobs, dead letters that wait for a decision, messages not delivered
SELECT (SELECT count(*) FROM pgqueue.jobs), (SELECT count(*) FROM pgqueue.dead_letter_jobs d WHERE d.redriven_as IS NULL),
  (SELECT count(*) FROM (SELECT o.id FROM pgqueue.outbox o UNION SELECT d.message_id FROM pgqueue.outbox_dead_letters d) m)
