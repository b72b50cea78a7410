-- Time that comes by itself: schedules, and one row for each of their fires. Both small, neither hot.
-- The moments are worked out in Python (cron, zones, clock changes); what is decided is decided here, in one
-- statement per schedule, so that a scheduler that dies or sleeps in the middle leaves nothing half done.
CREATE TABLE pgqueue.schedules (
  name text PRIMARY KEY,
  task text NOT NULL,
  args jsonb NOT NULL DEFAULT '{}',
  queue text,
  priority smallint,
  headers jsonb,
  cron text,
  every_s double precision,
  tz text NOT NULL DEFAULT 'UTC',
  misfire text NOT NULL DEFAULT 'latest',
  max_catch_up integer NOT NULL DEFAULT 100,
  grace_s double precision NOT NULL DEFAULT 60,
  overlap text NOT NULL DEFAULT 'allow',
  jitter_s double precision NOT NULL DEFAULT 0,
  starts_at timestamptz,
  ends_at timestamptz,
  source text NOT NULL DEFAULT 'sql',
  defined_in text,
  orphaned_at timestamptz,
  paused_at timestamptz,
  paused_by text,
  pause_reason text,
  last_fire_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  next_fire_at timestamptz,
  last_error text,
  last_error_at timestamptz,
  revision bigint NOT NULL DEFAULT 1,
  planned_revision bigint NOT NULL DEFAULT 0,
  created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  CONSTRAINT schedules_name_check CHECK (name ~ '^[A-Za-z0-9_][A-Za-z0-9_.-]{0,119}$'),
  CONSTRAINT schedules_timing_check CHECK (num_nonnulls(cron, every_s) = 1 AND length(cron) BETWEEN 1 AND 256 AND every_s BETWEEN 1 AND 31622400),
  CONSTRAINT schedules_args_check CHECK (jsonb_typeof(args) = 'object'),
  CONSTRAINT schedules_headers_check CHECK (jsonb_typeof(headers) = 'object'),
  CONSTRAINT schedules_priority_check CHECK (priority BETWEEN 0 AND 9),
  CONSTRAINT schedules_misfire_check CHECK (misfire IN ('skip', 'latest', 'all') AND max_catch_up BETWEEN 1 AND 10000 AND grace_s BETWEEN 0 AND 31622400),
  CONSTRAINT schedules_overlap_check CHECK (overlap IN ('allow', 'skip')),
  CONSTRAINT schedules_jitter_check CHECK (jitter_s BETWEEN 0 AND 86400),
  CONSTRAINT schedules_moments_check CHECK (isfinite(last_fire_at) AND isfinite(next_fire_at) AND isfinite(starts_at) AND isfinite(ends_at)),
  CONSTRAINT schedules_source_check CHECK (source IN ('code', 'python', 'cli', 'web', 'sql'))
) WITH (fillfactor = 70, autovacuum_vacuum_threshold = 200, autovacuum_vacuum_scale_factor = 0.0);

COMMENT ON TABLE pgqueue.schedules IS 'What is enqueued by itself, and when; a scheduler process decides over the fires';
COMMENT ON COLUMN pgqueue.schedules.name IS 'Schedule name';
COMMENT ON COLUMN pgqueue.schedules.task IS 'Task of the jobs it enqueues';
COMMENT ON COLUMN pgqueue.schedules.args IS 'Their arguments by name';
COMMENT ON COLUMN pgqueue.schedules.queue IS 'Their queue; NULL = the task''s own';
COMMENT ON COLUMN pgqueue.schedules.priority IS 'Their priority; NULL = the task''s own';
COMMENT ON COLUMN pgqueue.schedules.headers IS 'Their headers; each fire adds pgqueue.schedule and pgqueue.fire_at';
COMMENT ON COLUMN pgqueue.schedules.cron IS 'Cron expression of five fields, read in tz; NULL = every_s holds';
COMMENT ON COLUMN pgqueue.schedules.every_s IS 'Period in seconds, counted from starts_at or else 1970-01-01 UTC; NULL = cron holds';
COMMENT ON COLUMN pgqueue.schedules.tz IS 'IANA zone in which cron is read';
COMMENT ON COLUMN pgqueue.schedules.misfire IS 'What happens to fires nobody handled in time: skip (older than grace_s are missed), latest (only the newest is run), all (the newest max_catch_up are run)';
COMMENT ON COLUMN pgqueue.schedules.max_catch_up IS 'Most fires that misfire = all runs after a downtime';
COMMENT ON COLUMN pgqueue.schedules.grace_s IS 'Seconds by which a fire may be late and still run under misfire = skip';
COMMENT ON COLUMN pgqueue.schedules.overlap IS 'allow, or skip: no job while the job of the last run is still live';
COMMENT ON COLUMN pgqueue.schedules.jitter_s IS 'Jobs become due up to so many seconds after the fire; the same for the same fire';
COMMENT ON COLUMN pgqueue.schedules.starts_at IS 'No fire before this moment';
COMMENT ON COLUMN pgqueue.schedules.ends_at IS 'No fire after this moment';
COMMENT ON COLUMN pgqueue.schedules.source IS 'Where its definition last came from: code, python, cli, web, sql';
COMMENT ON COLUMN pgqueue.schedules.defined_in IS 'The application whose code defines it, if source is code';
COMMENT ON COLUMN pgqueue.schedules.orphaned_at IS 'Since when that code no longer names it: it fires no more; NULL = it is not an orphan';
COMMENT ON COLUMN pgqueue.schedules.paused_at IS 'Since when it does not fire; NULL = not paused';
COMMENT ON COLUMN pgqueue.schedules.paused_by IS 'Who paused it';
COMMENT ON COLUMN pgqueue.schedules.pause_reason IS 'Why';
COMMENT ON COLUMN pgqueue.schedules.last_fire_at IS 'All fires up to here are decided (schedule_runs says how); before the first, the moment it began';
COMMENT ON COLUMN pgqueue.schedules.next_fire_at IS 'The next fire as planned; NULL = none is left, or not planned yet';
COMMENT ON COLUMN pgqueue.schedules.last_error IS 'Why the scheduler could not fire it at its last try; NULL = it could';
COMMENT ON COLUMN pgqueue.schedules.last_error_at IS 'When that was';
COMMENT ON COLUMN pgqueue.schedules.revision IS 'Counts changes of the definition; a change by hand adds one, so that the next fire is planned anew';
COMMENT ON COLUMN pgqueue.schedules.planned_revision IS 'The revision that next_fire_at was planned for';
COMMENT ON COLUMN pgqueue.schedules.created_at IS 'When it was first defined';
COMMENT ON COLUMN pgqueue.schedules.updated_at IS 'When its definition or its switches last changed';

-- The unique key is what makes a fire happen once, whoever believes to lead. No foreign key: a schedule that is
-- deleted and defined again must not repeat a fire.
CREATE TABLE pgqueue.schedule_runs (
  schedule text NOT NULL,
  run_key text NOT NULL,
  fire_at timestamptz NOT NULL,
  outcome text NOT NULL,
  job_id bigint,
  leader text NOT NULL,
  ticked_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  note text,
  PRIMARY KEY (schedule, run_key),
  CONSTRAINT schedule_runs_outcome_check CHECK (outcome IN ('enqueued', 'skipped', 'missed', 'manual')),
  CONSTRAINT schedule_runs_job_check CHECK (job_id IS NULL OR outcome IN ('enqueued', 'manual'))
) WITH (fillfactor = 90);
CREATE INDEX schedule_runs_ticked_at_idx ON pgqueue.schedule_runs (schedule, ticked_at);
CREATE INDEX schedule_runs_age_idx ON pgqueue.schedule_runs (ticked_at);

COMMENT ON TABLE pgqueue.schedule_runs IS 'One row per fire of a schedule, missed ones too; at most one job per (schedule, run_key). Dropped by age';
COMMENT ON COLUMN pgqueue.schedule_runs.schedule IS 'schedules.name';
COMMENT ON COLUMN pgqueue.schedule_runs.run_key IS 'Names the fire: its local minute if the hour is fixed, else its instant; manual:, paused: and missed-before: for rows of other kinds';
COMMENT ON COLUMN pgqueue.schedule_runs.fire_at IS 'The moment it was to fire';
COMMENT ON COLUMN pgqueue.schedule_runs.outcome IS 'enqueued, skipped (the last job still lived, or a pause), missed (by the misfire policy), manual (run by a person)';
COMMENT ON COLUMN pgqueue.schedule_runs.job_id IS 'The job it enqueued';
COMMENT ON COLUMN pgqueue.schedule_runs.leader IS 'The scheduler process that decided, or the person';
COMMENT ON COLUMN pgqueue.schedule_runs.ticked_at IS 'When it was decided';
COMMENT ON COLUMN pgqueue.schedule_runs.note IS 'What a clock change did to it, which job stood in its way, how many fires the row stands for';

CREATE FUNCTION pgqueue.enqueue_scheduled(due pgqueue.schedules, fire_at timestamptz, run_at timestamptz, trace jsonb DEFAULT NULL)
RETURNS bigint LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN pgqueue.put_job(due.task, due.args, due.queue, due.priority, run_at => enqueue_scheduled.run_at,
    headers => coalesce(trace, '{}') || coalesce(due.headers, '{}') || jsonb_build_object('pgqueue.schedule', due.name,
      'pgqueue.fire_at', to_char(fire_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')));
END $$;
COMMENT ON FUNCTION pgqueue.enqueue_scheduled IS 'Enqueues the job of one fire and returns its id; trace: headers with the context of the fire''s span';

-- One tick of one schedule: all of it or nothing. revision and decided_from are what the plan was made from; if the
-- schedule has moved on since, the plan is void. Taking the row with SKIP LOCKED keeps a scheduler from waiting
-- behind another one, or behind a person's open transaction.
CREATE FUNCTION pgqueue.tick_schedule(schedule text, revision bigint, decided_from timestamptz, decided_until timestamptz,
                                      next_fire_at timestamptz, runs jsonb, leader text)
RETURNS TABLE (run_key text, outcome text, job_id bigint)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  due pgqueue.schedules;
  run record;
  last_job bigint;
BEGIN
  SELECT * INTO due FROM pgqueue.schedules s
    WHERE s.name = tick_schedule.schedule AND s.revision = tick_schedule.revision AND s.last_fire_at = tick_schedule.decided_from
      AND s.paused_at IS NULL AND s.orphaned_at IS NULL
    FOR UPDATE SKIP LOCKED;
  IF NOT FOUND THEN
    RETURN;
  END IF;
  FOR run IN SELECT r.run_key, r.fire_at, r.run_at, r.outcome, r.note, r.headers
             FROM jsonb_to_recordset(tick_schedule.runs) AS r (run_key text, fire_at timestamptz, run_at timestamptz, outcome text, note text,
               headers jsonb)
             ORDER BY r.fire_at, r.run_key LOOP
    last_job := NULL;
    IF run.outcome = 'enqueued' AND due.overlap = 'skip' THEN
      SELECT j.id INTO last_job
        FROM (SELECT r.job_id FROM pgqueue.schedule_runs r WHERE r.schedule = due.name AND r.job_id IS NOT NULL
              ORDER BY r.ticked_at DESC LIMIT 1) last
        JOIN pgqueue.jobs j ON j.id = last.job_id;
    END IF;
    tick_schedule.run_key := run.run_key;
    tick_schedule.outcome := CASE WHEN last_job IS NULL THEN run.outcome ELSE 'skipped' END;
    tick_schedule.job_id := NULL;
    INSERT INTO pgqueue.schedule_runs AS r (schedule, run_key, fire_at, outcome, leader, note)
      VALUES (due.name, run.run_key, run.fire_at, tick_schedule.outcome, tick_schedule.leader,
        nullif(concat_ws('; ', run.note, 'job ' || last_job || ' of the last run was still live'), ''))
      ON CONFLICT (schedule, run_key) DO NOTHING;
    IF NOT FOUND THEN
      tick_schedule.outcome := 'duplicate';
    ELSIF tick_schedule.outcome = 'enqueued' THEN
      tick_schedule.job_id := pgqueue.enqueue_scheduled(due, run.fire_at, run.run_at, run.headers);
      UPDATE pgqueue.schedule_runs r SET job_id = tick_schedule.job_id WHERE r.schedule = due.name AND r.run_key = run.run_key;
    END IF;
    RETURN NEXT;
  END LOOP;
  UPDATE pgqueue.schedules s SET last_fire_at = tick_schedule.decided_until, next_fire_at = tick_schedule.next_fire_at,
      planned_revision = tick_schedule.revision, last_error = NULL, last_error_at = NULL
    WHERE s.name = due.name;
  run_key := NULL;
  outcome := 'decided';
  job_id := NULL;
  RETURN NEXT;
END $$;
COMMENT ON FUNCTION pgqueue.tick_schedule IS 'Writes a scheduler''s verdict on the fires of one schedule and enqueues their jobs, each at most once. Rows: each run, then decided; none if the schedule has moved on since the plan was made, or is locked';

-- A definition with another timing begins anew from now; what nobody has decided on by then is not fired back.
CREATE FUNCTION pgqueue.put_schedule(definition jsonb, source text DEFAULT 'sql', defined_in text DEFAULT NULL, reason text DEFAULT NULL,
                                     actor text DEFAULT NULL, via text DEFAULT NULL)
RETURNS text LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  -- Columns that are no part of a definition.
  others text[] := ARRAY['orphaned_at', 'paused_at', 'paused_by', 'pause_reason', 'last_fire_at', 'next_fire_at', 'last_error',
    'last_error_at', 'revision', 'planned_revision', 'created_at', 'updated_at'];
  new pgqueue.schedules;
  old pgqueue.schedules;
  anew boolean;
BEGIN
  IF EXISTS (SELECT FROM jsonb_object_keys(definition) AS k (name)
      WHERE k.name NOT IN ('name', 'task', 'args', 'queue', 'priority', 'headers', 'cron', 'every_s', 'tz', 'misfire', 'max_catch_up',
        'grace_s', 'overlap', 'jitter_s', 'starts_at', 'ends_at')) THEN
    RAISE EXCEPTION 'definition: holds something that is no column of a schedule' USING ERRCODE = '22023';
  END IF;
  new := jsonb_populate_record(NULL::pgqueue.schedules, '{"args": {}, "tz": "UTC", "misfire": "latest", "max_catch_up": 100, "grace_s": 60,
    "overlap": "allow", "jitter_s": 0}' || definition);
  new.source := put_schedule.source;
  new.defined_in := put_schedule.defined_in;
  PERFORM pgqueue.check_job(new.task, new.args, new.queue, new.priority, NULL, NULL, NULL, NULL, new.headers, NULL);
  LOOP
    -- A look without a lock: code that starts again with what is stored waits for nobody.
    SELECT * INTO old FROM pgqueue.schedules s WHERE s.name = new.name;
    IF old.orphaned_at IS NULL AND to_jsonb(old) - others = to_jsonb(new) - others THEN
      RETURN 'same';
    END IF;
    INSERT INTO pgqueue.schedules (name, task, args, queue, priority, headers, cron, every_s, tz, misfire, max_catch_up, grace_s, overlap,
        jitter_s, starts_at, ends_at, source, defined_in)
      VALUES (new.name, new.task, new.args, new.queue, new.priority, new.headers, new.cron, new.every_s, new.tz, new.misfire,
        new.max_catch_up, new.grace_s, new.overlap, new.jitter_s, new.starts_at, new.ends_at, new.source, new.defined_in)
      ON CONFLICT (name) DO NOTHING;
    IF FOUND THEN
      PERFORM pgqueue.note_operation(put_schedule.actor, put_schedule.via, 'schedule', 'schedule ' || new.name, put_schedule.reason,
        detail => '{"change": "created"}') WHERE new.source <> 'code';
      RETURN 'created';
    END IF;
    SELECT * INTO old FROM pgqueue.schedules s WHERE s.name = new.name FOR UPDATE;
    EXIT WHEN FOUND;
  END LOOP;
  anew := (old.cron, old.every_s, old.tz, old.starts_at) IS DISTINCT FROM (new.cron, new.every_s, new.tz, new.starts_at)
    OR old.orphaned_at IS NOT NULL OR (old.ends_at IS DISTINCT FROM new.ends_at AND old.ends_at < clock_timestamp());
  IF old.orphaned_at IS NULL AND to_jsonb(old) - others = to_jsonb(new) - others THEN
    RETURN 'same';
  END IF;
  UPDATE pgqueue.schedules s SET task = new.task, args = new.args, queue = new.queue, priority = new.priority, headers = new.headers,
      cron = new.cron, every_s = new.every_s, tz = new.tz, misfire = new.misfire, max_catch_up = new.max_catch_up, grace_s = new.grace_s,
      overlap = new.overlap, jitter_s = new.jitter_s, starts_at = new.starts_at, ends_at = new.ends_at, source = new.source,
      defined_in = new.defined_in, orphaned_at = NULL, revision = s.revision + 1, updated_at = clock_timestamp(),
      last_fire_at = CASE WHEN anew THEN greatest(s.last_fire_at, clock_timestamp()) ELSE s.last_fire_at END
    WHERE s.name = new.name;
  PERFORM pgqueue.note_operation(put_schedule.actor, put_schedule.via, 'schedule', 'schedule ' || new.name, put_schedule.reason,
    detail => jsonb_build_object('change', 'changed', 'was', jsonb_build_object('cron', old.cron, 'every_s', old.every_s, 'tz', old.tz,
      'task', old.task, 'misfire', old.misfire, 'source', old.source))) WHERE new.source <> 'code';
  RETURN 'changed';
END $$;
COMMENT ON FUNCTION pgqueue.put_schedule IS 'Defines a schedule or changes its definition: created, changed or same. A pause and what is already decided stay as they are';

CREATE FUNCTION pgqueue.pause_schedule(schedule text, reason text DEFAULT NULL, actor text DEFAULT NULL, via text DEFAULT NULL)
RETURNS timestamptz LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  since timestamptz;
BEGIN
  -- Waits for a tick that holds the row: what it enqueues is enqueued before the pause.
  UPDATE pgqueue.schedules s SET paused_at = coalesce(s.paused_at, clock_timestamp()), paused_by = coalesce(pause_schedule.actor, session_user),
      pause_reason = pause_schedule.reason, revision = s.revision + 1, updated_at = clock_timestamp()
    WHERE s.name = pause_schedule.schedule
    RETURNING s.paused_at INTO since;
  IF FOUND THEN
    PERFORM pgqueue.note_operation(pause_schedule.actor, pause_schedule.via, 'pause', 'schedule ' || pause_schedule.schedule, pause_schedule.reason);
  END IF;
  RETURN since;
END $$;
COMMENT ON FUNCTION pgqueue.pause_schedule IS 'Stops a schedule: from this commit on it enqueues nothing; returns since when, NULL if there is no such schedule';

CREATE FUNCTION pgqueue.resume_schedule(schedule text, reason text DEFAULT NULL, actor text DEFAULT NULL, via text DEFAULT NULL)
RETURNS boolean LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  old pgqueue.schedules;
  moment timestamptz;
BEGIN
  SELECT * INTO old FROM pgqueue.schedules s WHERE s.name = resume_schedule.schedule AND s.paused_at IS NOT NULL FOR UPDATE;
  IF NOT FOUND THEN
    RETURN false;
  END IF;
  moment := clock_timestamp();
  UPDATE pgqueue.schedules s SET paused_at = NULL, paused_by = NULL, pause_reason = NULL, last_fire_at = greatest(s.last_fire_at, moment),
      revision = s.revision + 1, updated_at = moment
    WHERE s.name = old.name;
  INSERT INTO pgqueue.schedule_runs (schedule, run_key, fire_at, outcome, leader, note)
    VALUES (old.name, 'paused:' || to_char(old.paused_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), old.paused_at, 'skipped',
      coalesce(resume_schedule.actor, session_user), 'paused until ' || to_char(moment AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')
        || ': fires in between did not run')
    ON CONFLICT (schedule, run_key) DO NOTHING;
  PERFORM pgqueue.note_operation(resume_schedule.actor, resume_schedule.via, 'resume', 'schedule ' || old.name, resume_schedule.reason);
  RETURN true;
END $$;
COMMENT ON FUNCTION pgqueue.resume_schedule IS 'Lets a paused schedule fire again from now on; what fell into the pause is not made up for. False if it was not paused';

CREATE FUNCTION pgqueue.run_schedule(schedule text, reason text DEFAULT NULL, actor text DEFAULT NULL, via text DEFAULT NULL)
RETURNS bigint LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  wanted pgqueue.schedules;
  moment timestamptz := clock_timestamp();
  job_id bigint;
BEGIN
  SELECT * INTO wanted FROM pgqueue.schedules s WHERE s.name = run_schedule.schedule;
  IF NOT FOUND THEN
    RETURN NULL;
  END IF;
  job_id := pgqueue.enqueue_scheduled(wanted, moment, moment);
  INSERT INTO pgqueue.schedule_runs (schedule, run_key, fire_at, outcome, job_id, leader, note)
    VALUES (wanted.name, 'manual:' || job_id, moment, 'manual', job_id, coalesce(run_schedule.actor, session_user), run_schedule.reason);
  PERFORM pgqueue.note_operation(run_schedule.actor, run_schedule.via, 'run_now', 'schedule ' || wanted.name, run_schedule.reason,
    detail => jsonb_build_object('job_id', job_id));
  RETURN job_id;
END $$;
COMMENT ON FUNCTION pgqueue.run_schedule IS 'Enqueues a schedule''s job now and returns its id; the next fire is as it was. NULL if there is no such schedule';

CREATE FUNCTION pgqueue.delete_schedule(schedule text, reason text DEFAULT NULL, actor text DEFAULT NULL, via text DEFAULT NULL)
RETURNS boolean LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  old pgqueue.schedules;
BEGIN
  DELETE FROM pgqueue.schedules s WHERE s.name = delete_schedule.schedule RETURNING * INTO old;
  IF NOT FOUND THEN
    RETURN false;
  END IF;
  PERFORM pgqueue.note_operation(delete_schedule.actor, delete_schedule.via, 'delete', 'schedule ' || old.name, delete_schedule.reason,
    detail => jsonb_build_object('task', old.task, 'cron', old.cron, 'every_s', old.every_s, 'tz', old.tz, 'source', old.source));
  RETURN true;
END $$;
COMMENT ON FUNCTION pgqueue.delete_schedule IS 'Deletes a schedule; its runs and jobs stay. False if there is no such schedule';

-- For schedulers, which may not delete a schedule otherwise.
CREATE FUNCTION pgqueue.prune_orphans(defined_in text, actor text)
RETURNS TABLE (schedule text, deleted boolean) LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  SELECT o.name, pgqueue.delete_schedule(o.name, 'no longer defined in code', prune_orphans.actor, 'code')
  FROM (SELECT s.name FROM pgqueue.schedules s WHERE s.orphaned_at IS NOT NULL AND s.defined_in = prune_orphans.defined_in
        ORDER BY s.name) o;
$$;
COMMENT ON FUNCTION pgqueue.prune_orphans IS 'Deletes the orphans of an application, each with its audit row';

CREATE VIEW pgqueue.schedule_status AS
SELECT s.name AS schedule,
  CASE WHEN s.paused_at IS NOT NULL THEN 'paused' WHEN s.orphaned_at IS NOT NULL THEN 'orphaned'
    WHEN s.planned_revision = s.revision AND s.next_fire_at IS NULL THEN 'ended' ELSE 'enabled' END AS state,
  s.task, coalesce(s.queue, t.queue, 'default') AS queue, s.cron, s.every_s, s.tz, s.misfire, s.overlap, s.source, s.defined_in,
  CASE WHEN s.paused_at IS NULL AND s.orphaned_at IS NULL THEN s.next_fire_at END AS next_fire_at,
  CASE WHEN s.paused_at IS NULL AND s.orphaned_at IS NULL
    THEN greatest(0, extract(epoch FROM clock_timestamp() - s.next_fire_at))::double precision ELSE 0 END AS overdue_s,
  last.fire_at AS last_fire_at, last.job_id AS last_job_id,
  CASE WHEN last.job_id IS NULL THEN last.outcome ELSE coalesce(job.outcome, 'forgotten') END AS last_outcome,
  job.started_at AS last_started_at, job.duration_s AS last_duration_s, last.note AS last_note,
  s.last_error, s.last_error_at, s.paused_at, s.paused_by, s.pause_reason, s.orphaned_at
FROM pgqueue.schedules s
LEFT JOIN pgqueue.tasks t ON t.name = s.task
LEFT JOIN LATERAL (SELECT r.fire_at, r.outcome, r.job_id, r.ticked_at, r.note FROM pgqueue.schedule_runs r
  WHERE r.schedule = s.name AND NOT starts_with(r.run_key, 'paused:') ORDER BY r.ticked_at DESC LIMIT 1) last ON true
LEFT JOIN LATERAL (
  SELECT CASE j.state WHEN 'running' THEN 'running' ELSE 'waiting' END AS outcome, j.started_at,
    CASE j.state WHEN 'running' THEN extract(epoch FROM clock_timestamp() - j.started_at)::double precision END AS duration_s
  FROM pgqueue.jobs j WHERE j.id = last.job_id
  UNION ALL
  SELECT h.state AS outcome, h.started_at, h.run_s::double precision AS duration_s FROM pgqueue.job_history h
  WHERE h.job_id = last.job_id AND h.finished_at >= last.ticked_at - interval '1 day'
  UNION ALL
  SELECT 'dead' AS outcome, NULL AS started_at, NULL AS duration_s FROM pgqueue.dead_letter_jobs d WHERE d.job_id = last.job_id
  LIMIT 1) job ON true;
COMMENT ON VIEW pgqueue.schedule_status IS 'One row per schedule: its next fire and how late that is, its last run and what became of the job';
