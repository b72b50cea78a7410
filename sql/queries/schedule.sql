-- Schedules: what the scheduler asks and decides, and what people look at and do.

-- name: scheduler_clock
-- purpose:   the database's clock, from which previews count
-- called by: control/schedules
-- guard:     none
-- locks:     none
-- index:     none
-- returns:   (now timestamptz)
SELECT clock_timestamp()

-- name: scheduler_session
-- purpose:   let the server end a leader's session that has fallen silent, and with it its lock
-- called by: scheduler/leader, once per connection; not through a pooler, whose next client would inherit it
-- guard:     none
-- locks:     none
-- index:     none
-- returns:   nothing of use
SELECT set_config('idle_session_timeout', %(silent_ms)s::text, false)

-- name: scheduler_try_lead
-- purpose:   one leader at a time, as long as its session lives
-- called by: scheduler/leader, at each round of a scheduler that does not lead
-- guard:     none; who believes wrongly to lead does no harm, see tick_schedule
-- locks:     the advisory lock of the scheduler, until the session ends
-- index:     none
-- returns:   (leads boolean)
SELECT pg_try_advisory_lock(hashtextextended('pgqueue scheduler', 0))

-- name: scheduler_lock_holder
-- purpose:   who has that lock
-- called by: scheduler/leader, when fires are overdue all the same
-- guard:     none
-- locks:     none
-- index:     none
-- returns:   (pid integer, application_name text), no row if nobody has it
SELECT l.pid, coalesce(a.application_name, '') FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
  AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
  AND (l.classid::bigint << 32) + l.objid::bigint = hashtextextended('pgqueue scheduler', 0)
LIMIT 1

-- name: schedules_due
-- purpose:   schedules whose next fire has come, or that are not planned yet; by the database's clock
-- called by: scheduler/tick, at each round
-- guard:     none: tick_schedule looks at the row again under its lock
-- locks:     none
-- index:     none; the table is small
-- returns:   the columns that a plan is made from, and the clock
SELECT s.name, s.revision, s.last_fire_at, s.cron, s.every_s, s.tz, s.starts_at, s.ends_at, s.misfire, s.max_catch_up, s.grace_s, s.jitter_s,
  clock_timestamp() AS now
FROM pgqueue.schedules s
WHERE s.paused_at IS NULL AND s.orphaned_at IS NULL AND s.name <> ALL (%(resting)s::text[])
  AND CASE WHEN s.planned_revision = s.revision THEN s.next_fire_at ELSE s.updated_at END
    <= clock_timestamp() - make_interval(secs => %(late_s)s)
ORDER BY s.next_fire_at NULLS FIRST, s.name

-- name: schedules_next
-- purpose:   how long nothing is to be done
-- called by: scheduler/tick, at the end of each round
-- guard:     none
-- locks:     none
-- index:     none; the table is small
-- returns:   seconds until the next fire, negative when overdue; NULL when none is planned
SELECT date_part('epoch', min(CASE WHEN s.planned_revision = s.revision THEN s.next_fire_at ELSE s.updated_at END) - clock_timestamp())
FROM pgqueue.schedules s WHERE s.paused_at IS NULL AND s.orphaned_at IS NULL AND s.name <> ALL (%(resting)s::text[])

-- name: tick_schedules
-- purpose:   write the verdict on the due fires of some schedules and enqueue their jobs, in one transaction
-- called by: scheduler/tick
-- guard:     the revision and the fire that the plan was made from, under the row's lock; the unique key of each run
-- locks:     the schedules' rows, SKIP LOCKED
-- index:     the primary keys
-- returns:   (name, run_key, outcome, job_id) per run, then one row `decided` per schedule; none where the plan is void
SELECT p.name, t.run_key, t.outcome, t.job_id
FROM jsonb_to_recordset(%(plans)s::jsonb) AS p (name text, revision bigint, decided_from timestamptz, decided_until timestamptz,
  next_fire_at timestamptz, runs jsonb)
CROSS JOIN LATERAL pgqueue.tick_schedule(p.name, p.revision, p.decided_from, p.decided_until, p.next_fire_at, p.runs, %(leader)s) t

-- name: schedule_failed
-- purpose:   let people see why a schedule cannot be fired
-- called by: scheduler/tick
-- guard:     the revision that failed
-- locks:     the schedule's row, SKIP LOCKED
-- index:     the primary key
-- returns:   nothing
UPDATE pgqueue.schedules s SET last_error = %(error)s, last_error_at = clock_timestamp()
FROM (SELECT f.name FROM pgqueue.schedules f WHERE f.name = %(name)s AND f.revision = %(revision)s FOR UPDATE SKIP LOCKED) failed
WHERE s.name = failed.name

-- name: put_schedule
-- purpose:   define a schedule, or change its definition
-- called by: scheduler/register, control/schedules
-- guard:     the function's: a pause and what is decided stay
-- locks:     the schedule's row
-- index:     the primary key
-- returns:   (change text): created, changed or same
SELECT pgqueue.put_schedule(%(definition)s::jsonb, %(source)s, %(defined_in)s, %(reason)s, %(actor)s, %(via)s)

-- name: orphan_schedules
-- purpose:   schedules that an application's code defined once and does not any more
-- called by: scheduler/register
-- guard:     only those that code of this application defined
-- locks:     the rows
-- index:     none; the table is small
-- returns:   names
UPDATE pgqueue.schedules s SET orphaned_at = clock_timestamp(), revision = s.revision + 1, updated_at = clock_timestamp()
WHERE s.source = 'code' AND s.defined_in = %(defined_in)s AND s.orphaned_at IS NULL AND s.name <> ALL (%(names)s::text[])
RETURNING s.name

-- name: prune_orphans
-- purpose:   delete the orphans of an application, each with its audit row
-- called by: scheduler/register, if asked for
-- guard:     only orphans of this application
-- locks:     the rows
-- index:     none; the table is small
-- returns:   (name text, deleted boolean)
SELECT o.schedule, o.deleted FROM pgqueue.prune_orphans(%(defined_in)s, %(actor)s) o

-- name: prune_schedule_runs
-- purpose:   drop old rows of the fire log
-- called by: scheduler/tick, by the leader, until it returns less than the limit
-- guard:     age, and that no misfire policy can look back so far: what is not decided yet keeps its keys
-- locks:     the deleted rows, SKIP LOCKED
-- index:     schedule_runs_age_idx
-- returns:   (deleted bigint)
WITH old AS MATERIALIZED (
  SELECT r.schedule, r.run_key FROM pgqueue.schedule_runs r
  WHERE r.ticked_at < (SELECT clock_timestamp()) - make_interval(days => %(keep_days)s)
    AND NOT EXISTS (SELECT FROM pgqueue.schedules s WHERE s.name = r.schedule AND s.last_fire_at <= r.fire_at)
  ORDER BY r.ticked_at
  LIMIT %(batch)s
  FOR UPDATE SKIP LOCKED
), gone AS (
  DELETE FROM pgqueue.schedule_runs r USING old o WHERE r.schedule = o.schedule AND r.run_key = o.run_key RETURNING 1
)
SELECT count(*) FROM gone

-- name: schedule_status
-- purpose:   schedules as people see them
-- called by: control/schedules
-- guard:     none
-- locks:     none
-- index:     the primary key; schedule_runs_ticked_at_idx; the job's indexes
-- returns:   the view's rows, and what else a definition holds
SELECT v.schedule AS name, v.state, v.task, v.queue, v.cron, v.every_s, v.tz, v.misfire, v.overlap, v.source, v.defined_in, v.next_fire_at,
  v.overdue_s, v.last_fire_at, v.last_job_id, v.last_outcome, v.last_started_at, v.last_duration_s, v.last_note, v.last_error, v.paused_at,
  v.paused_by, v.pause_reason, v.orphaned_at, s.starts_at, s.ends_at, s.max_catch_up, s.grace_s, s.jitter_s
FROM pgqueue.schedule_status v JOIN pgqueue.schedules s ON s.name = v.schedule
WHERE %(name)s::text IS NULL OR v.schedule = %(name)s::text
ORDER BY v.schedule

-- name: schedule_runs
-- purpose:   the fire log of a schedule, newest first
-- called by: control/schedules
-- guard:     none
-- locks:     none
-- index:     schedule_runs_ticked_at_idx
-- returns:   runs
SELECT r.schedule, r.run_key, r.fire_at, r.outcome, r.job_id, r.leader, r.ticked_at, r.note FROM pgqueue.schedule_runs r
WHERE r.schedule = %(name)s ORDER BY r.ticked_at DESC LIMIT %(limit)s

-- name: pause_schedule
-- purpose:   stop a schedule from this commit on
-- called by: control/schedules
-- guard:     none; pausing twice keeps the first moment
-- locks:     the schedule's row
-- index:     the primary key
-- returns:   (since timestamptz), NULL if there is no such schedule
SELECT pgqueue.pause_schedule(%(name)s, %(reason)s, %(actor)s, %(via)s)

-- name: resume_schedule
-- purpose:   let a paused schedule fire again, from now on
-- called by: control/schedules
-- guard:     only a paused one
-- locks:     the schedule's row
-- index:     the primary key
-- returns:   (resumed boolean)
SELECT pgqueue.resume_schedule(%(name)s, %(reason)s, %(actor)s, %(via)s)

-- name: run_schedule
-- purpose:   enqueue a schedule's job now
-- called by: control/schedules
-- guard:     none: the next fire is as it was
-- locks:     the new rows
-- index:     the primary key
-- returns:   (job_id bigint), NULL if there is no such schedule
SELECT pgqueue.run_schedule(%(name)s, %(reason)s, %(actor)s, %(via)s)

-- name: delete_schedule
-- purpose:   delete a schedule; its runs and jobs stay
-- called by: control/schedules
-- guard:     none
-- locks:     the schedule's row
-- index:     the primary key
-- returns:   (deleted boolean)
SELECT pgqueue.delete_schedule(%(name)s, %(reason)s, %(actor)s, %(via)s)
