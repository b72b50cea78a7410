-- The schema itself, and the one sequence that numbers jobs.
-- Public gets nothing; 90_privileges.sql says who gets what.
COMMENT ON SCHEMA pgqueue IS 'pgqueue: jobs, dead letters, dedup keys and their audit; made by `pgqueue db upgrade`';
REVOKE ALL ON SCHEMA pgqueue FROM PUBLIC;

-- One sequence gives both job ids and places in a lane: a job that is ready at once stands in its
-- lane by its own id, and a promoted, released or rescued one takes a later number.
CREATE SEQUENCE pgqueue.job_seq AS bigint CACHE 1;
COMMENT ON SEQUENCE pgqueue.job_seq IS 'job ids and lane places (jobs.ready_seq); gaps are normal';

-- The hot table: only live jobs. No foreign key, no trigger, no GIN, no counter row.
-- A claim changes no indexed column and no column of an index predicate, and the fillfactor leaves its new
-- row version room on the same page: claims are heap-only updates and write no index entry. So no predicate
-- here may name `state`; ready_seq and hold_reason say the same (see the checks).
CREATE TABLE pgqueue.jobs (
  id bigint PRIMARY KEY,
  created_at timestamptz NOT NULL,
  run_at timestamptz NOT NULL,
  ready_seq bigint,
  started_at timestamptz,
  claim_id uuid,
  worker_id uuid,
  priority smallint NOT NULL,
  max_attempts smallint NOT NULL,
  attempt smallint NOT NULL DEFAULT 0,
  state text NOT NULL,
  queue text NOT NULL,
  task text NOT NULL,
  args jsonb NOT NULL,
  headers jsonb,
  tags text[],
  idempotency_key text,
  concurrency_key text,
  batch_key text,
  hold_reason text,
  timeout_s double precision,
  expires_at timestamptz,
  retry jsonb,
  errors jsonb,
  progress jsonb,
  parent_id bigint,
  redrive_of bigint,
  cancel_requested_at timestamptz,
  cancel_reason text,
  CONSTRAINT jobs_state_check CHECK (state IN ('ready', 'running', 'scheduled', 'held')),
  CONSTRAINT jobs_claim_check CHECK ((state = 'running') = (claim_id IS NOT NULL) AND (claim_id IS NULL) = (worker_id IS NULL)),
  CONSTRAINT jobs_lane_check CHECK ((state IN ('ready', 'running')) = (ready_seq IS NOT NULL)),
  CONSTRAINT jobs_hold_check CHECK ((state = 'held') = (hold_reason IS NOT NULL)),
  CONSTRAINT jobs_priority_check CHECK (priority BETWEEN 0 AND 9),
  CONSTRAINT jobs_attempts_check CHECK (attempt >= 0 AND max_attempts BETWEEN 1 AND 1001),
  CONSTRAINT jobs_run_at_check CHECK (isfinite(run_at) AND run_at < '9999-01-01 00:00:00+00'),
  CONSTRAINT jobs_names_check CHECK (length(queue) BETWEEN 1 AND 63 AND length(task) BETWEEN 1 AND 200),
  CONSTRAINT jobs_args_check CHECK (pg_column_size(args) <= 8388608)
) WITH (
  fillfactor = 45,
  autovacuum_vacuum_scale_factor = 0.02,
  autovacuum_vacuum_threshold = 5000,
  autovacuum_vacuum_insert_scale_factor = 0.2,
  autovacuum_analyze_scale_factor = 0.05,
  autovacuum_analyze_threshold = 5000,
  autovacuum_vacuum_cost_delay = 1
);

-- The lanes. A claim reads (queue, priority) upwards from the last place it has seen; running jobs keep their
-- place behind it.
CREATE INDEX jobs_lane_idx ON pgqueue.jobs (queue, priority, ready_seq) WHERE ready_seq IS NOT NULL;
CREATE INDEX jobs_scheduled_idx ON pgqueue.jobs (run_at, id) WHERE ready_seq IS NULL AND hold_reason IS NULL;
-- Windows: the jobs of one task and key that are collected until one moment. Empty for all other jobs, and claims change none of its
-- columns. An expression, so that statements on windows, which say it the same way, can use no other index: by jobs_held_idx the
-- planner would read everything that is collected.
CREATE INDEX jobs_window_idx ON pgqueue.jobs (run_at, queue, task, batch_key, coalesce(hold_reason, '')) WHERE batch_key IS NOT NULL;
CREATE INDEX jobs_held_idx ON pgqueue.jobs (hold_reason, queue, id) WHERE hold_reason IS NOT NULL;

-- Which jobs a claim took: one row per batch, where an index on running jobs would cost one entry per job.
CREATE TABLE pgqueue.claims (
  claim_id uuid PRIMARY KEY,
  worker_id uuid NOT NULL,
  claimed_at timestamptz NOT NULL,
  job_ids bigint[] NOT NULL
) WITH (autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0.0);
CREATE INDEX claims_worker_id_idx ON pgqueue.claims (worker_id);
COMMENT ON TABLE pgqueue.claims IS 'Open claims: what a rescue takes back when the worker is gone. A row goes when its last job is settled';
COMMENT ON COLUMN pgqueue.claims.claim_id IS 'The fence, as in jobs.claim_id';
COMMENT ON COLUMN pgqueue.claims.worker_id IS 'The worker that made it (workers.id)';
COMMENT ON COLUMN pgqueue.claims.claimed_at IS 'When';
COMMENT ON COLUMN pgqueue.claims.job_ids IS 'The jobs taken; one whose jobs.claim_id differs by now is no longer part of it';

COMMENT ON TABLE pgqueue.jobs IS 'Live jobs only: waiting, held or running. An ended job moves to job_history or dead_letter_jobs';
COMMENT ON COLUMN pgqueue.jobs.id IS 'Job id; the same in job_history, dead_letter_jobs and job_transitions';
COMMENT ON COLUMN pgqueue.jobs.created_at IS 'When it was enqueued, by the database''s clock (not the transaction''s start)';
COMMENT ON COLUMN pgqueue.jobs.run_at IS 'Not before this moment; waiting time counts from here. A retry, snooze, release or rescue sets it anew';
COMMENT ON COLUMN pgqueue.jobs.ready_seq IS 'Place in its lane (queue, priority); set when it becomes ready, only ever at the tail';
COMMENT ON COLUMN pgqueue.jobs.started_at IS 'When the newest claim took it';
COMMENT ON COLUMN pgqueue.jobs.claim_id IS 'The fence: only the claim named here may settle the job';
COMMENT ON COLUMN pgqueue.jobs.worker_id IS 'The worker process that holds the claim (workers.id)';
COMMENT ON COLUMN pgqueue.jobs.priority IS '0 to 9, lower first';
COMMENT ON COLUMN pgqueue.jobs.max_attempts IS 'Starts allowed before the job is dead-lettered';
COMMENT ON COLUMN pgqueue.jobs.attempt IS 'Starts so far; counted at claim, so a crash counts too';
COMMENT ON COLUMN pgqueue.jobs.state IS 'ready (in its lane), running (claimed), scheduled (waits for run_at), held (waits for hold_reason to be lifted)';
COMMENT ON COLUMN pgqueue.jobs.queue IS 'Queue name';
COMMENT ON COLUMN pgqueue.jobs.task IS 'Registered name of the function that runs it';
COMMENT ON COLUMN pgqueue.jobs.args IS 'Arguments by name, a JSON object';
COMMENT ON COLUMN pgqueue.jobs.headers IS 'String map carried along: trace context, correlation id';
COMMENT ON COLUMN pgqueue.jobs.tags IS 'Free labels for filters';
COMMENT ON COLUMN pgqueue.jobs.idempotency_key IS 'The key it was enqueued under (dedup_keys), if any';
COMMENT ON COLUMN pgqueue.jobs.concurrency_key IS 'Jobs of one key share a limit';
COMMENT ON COLUMN pgqueue.jobs.batch_key IS 'Jobs of one task and key that are collected until one moment (run_at) go to one call; NULL = collected with nobody';
COMMENT ON COLUMN pgqueue.jobs.hold_reason IS 'Why a held job waits: window (for run_at, then for the call it goes along with), unknown_task, suspect (its last process died), operator, …';
COMMENT ON COLUMN pgqueue.jobs.timeout_s IS 'Seconds one attempt may take; NULL = the task''s own';
COMMENT ON COLUMN pgqueue.jobs.expires_at IS 'Not worth starting after this moment: dead-lettered as expired';
COMMENT ON COLUMN pgqueue.jobs.retry IS 'Retry policy given for this job alone; NULL = the task''s';
COMMENT ON COLUMN pgqueue.jobs.errors IS 'Failed attempts so far: attempt, at, type, message, worker';
COMMENT ON COLUMN pgqueue.jobs.progress IS 'How far the running handler says it is: done, total, note, at; written beside its transaction';
COMMENT ON COLUMN pgqueue.jobs.parent_id IS 'The job whose handler enqueued this one';
COMMENT ON COLUMN pgqueue.jobs.redrive_of IS 'The dead letter this job repeats';
COMMENT ON COLUMN pgqueue.jobs.cancel_requested_at IS 'When cancelling was asked for while it ran';
COMMENT ON COLUMN pgqueue.jobs.cancel_reason IS 'Why cancelling was asked for';

-- Where jobs end: history (succeeded, cancelled) and dead letters; and the audit of every step but the plain one.
CREATE TABLE pgqueue.job_history (
  job_id bigint NOT NULL,
  enqueued_at timestamptz NOT NULL,
  due_at timestamptz NOT NULL,
  started_at timestamptz,
  finished_at timestamptz NOT NULL,
  claim_id uuid,
  worker_id uuid,
  ready_seq bigint,
  wait_s real,
  run_s real,
  priority smallint NOT NULL,
  attempts smallint NOT NULL,
  max_attempts smallint NOT NULL,
  state text NOT NULL,
  queue text NOT NULL,
  task text NOT NULL,
  args jsonb NOT NULL,
  result jsonb,
  headers jsonb,
  tags text[],
  idempotency_key text,
  errors jsonb,
  parent_id bigint,
  redrive_of bigint,
  CONSTRAINT job_history_state_check CHECK (state IN ('succeeded', 'cancelled'))
) PARTITION BY RANGE (finished_at);
CREATE INDEX job_history_job_id_idx ON pgqueue.job_history (job_id);
-- A day lies on the disk in the order of its times: one entry per 64 blocks finds a minute, and inserts hardly feel it.
CREATE INDEX job_history_finished_at_idx ON pgqueue.job_history USING brin (finished_at) WITH (pages_per_range = 64);
CREATE TABLE pgqueue.job_history_default PARTITION OF pgqueue.job_history DEFAULT;

COMMENT ON TABLE pgqueue.job_history IS 'One row per succeeded or cancelled job; a partition per day of finished_at, dropped by retention';
COMMENT ON COLUMN pgqueue.job_history.job_id IS 'jobs.id';
COMMENT ON COLUMN pgqueue.job_history.enqueued_at IS 'jobs.created_at';
COMMENT ON COLUMN pgqueue.job_history.due_at IS 'When the last attempt could have started; waiting time counts from here';
COMMENT ON COLUMN pgqueue.job_history.started_at IS 'When the last claim took it; NULL if it was cancelled before any';
COMMENT ON COLUMN pgqueue.job_history.finished_at IS 'When it was settled';
COMMENT ON COLUMN pgqueue.job_history.claim_id IS 'The claim that settled it: what a lost COMMIT answer is read back by';
COMMENT ON COLUMN pgqueue.job_history.worker_id IS 'The worker that settled it';
COMMENT ON COLUMN pgqueue.job_history.ready_seq IS 'Its last place in the lane';
COMMENT ON COLUMN pgqueue.job_history.wait_s IS 'Seconds from due_at to the handler''s start';
COMMENT ON COLUMN pgqueue.job_history.run_s IS 'Seconds from the handler''s start to its return';
COMMENT ON COLUMN pgqueue.job_history.priority IS '0 to 9, lower first';
COMMENT ON COLUMN pgqueue.job_history.attempts IS 'Starts it took';
COMMENT ON COLUMN pgqueue.job_history.max_attempts IS 'Starts it was allowed';
COMMENT ON COLUMN pgqueue.job_history.state IS 'succeeded or cancelled';
COMMENT ON COLUMN pgqueue.job_history.queue IS 'Queue name';
COMMENT ON COLUMN pgqueue.job_history.task IS 'Task name';
COMMENT ON COLUMN pgqueue.job_history.args IS 'Arguments by name';
COMMENT ON COLUMN pgqueue.job_history.result IS 'What the handler returned, if it was JSON';
COMMENT ON COLUMN pgqueue.job_history.headers IS 'String map carried along';
COMMENT ON COLUMN pgqueue.job_history.tags IS 'Free labels';
COMMENT ON COLUMN pgqueue.job_history.idempotency_key IS 'The key it was enqueued under';
COMMENT ON COLUMN pgqueue.job_history.errors IS 'Failed attempts before the end';
COMMENT ON COLUMN pgqueue.job_history.parent_id IS 'The job whose handler enqueued this one';
COMMENT ON COLUMN pgqueue.job_history.redrive_of IS 'The dead letter this job repeated';

CREATE TABLE pgqueue.dead_letter_jobs (
  job_id bigint PRIMARY KEY,
  queue text NOT NULL,
  task text NOT NULL,
  args jsonb NOT NULL,
  headers jsonb,
  tags text[],
  priority smallint NOT NULL,
  reason text NOT NULL,
  error_type text,
  error_message text,
  error_fingerprint text,
  traceback text,
  attempts smallint NOT NULL,
  max_attempts smallint NOT NULL,
  errors jsonb,
  idempotency_key text,
  retry jsonb,
  timeout_s double precision,
  claim_id uuid,
  worker_id uuid,
  first_failed_at timestamptz NOT NULL,
  failed_at timestamptz NOT NULL,
  created_at timestamptz NOT NULL,
  job_created_at timestamptz NOT NULL,
  parent_id bigint,
  redrive_of bigint,
  redriven_as bigint,
  redriven_at timestamptz
);
CREATE INDEX dead_letter_jobs_created_at_idx ON pgqueue.dead_letter_jobs (created_at, job_id);
CREATE INDEX dead_letter_jobs_fingerprint_idx ON pgqueue.dead_letter_jobs (error_fingerprint, created_at);
CREATE INDEX dead_letter_jobs_queue_idx ON pgqueue.dead_letter_jobs (queue, task, created_at) WHERE redriven_as IS NULL;
CREATE INDEX dead_letter_jobs_redriven_at_idx ON pgqueue.dead_letter_jobs (redriven_at) WHERE redriven_at IS NOT NULL;

COMMENT ON TABLE pgqueue.dead_letter_jobs IS 'Jobs that ended badly, with why; kept until redriven or discarded';
COMMENT ON COLUMN pgqueue.dead_letter_jobs.job_id IS 'jobs.id of the job that died';
COMMENT ON COLUMN pgqueue.dead_letter_jobs.queue IS 'Queue name';
COMMENT ON COLUMN pgqueue.dead_letter_jobs.task IS 'Task name';
COMMENT ON COLUMN pgqueue.dead_letter_jobs.args IS 'Arguments by name';
COMMENT ON COLUMN pgqueue.dead_letter_jobs.headers IS 'String map carried along';
COMMENT ON COLUMN pgqueue.dead_letter_jobs.tags IS 'Free labels';
COMMENT ON COLUMN pgqueue.dead_letter_jobs.priority IS '0 to 9, lower first';
COMMENT ON COLUMN pgqueue.dead_letter_jobs.reason IS 'max_retries, gave_up, rejected, bad_args, worker_crash, expired';
COMMENT ON COLUMN pgqueue.dead_letter_jobs.error_type IS 'Class of the last error';
COMMENT ON COLUMN pgqueue.dead_letter_jobs.error_message IS 'Its text, cleaned, cut and redacted';
COMMENT ON COLUMN pgqueue.dead_letter_jobs.error_fingerprint IS 'The same for the same fault at other ids, numbers and line numbers';
COMMENT ON COLUMN pgqueue.dead_letter_jobs.traceback IS 'Where it was raised, without values';
COMMENT ON COLUMN pgqueue.dead_letter_jobs.attempts IS 'Starts it had';
COMMENT ON COLUMN pgqueue.dead_letter_jobs.max_attempts IS 'Starts it was allowed';
COMMENT ON COLUMN pgqueue.dead_letter_jobs.errors IS 'Every failed attempt: attempt, at, type, message, worker';
COMMENT ON COLUMN pgqueue.dead_letter_jobs.idempotency_key IS 'The key it was enqueued under';
COMMENT ON COLUMN pgqueue.dead_letter_jobs.retry IS 'Retry policy given for this job alone';
COMMENT ON COLUMN pgqueue.dead_letter_jobs.timeout_s IS 'Timeout given for this job alone, seconds';
COMMENT ON COLUMN pgqueue.dead_letter_jobs.claim_id IS 'The claim that settled it; NULL if none was held';
COMMENT ON COLUMN pgqueue.dead_letter_jobs.worker_id IS 'The worker of its last attempt';
COMMENT ON COLUMN pgqueue.dead_letter_jobs.first_failed_at IS 'When its first attempt failed';
COMMENT ON COLUMN pgqueue.dead_letter_jobs.failed_at IS 'When its last attempt failed';
COMMENT ON COLUMN pgqueue.dead_letter_jobs.created_at IS 'When it was dead-lettered';
COMMENT ON COLUMN pgqueue.dead_letter_jobs.job_created_at IS 'When the job was enqueued';
COMMENT ON COLUMN pgqueue.dead_letter_jobs.parent_id IS 'The job whose handler enqueued this one';
COMMENT ON COLUMN pgqueue.dead_letter_jobs.redrive_of IS 'The earlier dead letter this job repeated';
COMMENT ON COLUMN pgqueue.dead_letter_jobs.redriven_as IS 'The job that repeats this one; NULL = still waits for a decision';
COMMENT ON COLUMN pgqueue.dead_letter_jobs.redriven_at IS 'When it was redriven';

-- The CHECK is the table of pgqueue.core.states, row by row (tested).
CREATE TABLE pgqueue.job_transitions (
  id bigint GENERATED ALWAYS AS IDENTITY,
  job_id bigint NOT NULL,
  at timestamptz NOT NULL DEFAULT clock_timestamp(),
  from_state text,
  to_state text NOT NULL,
  reason text NOT NULL,
  actor text NOT NULL,
  queue text NOT NULL,
  task text NOT NULL,
  attempt smallint,
  claim_id uuid,
  worker_id uuid,
  wait_s real,
  run_s real,
  error_type text,
  error_fingerprint text,
  next_run_at timestamptz,
  note text,
  CONSTRAINT job_transitions_move_check CHECK (CASE coalesce(from_state, 'new') || ' ' || to_state
    WHEN 'new ready' THEN reason = 'enqueued'
    WHEN 'new scheduled' THEN reason = 'enqueued'
    WHEN 'new held' THEN reason = 'enqueued'
    WHEN 'scheduled ready' THEN reason IN ('promoted', 'rescheduled', 'run_now')
    WHEN 'scheduled scheduled' THEN reason = 'rescheduled'
    WHEN 'scheduled held' THEN reason IN ('concurrency_limit', 'fuse', 'operator', 'rate_limit', 'suspect', 'unknown_task')
    WHEN 'scheduled cancelled' THEN reason IN ('cancel_requested', 'cancelled')
    WHEN 'scheduled dead' THEN reason IN ('expired', 'worker_crash')
    WHEN 'ready running' THEN reason = 'claimed'
    WHEN 'ready held' THEN reason IN ('concurrency_limit', 'fuse', 'operator', 'rate_limit', 'suspect', 'unknown_task')
    WHEN 'ready scheduled' THEN reason = 'rescheduled'
    WHEN 'ready cancelled' THEN reason IN ('cancel_requested', 'cancelled')
    WHEN 'ready dead' THEN reason IN ('expired', 'worker_crash')
    WHEN 'held ready' THEN reason IN ('freed', 'promoted', 'rescheduled', 'run_now')
    WHEN 'held running' THEN reason = 'claimed'
    WHEN 'held scheduled' THEN reason = 'rescheduled'
    WHEN 'held cancelled' THEN reason IN ('cancel_requested', 'cancelled')
    WHEN 'held dead' THEN reason IN ('expired', 'worker_crash')
    WHEN 'running succeeded' THEN reason = 'succeeded'
    WHEN 'running scheduled' THEN reason IN ('retry', 'snoozed')
    WHEN 'running ready' THEN reason IN ('released', 'rescued')
    WHEN 'running held' THEN reason IN ('concurrency_limit', 'fuse', 'operator', 'rate_limit', 'released', 'rescued', 'suspect', 'unknown_task')
    WHEN 'running cancelled' THEN reason IN ('cancel_requested', 'cancelled')
    WHEN 'running dead' THEN reason IN ('bad_args', 'expired', 'gave_up', 'max_retries', 'rejected', 'timeout', 'worker_crash')
    WHEN 'dead cancelled' THEN reason = 'discarded'
    WHEN 'dead ready' THEN reason = 'redriven'
    WHEN 'dead scheduled' THEN reason = 'redriven'
    ELSE false END)
) PARTITION BY RANGE (at);
CREATE INDEX job_transitions_job_id_idx ON pgqueue.job_transitions (job_id, at);
CREATE INDEX job_transitions_at_idx ON pgqueue.job_transitions USING brin (at) WITH (pages_per_range = 64);
CREATE TABLE pgqueue.job_transitions_default PARTITION OF pgqueue.job_transitions DEFAULT;

COMMENT ON TABLE pgqueue.job_transitions IS 'Audit of every state change but the plain path (enqueued, promoted, claimed, succeeded), which the job''s own row tells; of that, too, for tasks with audit = full; a partition per day';
COMMENT ON COLUMN pgqueue.job_transitions.id IS 'Row id';
COMMENT ON COLUMN pgqueue.job_transitions.job_id IS 'jobs.id';
COMMENT ON COLUMN pgqueue.job_transitions.at IS 'When';
COMMENT ON COLUMN pgqueue.job_transitions.from_state IS 'State before; NULL = there was no job';
COMMENT ON COLUMN pgqueue.job_transitions.to_state IS 'State after: one of jobs.state, succeeded, cancelled, dead';
COMMENT ON COLUMN pgqueue.job_transitions.reason IS 'Why, as one word of a closed list (docs/reference/states.md)';
COMMENT ON COLUMN pgqueue.job_transitions.actor IS 'Who: worker:<id>, or the person or role that acted';
COMMENT ON COLUMN pgqueue.job_transitions.queue IS 'Queue name';
COMMENT ON COLUMN pgqueue.job_transitions.task IS 'Task name';
COMMENT ON COLUMN pgqueue.job_transitions.attempt IS 'The attempt that ended here, if one did';
COMMENT ON COLUMN pgqueue.job_transitions.claim_id IS 'The claim that ended here; a claim that begins leaves it empty';
COMMENT ON COLUMN pgqueue.job_transitions.worker_id IS 'The worker that held it';
COMMENT ON COLUMN pgqueue.job_transitions.wait_s IS 'Seconds the attempt had waited, where the row ends one';
COMMENT ON COLUMN pgqueue.job_transitions.run_s IS 'Seconds the attempt had run, where the row ends one';
COMMENT ON COLUMN pgqueue.job_transitions.error_type IS 'Class of the error that ended the attempt';
COMMENT ON COLUMN pgqueue.job_transitions.error_fingerprint IS 'Fingerprint of that error';
COMMENT ON COLUMN pgqueue.job_transitions.next_run_at IS 'When it may start again';
COMMENT ON COLUMN pgqueue.job_transitions.note IS 'A person''s words';

-- Under audit = full: what the plain path leaves out. A claim that begins leaves claim_id empty, since a row with it says
-- that the claim has ended.
CREATE FUNCTION pgqueue.note_moves(moves jsonb) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  noted bigint;
BEGIN
  INSERT INTO pgqueue.job_transitions (job_id, from_state, to_state, reason, actor, queue, task, attempt, claim_id, worker_id)
    SELECT m.job_id, m.from_state, m.to_state, m.reason, coalesce('worker:' || m.worker_id, 'upkeep'), m.queue, m.task, m.attempt, m.claim_id, m.worker_id
    FROM jsonb_to_recordset(note_moves.moves) AS m (job_id bigint, from_state text, to_state text, reason text, queue text, task text,
      attempt smallint, claim_id uuid, worker_id uuid);
  GET DIAGNOSTICS noted = ROW_COUNT;
  RETURN noted;
END $$;
COMMENT ON FUNCTION pgqueue.note_moves IS 'Writes the promotions, claims and successes of jobs whose tasks are audited in full; returns how many';

-- Idempotency keys: at most one job per (task, key) while the key is held. They outlive their jobs.
-- How long a key is held, its scope: a time; for ever; while its job is live; while its job waits for its first
-- start. The last two end with what the job's own row says, so that settling such a job never touches its key; a key
-- that outlives its job keeps what that returned.
CREATE TABLE pgqueue.dedup_keys (
  task text NOT NULL,
  key text NOT NULL,
  job_id bigint NOT NULL,
  created_at timestamptz NOT NULL,
  expires_at timestamptz NOT NULL,
  scope text NOT NULL DEFAULT 'time',
  result jsonb,
  PRIMARY KEY (task, key),
  CONSTRAINT dedup_keys_scope_check CHECK (scope IN ('time', 'forever', 'live', 'waiting'))
);
CREATE INDEX dedup_keys_expires_at_idx ON pgqueue.dedup_keys (expires_at);

COMMENT ON TABLE pgqueue.dedup_keys IS 'Who was first under an idempotency key';
COMMENT ON COLUMN pgqueue.dedup_keys.task IS 'Task name; keys of different tasks never meet. once:NAME: a key that handlers of the task took with ctx.once';
COMMENT ON COLUMN pgqueue.dedup_keys.key IS 'The caller''s key';
COMMENT ON COLUMN pgqueue.dedup_keys.job_id IS 'The first job, whose id every later caller gets; its redrive, once there is one';
COMMENT ON COLUMN pgqueue.dedup_keys.created_at IS 'When it was first used';
COMMENT ON COLUMN pgqueue.dedup_keys.expires_at IS 'Scope time: from here on the key is free again. forever: ''infinity''. live, waiting: when upkeep looks at its job next';
COMMENT ON COLUMN pgqueue.dedup_keys.scope IS 'How long the key is held: time, forever, live (while its job is live), waiting (while its job waits for its first start)';
COMMENT ON COLUMN pgqueue.dedup_keys.result IS 'Scopes time and forever: what the job returned, stored by its settlement; NULL = nothing, or it has not succeeded. once:NAME: what the handler kept';

-- Called in the transaction that settles the jobs, after their claims were found to be the newest. An expired key is left
-- alone: only such a one may be locked by a producer that takes it anew, so nothing can wait in a ring.
CREATE FUNCTION pgqueue.keep_results(kept jsonb) RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  one record;
  stored integer := 0;
BEGIN
  -- One after the other, by the primary key: as a join it may be planned as a scan of all keys.
  FOR one IN SELECT a.task, a.key, a.job_id, a.result
             FROM jsonb_to_recordset(keep_results.kept) AS a (task text, key text, job_id bigint, result jsonb)
             ORDER BY a.key COLLATE "C" LOOP
    UPDATE pgqueue.dedup_keys k SET result = one.result
      WHERE k.task = one.task AND k.key = one.key AND k.job_id = one.job_id AND k.scope IN ('time', 'forever')
        AND k.expires_at > clock_timestamp();
    IF FOUND THEN
      stored := stored + 1;
    END IF;
  END LOOP;
  RETURN stored;
END $$;
COMMENT ON FUNCTION pgqueue.keep_results IS 'Stores what succeeded jobs returned with their idempotency keys, where those outlive their jobs; returns how many';

CREATE FUNCTION pgqueue.key_result(task text, key text) RETURNS jsonb
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  -- Not what handlers keep for each other.
  RETURN (SELECT k.result FROM pgqueue.dedup_keys k
    WHERE k.task = key_result.task AND k.key = key_result.key AND NOT starts_with(k.task, 'once:') AND k.expires_at > clock_timestamp());
END $$;
COMMENT ON FUNCTION pgqueue.key_result IS 'What the job of an idempotency key returned, if it has succeeded and the key is still held; else NULL';

-- What steers and watches: queues, tasks as workers know them, workers, sleepers, operators' audit. All small.
CREATE TABLE pgqueue.queues (
  name text PRIMARY KEY,
  created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  paused_at timestamptz,
  paused_by text,
  pause_reason text,
  paused_until timestamptz,
  sla_s double precision,
  sla_target double precision,
  run_objective_s double precision,
  run_target double precision,
  dead_letter_limit integer,
  tier text,
  owner text,
  display_name text,
  history_days integer,
  defaults jsonb NOT NULL DEFAULT '{}',
  CONSTRAINT queues_name_check CHECK (name ~ '^[a-z][a-z0-9_.-]{0,62}$'),
  CONSTRAINT queues_sla_check CHECK (sla_s BETWEEN 0.001 AND 31622400 AND sla_target > 0 AND sla_target < 1),
  CONSTRAINT queues_run_check CHECK (run_objective_s BETWEEN 0.001 AND 31622400 AND run_target > 0 AND run_target < 1),
  CONSTRAINT queues_dead_letter_limit_check CHECK (dead_letter_limit >= 0),
  CONSTRAINT queues_tier_check CHECK (tier IN ('critical', 'standard')),
  CONSTRAINT queues_words_check CHECK (length(owner) BETWEEN 1 AND 200 AND length(display_name) BETWEEN 1 AND 200),
  CONSTRAINT queues_history_days_check CHECK (history_days BETWEEN 1 AND 36500),
  CONSTRAINT queues_defaults_check CHECK (jsonb_typeof(defaults) = 'object')
);
COMMENT ON TABLE pgqueue.queues IS 'Known queues and their switches; workers add the ones they serve';
COMMENT ON COLUMN pgqueue.queues.name IS 'Queue name';
COMMENT ON COLUMN pgqueue.queues.created_at IS 'When it was first seen';
COMMENT ON COLUMN pgqueue.queues.paused_at IS 'Since when nothing new starts; NULL = not paused';
COMMENT ON COLUMN pgqueue.queues.paused_by IS 'Who paused it';
COMMENT ON COLUMN pgqueue.queues.pause_reason IS 'Why';
COMMENT ON COLUMN pgqueue.queues.paused_until IS 'When the pause ends by itself; NULL = never';
COMMENT ON COLUMN pgqueue.queues.sla_s IS 'Seconds within which a due job is to start; NULL here and in the attributes below = as in defaults, else as built in';
COMMENT ON COLUMN pgqueue.queues.sla_target IS 'Share of starts that are to keep it; built in: 0.99';
COMMENT ON COLUMN pgqueue.queues.run_objective_s IS 'Seconds that a run is to take at most';
COMMENT ON COLUMN pgqueue.queues.run_target IS 'Share of ended jobs that are to succeed within it; built in: 0.995';
COMMENT ON COLUMN pgqueue.queues.dead_letter_limit IS 'Dead letters allowed per 15 minutes before an alert; built in: 0';
COMMENT ON COLUMN pgqueue.queues.tier IS 'critical wakes people, standard (built in) warns';
COMMENT ON COLUMN pgqueue.queues.owner IS 'The team that is asked about it';
COMMENT ON COLUMN pgqueue.queues.display_name IS 'Its name for people';
COMMENT ON COLUMN pgqueue.queues.history_days IS 'Days its ended jobs are kept, if fewer than the setting says for all; NULL = as all';
COMMENT ON COLUMN pgqueue.queues.defaults IS 'The same attributes as the configuration of the last started worker gives them; what stands in a column wins';

CREATE TABLE pgqueue.tasks (
  name text PRIMARY KEY,
  queue text NOT NULL,
  priority smallint NOT NULL,
  max_attempts smallint NOT NULL,
  batch_window_s double precision,
  batch_key text,
  audit_full boolean NOT NULL DEFAULT false,
  updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE pgqueue.tasks IS 'Tasks as the last started worker registered them: defaults for producers that do not have the code (SQL, by name)';
COMMENT ON COLUMN pgqueue.tasks.name IS 'Task name';
COMMENT ON COLUMN pgqueue.tasks.queue IS 'Its default queue';
COMMENT ON COLUMN pgqueue.tasks.priority IS 'Its default priority';
COMMENT ON COLUMN pgqueue.tasks.max_attempts IS 'Starts its retry policy allows';
COMMENT ON COLUMN pgqueue.tasks.batch_window_s IS 'Seconds over which its jobs are collected; NULL = not collected';
COMMENT ON COLUMN pgqueue.tasks.batch_key IS 'The argument whose value keeps jobs apart';
COMMENT ON COLUMN pgqueue.tasks.audit_full IS 'Whether the plain path of its jobs is written to job_transitions as well';
COMMENT ON COLUMN pgqueue.tasks.updated_at IS 'When a worker last registered it';

CREATE TABLE pgqueue.workers (
  id uuid PRIMARY KEY,
  lock_key bigint,
  started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  beat_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  lease_s double precision NOT NULL,
  suspected_at timestamptz,
  ended_at timestamptz,
  claimed bigint NOT NULL DEFAULT 0,
  settled bigint NOT NULL DEFAULT 0,
  failed bigint NOT NULL DEFAULT 0,
  claims_lost bigint NOT NULL DEFAULT 0,
  beats_late bigint NOT NULL DEFAULT 0,
  claim_lost_at timestamptz,
  beat_late_at timestamptz,
  busy integer NOT NULL DEFAULT 0,
  slots integer NOT NULL DEFAULT 0,
  pid integer NOT NULL,
  port integer,
  status text NOT NULL DEFAULT 'live',
  kind text NOT NULL DEFAULT 'worker',
  host text NOT NULL,
  version text NOT NULL,
  queues text[] NOT NULL,
  drain_requested_at timestamptz,
  CONSTRAINT workers_status_check CHECK (status IN ('live', 'draining', 'stopped', 'dead'))
) WITH (fillfactor = 50, autovacuum_vacuum_threshold = 200, autovacuum_vacuum_scale_factor = 0.0);
COMMENT ON TABLE pgqueue.workers IS 'One row per worker process start; the beat is its sign of life';
COMMENT ON COLUMN pgqueue.workers.id IS 'New for every start; host and pid are only labels';
COMMENT ON COLUMN pgqueue.workers.lock_key IS 'Session advisory lock it holds while alive; NULL behind a transaction pooler';
COMMENT ON COLUMN pgqueue.workers.started_at IS 'When it registered';
COMMENT ON COLUMN pgqueue.workers.beat_at IS 'Last beat';
COMMENT ON COLUMN pgqueue.workers.lease_s IS 'Seconds after the last beat when its claims may be taken back';
COMMENT ON COLUMN pgqueue.workers.suspected_at IS 'Since when its lock was seen free';
COMMENT ON COLUMN pgqueue.workers.ended_at IS 'When it stopped or was found dead';
COMMENT ON COLUMN pgqueue.workers.claimed IS 'Jobs claimed since it started';
COMMENT ON COLUMN pgqueue.workers.settled IS 'Jobs settled since it started';
COMMENT ON COLUMN pgqueue.workers.failed IS 'Attempts failed since it started';
COMMENT ON COLUMN pgqueue.workers.claims_lost IS 'Attempts whose settlement the fence refused since it started: its process was away for longer than its lease';
COMMENT ON COLUMN pgqueue.workers.beats_late IS 'Beats that came much too late since it started: something held the interpreter';
COMMENT ON COLUMN pgqueue.workers.claim_lost_at IS 'The beat that reported the last lost claim';
COMMENT ON COLUMN pgqueue.workers.beat_late_at IS 'The last beat that came much too late';
COMMENT ON COLUMN pgqueue.workers.busy IS 'Handlers running at the last beat';
COMMENT ON COLUMN pgqueue.workers.slots IS 'Handlers it may run at once';
COMMENT ON COLUMN pgqueue.workers.pid IS 'Process id on its host';
COMMENT ON COLUMN pgqueue.workers.port IS 'Where it serves metrics and probes over HTTP; NULL = nowhere';
COMMENT ON COLUMN pgqueue.workers.status IS 'live, draining, stopped (left in order), dead (its claims were rescued)';
COMMENT ON COLUMN pgqueue.workers.kind IS 'worker, or suspect: a one-slot process for jobs whose last process died';
COMMENT ON COLUMN pgqueue.workers.host IS 'Host name';
COMMENT ON COLUMN pgqueue.workers.version IS 'Version of pgqueue it runs';
COMMENT ON COLUMN pgqueue.workers.queues IS 'Queues it serves';
COMMENT ON COLUMN pgqueue.workers.drain_requested_at IS 'When an operator asked it to finish and leave';

CREATE TABLE pgqueue.sleepers (
  queue text NOT NULL,
  worker_id uuid NOT NULL,
  since timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (queue, worker_id)
) WITH (autovacuum_vacuum_threshold = 200, autovacuum_vacuum_scale_factor = 0.0);
COMMENT ON TABLE pgqueue.sleepers IS 'Workers that want a wake-up; producers notify only while a row of their queue stands here';
COMMENT ON COLUMN pgqueue.sleepers.queue IS 'Queue name';
COMMENT ON COLUMN pgqueue.sleepers.worker_id IS 'The sleeping worker';
COMMENT ON COLUMN pgqueue.sleepers.since IS 'Since when';

CREATE TABLE pgqueue.operator_audit (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  at timestamptz NOT NULL DEFAULT clock_timestamp(),
  actor text NOT NULL,
  db_role text NOT NULL DEFAULT session_user,
  via text NOT NULL,
  action text NOT NULL,
  target text NOT NULL,
  reason text,
  matched bigint NOT NULL DEFAULT 1,
  changed bigint NOT NULL DEFAULT 1,
  detail jsonb
);
-- By hash: a target may be a filter of any length.
CREATE INDEX operator_audit_target_idx ON pgqueue.operator_audit USING hash (target);
COMMENT ON TABLE pgqueue.operator_audit IS 'What people did to jobs, queues and dead letters; written in the transaction of the deed';
COMMENT ON COLUMN pgqueue.operator_audit.id IS 'Row id';
COMMENT ON COLUMN pgqueue.operator_audit.at IS 'When';
COMMENT ON COLUMN pgqueue.operator_audit.actor IS 'Who, as they said';
COMMENT ON COLUMN pgqueue.operator_audit.db_role IS 'Who, as the server knows: the role that logged in';
COMMENT ON COLUMN pgqueue.operator_audit.via IS 'Through which door: cli, python, sql, web';
COMMENT ON COLUMN pgqueue.operator_audit.action IS 'cancel, run_now, reschedule, redrive, discard, pause, resume, …';
COMMENT ON COLUMN pgqueue.operator_audit.target IS 'The object: job 12, queue critical';
COMMENT ON COLUMN pgqueue.operator_audit.reason IS 'Why, in the actor''s words';
COMMENT ON COLUMN pgqueue.operator_audit.matched IS 'Objects that matched';
COMMENT ON COLUMN pgqueue.operator_audit.changed IS 'Objects that changed';
COMMENT ON COLUMN pgqueue.operator_audit.detail IS 'Filter, state before and after';

-- Rollups: how many attempts ended, how long they had waited and run, by minute, hour and day, counted from history by upkeep.
-- Nothing on the way of a job writes here. Durations are kept as counts in 26 buckets, bounds 1 ms × 2^k: [0] below 1 ms,
-- [k] from 2^(k-1) ms up to 2^k ms, [25] from 4.7 hours on.

CREATE TABLE pgqueue.stats_minutely (
  grain_s integer NOT NULL,
  bucket_at timestamptz NOT NULL,
  series text NOT NULL,
  queue text NOT NULL,
  task text NOT NULL,
  outcome text NOT NULL,
  n bigint NOT NULL,
  wait_n integer[],
  run_n integer[],
  wait_sum_s double precision,
  run_sum_s double precision,
  wait_max_s real,
  run_max_s real,
  wait_met bigint,
  run_met bigint,
  due real,
  due_max integer,
  lag_s real,
  lag_max_s real,
  scheduled real,
  held real,
  running real,
  slots real,
  PRIMARY KEY (grain_s, bucket_at, series, queue, task, outcome),
  CONSTRAINT stats_minutely_grain_check CHECK (grain_s IN (60, 3600, 86400)),
  CONSTRAINT stats_minutely_series_check CHECK (series IN ('work', 'queue')),
  CONSTRAINT stats_minutely_buckets_check CHECK (cardinality(wait_n) = 26 AND cardinality(run_n) = 26)
);
CREATE INDEX stats_minutely_task_idx ON pgqueue.stats_minutely (grain_s, series, queue, task, bucket_at);

COMMENT ON TABLE pgqueue.stats_minutely IS 'Rollups: minutes are kept 48 hours, hours 90 days, days 2 years';
COMMENT ON COLUMN pgqueue.stats_minutely.grain_s IS 'Length of the bucket: 60, 3600 or 86400 seconds';
COMMENT ON COLUMN pgqueue.stats_minutely.bucket_at IS 'Its begin, in UTC minutes, hours, days';
COMMENT ON COLUMN pgqueue.stats_minutely.series IS 'work = attempts that ended in it; queue = samples of a queue''s depth and lag';
COMMENT ON COLUMN pgqueue.stats_minutely.queue IS 'Queue name';
COMMENT ON COLUMN pgqueue.stats_minutely.task IS 'Task name; empty in series queue';
COMMENT ON COLUMN pgqueue.stats_minutely.outcome IS 'succeeded, retry, dead, cancelled, snoozed, released, rescued or held; empty in series queue';
COMMENT ON COLUMN pgqueue.stats_minutely.n IS 'Attempts that ended so, with jobs that ended before any; samples taken, in series queue';
COMMENT ON COLUMN pgqueue.stats_minutely.wait_n IS 'How many of them had waited so long, by bucket';
COMMENT ON COLUMN pgqueue.stats_minutely.run_n IS 'How many of them had run so long, by bucket';
COMMENT ON COLUMN pgqueue.stats_minutely.wait_sum_s IS 'Seconds they had waited, together';
COMMENT ON COLUMN pgqueue.stats_minutely.run_sum_s IS 'Seconds they had run, together';
COMMENT ON COLUMN pgqueue.stats_minutely.wait_max_s IS 'The longest wait, exactly';
COMMENT ON COLUMN pgqueue.stats_minutely.run_max_s IS 'The longest run, exactly';
COMMENT ON COLUMN pgqueue.stats_minutely.wait_met IS 'How many waited no longer than their queue''s sla_s at the time of counting; NULL where it has none';
COMMENT ON COLUMN pgqueue.stats_minutely.run_met IS 'How many succeeded within their queue''s run_objective_s; NULL where it has none';
COMMENT ON COLUMN pgqueue.stats_minutely.due IS 'Series queue: jobs due, on average over the samples; a count ends at 10,001';
COMMENT ON COLUMN pgqueue.stats_minutely.due_max IS 'Series queue: the most jobs due in a sample';
COMMENT ON COLUMN pgqueue.stats_minutely.lag_s IS 'Series queue: age of the oldest due job, on average';
COMMENT ON COLUMN pgqueue.stats_minutely.lag_max_s IS 'Series queue: the highest such age';
COMMENT ON COLUMN pgqueue.stats_minutely.scheduled IS 'Series queue: jobs that waited for their time, on average';
COMMENT ON COLUMN pgqueue.stats_minutely.held IS 'Series queue: jobs held, on average';
COMMENT ON COLUMN pgqueue.stats_minutely.running IS 'Series queue: jobs running, on average';
COMMENT ON COLUMN pgqueue.stats_minutely.slots IS 'Series queue: handlers that could run at once, on average';

CREATE TABLE pgqueue.stats_progress (
  what text PRIMARY KEY,
  done_upto timestamptz
);
COMMENT ON TABLE pgqueue.stats_progress IS 'How far along time the rollups have come';
COMMENT ON COLUMN pgqueue.stats_progress.what IS 'rollups: each minute once, soon after its end; recount: each day once more, after its end';
COMMENT ON COLUMN pgqueue.stats_progress.done_upto IS 'Everything before this moment is counted';
INSERT INTO pgqueue.stats_progress (what) VALUES ('rollups'), ('recount');

CREATE FUNCTION pgqueue.bucket_bounds()
RETURNS double precision[] LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
  SELECT array_agg(0.001 * 2.0::double precision ^ k ORDER BY k) FROM generate_series(0, 24) AS k;
$$;
COMMENT ON FUNCTION pgqueue.bucket_bounds IS 'The 25 bounds between the 26 buckets of stats_minutely, in seconds: width_bucket(seconds, bounds) is a bucket''s number from 0';

CREATE FUNCTION pgqueue.bucket_percentile(counts bigint[], q double precision, max_s double precision DEFAULT NULL)
RETURNS double precision LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
  -- Geometrically inside the bucket, whose top is the maximum where that lies in it; the first bucket has no ratio.
  SELECT least(max_s, CASE b.slot WHEN 0 THEN 0.001 * b.share ELSE b.low * (b.top / b.low) ^ b.share END)
  FROM (
    SELECT c.slot, c.low, CASE WHEN c.slot = 25 THEN greatest(max_s, c.low) ELSE greatest(c.low, least(max_s, 2 * c.low)) END AS top,
      greatest(0, (q * c.total - (c.upto - c.n)) / c.n) AS share
    FROM (
      SELECT 0.001 * 2.0::double precision ^ (u.place - 2) AS low, u.place - 1 AS slot, u.n::double precision AS n, (sum(u.n) OVER (ORDER BY u.place))::double precision AS upto,
        (sum(u.n) OVER ())::double precision AS total
      FROM unnest(counts) WITH ORDINALITY AS u (n, place)
    ) c
    WHERE c.n > 0 AND c.upto >= q * c.total
    ORDER BY c.slot
    LIMIT 1
  ) b
  WHERE q BETWEEN 0 AND 1;
$$;
COMMENT ON FUNCTION pgqueue.bucket_percentile IS 'About the q-th quantile (0.5, 0.95, …) in seconds of durations counted by bucket, interpolated geometrically and never above max_s; NULL when nothing was counted';

CREATE FUNCTION pgqueue.count_attempts(since timestamptz, until timestamptz)
RETURNS TABLE (bucket_at timestamptz, queue text, task text, outcome text, n bigint, wait_n integer[], run_n integer[],
  wait_sum_s double precision, run_sum_s double precision, wait_max_s real, run_max_s real, wait_met bigint, run_met bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  WITH ended AS (
    SELECT date_bin('1 minute', h.finished_at, '2000-01-01 00:00:00+00') AS bucket_at, h.queue, h.task, 'succeeded' AS outcome, h.wait_s, h.run_s
    FROM pgqueue.job_history h
    WHERE h.finished_at >= count_attempts.since AND h.finished_at < count_attempts.until AND h.state = 'succeeded'
    UNION ALL
    SELECT date_bin('1 minute', t.at, '2000-01-01 00:00:00+00'), t.queue, t.task,
      CASE WHEN t.to_state IN ('dead', 'cancelled') THEN t.to_state WHEN t.to_state = 'ready' THEN 'released'
        WHEN t.reason IN ('rescued', 'snoozed') THEN t.reason WHEN t.to_state = 'scheduled' THEN 'retry' ELSE 'held' END,
      t.wait_s, t.run_s
    FROM pgqueue.job_transitions t
    WHERE t.at >= count_attempts.since AND t.at < count_attempts.until
      -- What ends an attempt, or a job that never had one; not what becomes of a dead letter later.
      -- A success is told by job_history; an audit in full repeats it.
      AND (t.from_state = 'running' AND t.to_state <> 'succeeded' OR (t.to_state IN ('dead', 'cancelled') AND t.from_state <> 'dead'))
  ), cells AS MATERIALIZED (
    SELECT e.bucket_at, e.queue, e.task, e.outcome, width_bucket(e.wait_s::double precision, pgqueue.bucket_bounds()) AS wait_slot,
      width_bucket(e.run_s::double precision, pgqueue.bucket_bounds()) AS run_slot, count(*) AS n,
      sum(e.wait_s::double precision) AS wait_sum_s, sum(e.run_s::double precision) AS run_sum_s, max(e.wait_s) AS wait_max_s,
      max(e.run_s) AS run_max_s, max(o.sla_s) AS sla_s, max(o.run_objective_s) AS run_objective_s,
      count(*) FILTER (WHERE e.wait_s <= o.sla_s) AS wait_met,
      count(*) FILTER (WHERE e.run_s <= o.run_objective_s AND e.outcome = 'succeeded') AS run_met
    FROM ended e
    LEFT JOIN (SELECT q.name, coalesce(q.sla_s, (q.defaults ->> 'sla_s')::double precision) AS sla_s,
        coalesce(q.run_objective_s, (q.defaults ->> 'run_objective_s')::double precision) AS run_objective_s
      FROM pgqueue.queues q) o ON o.name = e.queue
    GROUP BY 1, 2, 3, 4, 5, 6
  )
  SELECT c.bucket_at, c.queue, c.task, c.outcome, sum(c.n)::bigint,
    ARRAY[coalesce(sum(c.n) FILTER (WHERE c.wait_slot = 0), 0), coalesce(sum(c.n) FILTER (WHERE c.wait_slot = 1), 0),
      coalesce(sum(c.n) FILTER (WHERE c.wait_slot = 2), 0), coalesce(sum(c.n) FILTER (WHERE c.wait_slot = 3), 0),
      coalesce(sum(c.n) FILTER (WHERE c.wait_slot = 4), 0), coalesce(sum(c.n) FILTER (WHERE c.wait_slot = 5), 0),
      coalesce(sum(c.n) FILTER (WHERE c.wait_slot = 6), 0), coalesce(sum(c.n) FILTER (WHERE c.wait_slot = 7), 0),
      coalesce(sum(c.n) FILTER (WHERE c.wait_slot = 8), 0), coalesce(sum(c.n) FILTER (WHERE c.wait_slot = 9), 0),
      coalesce(sum(c.n) FILTER (WHERE c.wait_slot = 10), 0), coalesce(sum(c.n) FILTER (WHERE c.wait_slot = 11), 0),
      coalesce(sum(c.n) FILTER (WHERE c.wait_slot = 12), 0), coalesce(sum(c.n) FILTER (WHERE c.wait_slot = 13), 0),
      coalesce(sum(c.n) FILTER (WHERE c.wait_slot = 14), 0), coalesce(sum(c.n) FILTER (WHERE c.wait_slot = 15), 0),
      coalesce(sum(c.n) FILTER (WHERE c.wait_slot = 16), 0), coalesce(sum(c.n) FILTER (WHERE c.wait_slot = 17), 0),
      coalesce(sum(c.n) FILTER (WHERE c.wait_slot = 18), 0), coalesce(sum(c.n) FILTER (WHERE c.wait_slot = 19), 0),
      coalesce(sum(c.n) FILTER (WHERE c.wait_slot = 20), 0), coalesce(sum(c.n) FILTER (WHERE c.wait_slot = 21), 0),
      coalesce(sum(c.n) FILTER (WHERE c.wait_slot = 22), 0), coalesce(sum(c.n) FILTER (WHERE c.wait_slot = 23), 0),
      coalesce(sum(c.n) FILTER (WHERE c.wait_slot = 24), 0), coalesce(sum(c.n) FILTER (WHERE c.wait_slot = 25), 0)]::integer[],
    ARRAY[coalesce(sum(c.n) FILTER (WHERE c.run_slot = 0), 0), coalesce(sum(c.n) FILTER (WHERE c.run_slot = 1), 0),
      coalesce(sum(c.n) FILTER (WHERE c.run_slot = 2), 0), coalesce(sum(c.n) FILTER (WHERE c.run_slot = 3), 0),
      coalesce(sum(c.n) FILTER (WHERE c.run_slot = 4), 0), coalesce(sum(c.n) FILTER (WHERE c.run_slot = 5), 0),
      coalesce(sum(c.n) FILTER (WHERE c.run_slot = 6), 0), coalesce(sum(c.n) FILTER (WHERE c.run_slot = 7), 0),
      coalesce(sum(c.n) FILTER (WHERE c.run_slot = 8), 0), coalesce(sum(c.n) FILTER (WHERE c.run_slot = 9), 0),
      coalesce(sum(c.n) FILTER (WHERE c.run_slot = 10), 0), coalesce(sum(c.n) FILTER (WHERE c.run_slot = 11), 0),
      coalesce(sum(c.n) FILTER (WHERE c.run_slot = 12), 0), coalesce(sum(c.n) FILTER (WHERE c.run_slot = 13), 0),
      coalesce(sum(c.n) FILTER (WHERE c.run_slot = 14), 0), coalesce(sum(c.n) FILTER (WHERE c.run_slot = 15), 0),
      coalesce(sum(c.n) FILTER (WHERE c.run_slot = 16), 0), coalesce(sum(c.n) FILTER (WHERE c.run_slot = 17), 0),
      coalesce(sum(c.n) FILTER (WHERE c.run_slot = 18), 0), coalesce(sum(c.n) FILTER (WHERE c.run_slot = 19), 0),
      coalesce(sum(c.n) FILTER (WHERE c.run_slot = 20), 0), coalesce(sum(c.n) FILTER (WHERE c.run_slot = 21), 0),
      coalesce(sum(c.n) FILTER (WHERE c.run_slot = 22), 0), coalesce(sum(c.n) FILTER (WHERE c.run_slot = 23), 0),
      coalesce(sum(c.n) FILTER (WHERE c.run_slot = 24), 0), coalesce(sum(c.n) FILTER (WHERE c.run_slot = 25), 0)]::integer[],
    sum(c.wait_sum_s), sum(c.run_sum_s), max(c.wait_max_s), max(c.run_max_s),
    CASE WHEN max(c.sla_s) IS NOT NULL THEN sum(c.wait_met)::bigint END,
    CASE WHEN max(c.run_objective_s) IS NOT NULL THEN sum(c.run_met)::bigint END
  FROM cells c
  GROUP BY c.bucket_at, c.queue, c.task, c.outcome;
$$;
COMMENT ON FUNCTION pgqueue.count_attempts IS 'Counts the attempts that ended in a span of time from job_history and job_transitions, by minute, queue, task and outcome';

CREATE FUNCTION pgqueue.count_minutes(since timestamptz, until timestamptz)
RETURNS bigint LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  written bigint;
BEGIN
  INSERT INTO pgqueue.stats_minutely AS s (grain_s, bucket_at, series, queue, task, outcome, n, wait_n, run_n, wait_sum_s, run_sum_s,
      wait_max_s, run_max_s, wait_met, run_met)
    SELECT 60, c.bucket_at, 'work', c.queue, c.task, c.outcome, c.n, c.wait_n, c.run_n, c.wait_sum_s, c.run_sum_s, c.wait_max_s, c.run_max_s,
      c.wait_met, c.run_met
    FROM pgqueue.count_attempts(count_minutes.since, count_minutes.until) c
    ORDER BY c.bucket_at, c.queue, c.task, c.outcome
  ON CONFLICT (grain_s, bucket_at, series, queue, task, outcome) DO UPDATE SET n = excluded.n, wait_n = excluded.wait_n,
    run_n = excluded.run_n, wait_sum_s = excluded.wait_sum_s, run_sum_s = excluded.run_sum_s, wait_max_s = excluded.wait_max_s,
    run_max_s = excluded.run_max_s, wait_met = excluded.wait_met, run_met = excluded.run_met
    -- Sums of the same rows may differ in their last digits, the counts not.
    WHERE (s.n, s.wait_n, s.run_n) IS DISTINCT FROM (excluded.n, excluded.wait_n, excluded.run_n);
  GET DIAGNOSTICS written = ROW_COUNT;
  RETURN written;
END $$;
COMMENT ON FUNCTION pgqueue.count_minutes IS 'Counts the minutes of a span of time and writes them down; returns how many rows of stats_minutely are new or were wrong';

CREATE FUNCTION pgqueue.merge_minutes(since timestamptz, until timestamptz)
RETURNS bigint LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  coarse record;
  written bigint;
  total bigint := 0;
BEGIN
  FOR coarse IN SELECT * FROM (VALUES (60, 3600, interval '1 hour'), (3600, 86400, interval '1 day')) AS v (from_s, grain_s, width) LOOP
    INSERT INTO pgqueue.stats_minutely AS t (grain_s, bucket_at, series, queue, task, outcome, n, wait_n, run_n, wait_sum_s, run_sum_s,
        wait_max_s, run_max_s, wait_met, run_met, due, due_max, lag_s, lag_max_s, scheduled, held, running, slots)
      SELECT coarse.grain_s, date_bin(coarse.width, s.bucket_at, '2000-01-01 00:00:00+00') AS bucket, s.series, s.queue, s.task, s.outcome, sum(s.n),
        CASE WHEN s.series = 'work' THEN ARRAY[sum(s.wait_n[1]), sum(s.wait_n[2]), sum(s.wait_n[3]), sum(s.wait_n[4]), sum(s.wait_n[5]), sum(s.wait_n[6]), sum(s.wait_n[7]), sum(s.wait_n[8]),
          sum(s.wait_n[9]), sum(s.wait_n[10]), sum(s.wait_n[11]), sum(s.wait_n[12]), sum(s.wait_n[13]), sum(s.wait_n[14]), sum(s.wait_n[15]), sum(s.wait_n[16]),
          sum(s.wait_n[17]), sum(s.wait_n[18]), sum(s.wait_n[19]), sum(s.wait_n[20]), sum(s.wait_n[21]), sum(s.wait_n[22]), sum(s.wait_n[23]), sum(s.wait_n[24]),
          sum(s.wait_n[25]), sum(s.wait_n[26])]::integer[] END,
        CASE WHEN s.series = 'work' THEN ARRAY[sum(s.run_n[1]), sum(s.run_n[2]), sum(s.run_n[3]), sum(s.run_n[4]), sum(s.run_n[5]), sum(s.run_n[6]), sum(s.run_n[7]), sum(s.run_n[8]),
          sum(s.run_n[9]), sum(s.run_n[10]), sum(s.run_n[11]), sum(s.run_n[12]), sum(s.run_n[13]), sum(s.run_n[14]), sum(s.run_n[15]), sum(s.run_n[16]),
          sum(s.run_n[17]), sum(s.run_n[18]), sum(s.run_n[19]), sum(s.run_n[20]), sum(s.run_n[21]), sum(s.run_n[22]), sum(s.run_n[23]), sum(s.run_n[24]),
          sum(s.run_n[25]), sum(s.run_n[26])]::integer[] END,
        sum(s.wait_sum_s), sum(s.run_sum_s), max(s.wait_max_s), max(s.run_max_s), sum(s.wait_met), sum(s.run_met),
        sum(s.due * s.n) / sum(s.n), max(s.due_max), sum(s.lag_s * s.n) / sum(s.n), max(s.lag_max_s), sum(s.scheduled * s.n) / sum(s.n),
        sum(s.held * s.n) / sum(s.n), sum(s.running * s.n) / sum(s.n), sum(s.slots * s.n) / sum(s.n)
      FROM pgqueue.stats_minutely s
      WHERE s.grain_s = coarse.from_s AND s.bucket_at >= date_bin(coarse.width, merge_minutes.since, '2000-01-01 00:00:00+00')
        AND s.bucket_at < date_bin(coarse.width, merge_minutes.until, '2000-01-01 00:00:00+00')
      GROUP BY bucket, s.series, s.queue, s.task, s.outcome
      ORDER BY bucket, s.series, s.queue, s.task, s.outcome
    ON CONFLICT (grain_s, bucket_at, series, queue, task, outcome) DO UPDATE SET n = excluded.n, wait_n = excluded.wait_n,
      run_n = excluded.run_n, wait_sum_s = excluded.wait_sum_s, run_sum_s = excluded.run_sum_s, wait_max_s = excluded.wait_max_s,
      run_max_s = excluded.run_max_s, wait_met = excluded.wait_met, run_met = excluded.run_met, due = excluded.due, due_max = excluded.due_max,
      lag_s = excluded.lag_s, lag_max_s = excluded.lag_max_s, scheduled = excluded.scheduled, held = excluded.held,
      running = excluded.running, slots = excluded.slots
      WHERE (t.n, t.wait_n, t.run_n) IS DISTINCT FROM (excluded.n, excluded.wait_n, excluded.run_n);
    GET DIAGNOSTICS written = ROW_COUNT;
    total := total + written;
  END LOOP;
  RETURN total;
END $$;
COMMENT ON FUNCTION pgqueue.merge_minutes IS 'Makes the hours and days that end in a span of time from its minutes; returns how many rows are new or were wrong';

CREATE FUNCTION pgqueue.roll_up(minutes_max integer DEFAULT 60, OUT written bigint, OUT behind boolean)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  since timestamptz;
  upto timestamptz;
  -- A settlement's time is taken a moment before its commit: 15 s let the last of a minute arrive.
  closed timestamptz := date_bin('1 minute', clock_timestamp() - interval '15 seconds', '2000-01-01 00:00:00+00');
BEGIN
  written := 0;
  behind := false;
  SELECT p.done_upto INTO since FROM pgqueue.stats_progress p WHERE p.what = 'rollups' FOR UPDATE SKIP LOCKED;
  IF NOT FOUND THEN
    RETURN;
  END IF;
  -- Nothing was counted yet; or the clock was put back, and its minutes come once more: each is counted whole again.
  IF since IS NULL OR since > closed THEN
    since := closed;
  END IF;
  upto := least(closed, since + make_interval(mins => minutes_max));
  IF upto > since THEN
    written := pgqueue.count_minutes(since, upto);
    PERFORM pgqueue.merge_minutes(since, upto);
  END IF;
  UPDATE pgqueue.stats_progress p SET done_upto = upto WHERE p.what = 'rollups' AND p.done_upto IS DISTINCT FROM upto;
  behind := upto < closed;
END $$;
COMMENT ON FUNCTION pgqueue.roll_up IS 'Counts the minutes that have ended since the last time, at most so many; behind = there are more';

CREATE FUNCTION pgqueue.recount(minutes_max integer DEFAULT 10, OUT corrected bigint, OUT behind boolean)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  since timestamptz;
  upto timestamptz;
  closed timestamptz := date_trunc('day', clock_timestamp() - interval '5 minutes', 'UTC');
BEGIN
  corrected := 0;
  behind := false;
  SELECT p.done_upto INTO since FROM pgqueue.stats_progress p WHERE p.what = 'recount' FOR UPDATE SKIP LOCKED;
  IF NOT FOUND THEN
    RETURN;
  END IF;
  IF since IS NULL OR since > closed THEN
    since := closed;
  END IF;
  upto := least(closed, since + make_interval(mins => minutes_max));
  IF upto > since THEN
    corrected := pgqueue.count_minutes(since, upto);
    PERFORM pgqueue.merge_minutes(since, upto);
  END IF;
  UPDATE pgqueue.stats_progress p SET done_upto = upto WHERE p.what = 'recount' AND p.done_upto IS DISTINCT FROM upto;
  behind := upto < closed;
END $$;
COMMENT ON FUNCTION pgqueue.recount IS 'Counts a day once more after its end, so many minutes at a time, and corrects what came late; behind = there is more';

CREATE FUNCTION pgqueue.work_stats(since timestamptz, until timestamptz, grain_s integer DEFAULT 60)
RETURNS TABLE (queue text, task text, ended bigint, succeeded bigint, retried bigint, dead bigint, other bigint,
  wait_p50_s double precision, wait_p95_s double precision, wait_p99_s double precision, wait_max_s real,
  run_p50_s double precision, run_p95_s double precision, run_p99_s double precision, run_max_s real)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  SELECT m.queue, m.task, m.ended, m.succeeded, m.retried, m.dead, m.ended - m.succeeded - m.retried - m.dead,
    pgqueue.bucket_percentile(m.wait_n, 0.5, m.wait_max_s), pgqueue.bucket_percentile(m.wait_n, 0.95, m.wait_max_s),
    pgqueue.bucket_percentile(m.wait_n, 0.99, m.wait_max_s), m.wait_max_s,
    pgqueue.bucket_percentile(m.run_n, 0.5, m.run_max_s), pgqueue.bucket_percentile(m.run_n, 0.95, m.run_max_s),
    pgqueue.bucket_percentile(m.run_n, 0.99, m.run_max_s), m.run_max_s
  FROM (
    SELECT s.queue, s.task, sum(s.n)::bigint AS ended, coalesce(sum(s.n) FILTER (WHERE s.outcome = 'succeeded'), 0)::bigint AS succeeded,
      coalesce(sum(s.n) FILTER (WHERE s.outcome = 'retry'), 0)::bigint AS retried, coalesce(sum(s.n) FILTER (WHERE s.outcome = 'dead'), 0)::bigint AS dead,
      ARRAY[sum(s.wait_n[1]), sum(s.wait_n[2]), sum(s.wait_n[3]), sum(s.wait_n[4]), sum(s.wait_n[5]), sum(s.wait_n[6]), sum(s.wait_n[7]), sum(s.wait_n[8]),
      sum(s.wait_n[9]), sum(s.wait_n[10]), sum(s.wait_n[11]), sum(s.wait_n[12]), sum(s.wait_n[13]), sum(s.wait_n[14]), sum(s.wait_n[15]), sum(s.wait_n[16]),
      sum(s.wait_n[17]), sum(s.wait_n[18]), sum(s.wait_n[19]), sum(s.wait_n[20]), sum(s.wait_n[21]), sum(s.wait_n[22]), sum(s.wait_n[23]), sum(s.wait_n[24]),
      sum(s.wait_n[25]), sum(s.wait_n[26])]::bigint[] AS wait_n,
      ARRAY[sum(s.run_n[1]), sum(s.run_n[2]), sum(s.run_n[3]), sum(s.run_n[4]), sum(s.run_n[5]), sum(s.run_n[6]), sum(s.run_n[7]), sum(s.run_n[8]),
      sum(s.run_n[9]), sum(s.run_n[10]), sum(s.run_n[11]), sum(s.run_n[12]), sum(s.run_n[13]), sum(s.run_n[14]), sum(s.run_n[15]), sum(s.run_n[16]),
      sum(s.run_n[17]), sum(s.run_n[18]), sum(s.run_n[19]), sum(s.run_n[20]), sum(s.run_n[21]), sum(s.run_n[22]), sum(s.run_n[23]), sum(s.run_n[24]),
      sum(s.run_n[25]), sum(s.run_n[26])]::bigint[] AS run_n,
      max(s.wait_max_s) AS wait_max_s, max(s.run_max_s) AS run_max_s
    FROM pgqueue.stats_minutely s
    WHERE s.grain_s = work_stats.grain_s AND s.bucket_at >= work_stats.since AND s.bucket_at < work_stats.until AND s.series = 'work'
    GROUP BY GROUPING SETS ((s.queue, s.task), (s.queue))
  ) m;
$$;
COMMENT ON FUNCTION pgqueue.work_stats IS 'What ended in a span of time, by queue and task, and by queue alone (task NULL): how many, and about how long they waited and ran';

-- What handlers have recorded with ctx.step: the answer of a call to somebody else, so that it is made once.
-- Written on a connection of its own while the job runs, and kept as long as anything is known of the job.
CREATE TABLE pgqueue.job_steps (
  job_id bigint NOT NULL,
  name text NOT NULL,
  result jsonb,
  refused text,
  recorded_at timestamptz NOT NULL,
  attempt smallint NOT NULL,
  run_s real NOT NULL,
  claim_id uuid NOT NULL,
  worker_id uuid,
  record_id uuid NOT NULL,
  PRIMARY KEY (job_id, name),
  CONSTRAINT job_steps_name_check CHECK (octet_length(name) BETWEEN 1 AND 200),
  CONSTRAINT job_steps_result_check CHECK ((result IS NULL) = (refused IS NOT NULL))
);
CREATE INDEX job_steps_recorded_at_idx ON pgqueue.job_steps (recorded_at, job_id, name);

COMMENT ON TABLE pgqueue.job_steps IS 'Recorded steps: what calls of handlers to others have answered';
COMMENT ON COLUMN pgqueue.job_steps.job_id IS 'jobs.id; a redrive takes copies along';
COMMENT ON COLUMN pgqueue.job_steps.name IS 'The step''s name, unique in its job';
COMMENT ON COLUMN pgqueue.job_steps.result IS 'What the call returned; JSON null if it returned nothing';
COMMENT ON COLUMN pgqueue.job_steps.refused IS 'Why what it returned cannot be stored: the call was made and is not made again';
COMMENT ON COLUMN pgqueue.job_steps.recorded_at IS 'When it was recorded';
COMMENT ON COLUMN pgqueue.job_steps.attempt IS 'The attempt that made the call';
COMMENT ON COLUMN pgqueue.job_steps.run_s IS 'Seconds the call took';
COMMENT ON COLUMN pgqueue.job_steps.claim_id IS 'The claim that recorded it: only the newest claim of a job can';
COMMENT ON COLUMN pgqueue.job_steps.worker_id IS 'The worker that made the call';
COMMENT ON COLUMN pgqueue.job_steps.record_id IS 'Made by the worker for each record: what a lost answer is read back by';

-- Keys that handlers take in their job's transaction. They share a table with the keys of enqueues and never meet them.
CREATE FUNCTION pgqueue.take_once(task text, key text, job_id bigint, ttl interval, OUT taken boolean, OUT holder bigint, OUT result jsonb)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  first record;
BEGIN
  first := pgqueue.take_key(take_once.task, take_once.key, take_once.ttl, CASE WHEN take_once.ttl IS NULL THEN 'forever' ELSE 'time' END,
    take_once.job_id);
  taken := first.taken;
  holder := first.job_id;
  IF NOT taken THEN
    SELECT k.result INTO take_once.result FROM pgqueue.dedup_keys k WHERE k.task = take_once.task AND k.key = take_once.key;
  END IF;
END $$;
COMMENT ON FUNCTION pgqueue.take_once IS 'Takes a key for a job, ttl NULL: for ever; or tells which job has it and what that kept';

CREATE FUNCTION pgqueue.keep_once(task text, key text, job_id bigint, result jsonb) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  UPDATE pgqueue.dedup_keys k SET result = keep_once.result
    WHERE k.task = keep_once.task AND k.key = keep_once.key AND k.job_id = keep_once.job_id;
  RETURN FOUND;
END $$;
COMMENT ON FUNCTION pgqueue.keep_once IS 'Stores what later callers of a job''s key get; false if the key is not the job''s';

-- The outbox: messages written in the transaction of what they tell about, and how far each has come with whom.
-- Three steps, each one statement: emit (the producer's transaction), route (messages become jobs, or stand in line
-- before a sink), deliver (a relay takes the head of a line, sends, and says so). Nothing here looks for "ids after
-- the last one": ids are given before they commit, and a late one would be skipped.

-- CACHE 1 is needed: a session that held numbers back would use a low one after another session's high one.
CREATE SEQUENCE pgqueue.outbox_seq AS bigint CACHE 1;
COMMENT ON SEQUENCE pgqueue.outbox_seq IS 'Message ids; of one key they are in commit order, gaps are normal';

CREATE TABLE pgqueue.outbox (
  id bigint PRIMARY KEY,
  uid uuid NOT NULL DEFAULT gen_random_uuid(),
  emitted_at timestamptz NOT NULL,
  job_id bigint,
  pending smallint NOT NULL DEFAULT 0,
  state text NOT NULL DEFAULT 'new',
  topic text NOT NULL,
  key text,
  payload jsonb NOT NULL,
  headers jsonb,
  CONSTRAINT outbox_state_check CHECK (state IN ('new', 'routed', 'parked') AND (state = 'routed') = (pending > 0)),
  CONSTRAINT outbox_topic_check CHECK (length(topic) BETWEEN 1 AND 200),
  CONSTRAINT outbox_key_check CHECK (octet_length(key) BETWEEN 1 AND 200),
  CONSTRAINT outbox_payload_check CHECK (jsonb_typeof(payload) = 'object' AND pg_column_size(payload) <= 8388608),
  CONSTRAINT outbox_headers_check CHECK (jsonb_typeof(headers) = 'object')
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 5000);
CREATE INDEX outbox_new_idx ON pgqueue.outbox (id) WHERE state = 'new';
-- For the timeline of one job; handlers emit, and most messages are gone within a second.
CREATE INDEX outbox_job_id_idx ON pgqueue.outbox (job_id) WHERE job_id IS NOT NULL;
CREATE INDEX outbox_parked_idx ON pgqueue.outbox (emitted_at, id) WHERE state = 'parked';
COMMENT ON TABLE pgqueue.outbox IS 'Messages that somebody has still to get; a message leaves when the last one has it';
COMMENT ON COLUMN pgqueue.outbox.id IS 'Message id; of one key in commit order';
COMMENT ON COLUMN pgqueue.outbox.uid IS 'The same message wherever and however often it arrives: what receivers tell repetitions by';
COMMENT ON COLUMN pgqueue.outbox.emitted_at IS 'When it was emitted, by the database''s clock; its transaction may have committed later';
COMMENT ON COLUMN pgqueue.outbox.job_id IS 'The job whose handler emitted it; NULL = no job did';
COMMENT ON COLUMN pgqueue.outbox.pending IS 'Sinks that have still to get it';
COMMENT ON COLUMN pgqueue.outbox.state IS 'new (no relay has seen it), routed (stands in line before pending sinks), parked (nobody subscribes to its topic)';
COMMENT ON COLUMN pgqueue.outbox.topic IS 'What it is about, as in ride.completed';
COMMENT ON COLUMN pgqueue.outbox.key IS 'Messages of one key are delivered in commit order; NULL = no order';
COMMENT ON COLUMN pgqueue.outbox.payload IS 'A JSON object; the arguments of the jobs it becomes';
COMMENT ON COLUMN pgqueue.outbox.headers IS 'String map carried along: trace context, correlation id';

CREATE TABLE pgqueue.outbox_subscriptions (
  pattern text NOT NULL,
  sink text NOT NULL,
  defined_in text NOT NULL DEFAULT '',
  task text,
  created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (sink, pattern, defined_in),
  CONSTRAINT outbox_subscriptions_pattern_check CHECK (length(pattern) <= 200
    AND pattern ~ '^(?:\*|[A-Za-z_][A-Za-z0-9_-]*(?:\.[A-Za-z_][A-Za-z0-9_-]*)*(?:\.\*)?)$'),
  CONSTRAINT outbox_subscriptions_sink_check CHECK (CASE WHEN task IS NULL THEN sink ~ '^[a-z][a-z0-9_.-]{0,62}$'
    ELSE sink = 'task:' || task AND length(task) <= 200 AND task ~ '^[A-Za-z_][A-Za-z0-9_-]*(?:\.[A-Za-z_][A-Za-z0-9_-]*)*$' END)
);
COMMENT ON TABLE pgqueue.outbox_subscriptions IS 'Who wants which topics; relays write what their application''s code says';
COMMENT ON COLUMN pgqueue.outbox_subscriptions.pattern IS 'A topic; ride.* = all below ride; * = every topic';
COMMENT ON COLUMN pgqueue.outbox_subscriptions.sink IS 'Who: task:NAME, or a sink by the name its application gave it';
COMMENT ON COLUMN pgqueue.outbox_subscriptions.defined_in IS 'The application whose code says so; empty = a person did';
COMMENT ON COLUMN pgqueue.outbox_subscriptions.task IS 'The task whose jobs its messages become; NULL = a sink outside';
COMMENT ON COLUMN pgqueue.outbox_subscriptions.created_at IS 'When it was first said';

-- A line of messages before one sink: all of one key, or a single message without one. Whoever holds the line
-- delivers from it, so its order needs no more than this row.
CREATE TABLE pgqueue.outbox_lanes (
  sink text NOT NULL,
  lane text NOT NULL,
  due_at timestamptz NOT NULL,
  claim_id uuid,
  relay_id uuid,
  attempts smallint NOT NULL DEFAULT 0,
  failing_id bigint,
  first_failed_at timestamptz,
  failed_at timestamptz,
  blocked_at timestamptz,
  error_type text,
  error_message text,
  PRIMARY KEY (sink, lane),
  CONSTRAINT outbox_lanes_claim_check CHECK ((claim_id IS NULL) = (relay_id IS NULL)),
  CONSTRAINT outbox_lanes_failing_check CHECK (failing_id IS NOT NULL OR (attempts = 0 AND failed_at IS NULL))
) WITH (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000);
CREATE INDEX outbox_lanes_due_idx ON pgqueue.outbox_lanes (sink, due_at) WHERE blocked_at IS NULL;
CREATE INDEX outbox_lanes_failing_idx ON pgqueue.outbox_lanes (failing_id) WHERE failing_id IS NOT NULL;
COMMENT ON TABLE pgqueue.outbox_lanes IS 'Lines of messages before sinks; a line goes when its last message is delivered';
COMMENT ON COLUMN pgqueue.outbox_lanes.sink IS 'Before whom';
COMMENT ON COLUMN pgqueue.outbox_lanes.lane IS '=KEY for the messages of a key, #ID for a message without one';
COMMENT ON COLUMN pgqueue.outbox_lanes.due_at IS 'From here on a relay may take it; a claim and a failure put it off';
COMMENT ON COLUMN pgqueue.outbox_lanes.claim_id IS 'The newest claim, which alone may say what was delivered; NULL = nobody is at it';
COMMENT ON COLUMN pgqueue.outbox_lanes.relay_id IS 'The relay that made it (outbox_relays.id)';
COMMENT ON COLUMN pgqueue.outbox_lanes.attempts IS 'Failed tries of failing_id that count; a sink that cannot be reached at all costs none';
COMMENT ON COLUMN pgqueue.outbox_lanes.failing_id IS 'The message that failed last; NULL = its head has not failed';
COMMENT ON COLUMN pgqueue.outbox_lanes.first_failed_at IS 'When failing_id failed first';
COMMENT ON COLUMN pgqueue.outbox_lanes.failed_at IS 'When it failed last';
COMMENT ON COLUMN pgqueue.outbox_lanes.blocked_at IS 'Since when nothing is delivered because failing_id lies in outbox_dead_letters; NULL = not blocked';
COMMENT ON COLUMN pgqueue.outbox_lanes.error_type IS 'Class of the last error';
COMMENT ON COLUMN pgqueue.outbox_lanes.error_message IS 'Its text, cleaned, cut and redacted';

CREATE TABLE pgqueue.outbox_deliveries (
  sink text NOT NULL,
  lane text NOT NULL,
  message_id bigint NOT NULL,
  PRIMARY KEY (sink, lane, message_id)
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 5000);
CREATE INDEX outbox_deliveries_message_id_idx ON pgqueue.outbox_deliveries (message_id);
COMMENT ON TABLE pgqueue.outbox_deliveries IS 'Which messages stand in which line; a row goes when its sink has the message';
COMMENT ON COLUMN pgqueue.outbox_deliveries.sink IS 'outbox_lanes.sink';
COMMENT ON COLUMN pgqueue.outbox_deliveries.lane IS 'outbox_lanes.lane';
COMMENT ON COLUMN pgqueue.outbox_deliveries.message_id IS 'outbox.id, and its place in the line';

CREATE TABLE pgqueue.outbox_dead_letters (
  message_id bigint NOT NULL,
  sink text NOT NULL,
  uid uuid NOT NULL,
  topic text NOT NULL,
  key text,
  payload jsonb NOT NULL,
  headers jsonb,
  emitted_at timestamptz NOT NULL,
  job_id bigint,
  reason text NOT NULL,
  blocks boolean NOT NULL,
  attempts smallint NOT NULL,
  error_type text,
  error_message text,
  first_failed_at timestamptz NOT NULL,
  created_at timestamptz NOT NULL,
  PRIMARY KEY (message_id, sink)
);
CREATE INDEX outbox_dead_letters_job_id_idx ON pgqueue.outbox_dead_letters (job_id) WHERE job_id IS NOT NULL;
CREATE INDEX outbox_dead_letters_created_at_idx ON pgqueue.outbox_dead_letters (created_at, message_id);
COMMENT ON TABLE pgqueue.outbox_dead_letters IS 'Messages that a sink did not get in all its tries; kept until replayed or skipped';
COMMENT ON COLUMN pgqueue.outbox_dead_letters.message_id IS 'outbox.id';
COMMENT ON COLUMN pgqueue.outbox_dead_letters.sink IS 'Who did not get it';
COMMENT ON COLUMN pgqueue.outbox_dead_letters.uid IS 'outbox.uid';
COMMENT ON COLUMN pgqueue.outbox_dead_letters.topic IS 'Topic';
COMMENT ON COLUMN pgqueue.outbox_dead_letters.key IS 'Key; NULL = none';
COMMENT ON COLUMN pgqueue.outbox_dead_letters.payload IS 'A JSON object';
COMMENT ON COLUMN pgqueue.outbox_dead_letters.headers IS 'String map carried along';
COMMENT ON COLUMN pgqueue.outbox_dead_letters.emitted_at IS 'When it was emitted';
COMMENT ON COLUMN pgqueue.outbox_dead_letters.job_id IS 'The job whose handler emitted it';
COMMENT ON COLUMN pgqueue.outbox_dead_letters.reason IS 'max_retries, gave_up, rejected, or unroutable (no job could be made of it)';
COMMENT ON COLUMN pgqueue.outbox_dead_letters.blocks IS 'Whether later messages of its key wait for a decision about this one';
COMMENT ON COLUMN pgqueue.outbox_dead_letters.attempts IS 'Tries it had';
COMMENT ON COLUMN pgqueue.outbox_dead_letters.error_type IS 'Class of the last error';
COMMENT ON COLUMN pgqueue.outbox_dead_letters.error_message IS 'Its text, cleaned, cut and redacted';
COMMENT ON COLUMN pgqueue.outbox_dead_letters.first_failed_at IS 'When it failed first';
COMMENT ON COLUMN pgqueue.outbox_dead_letters.created_at IS 'When it was given up';

CREATE TABLE pgqueue.outbox_relays (
  id uuid PRIMARY KEY,
  host text NOT NULL,
  pid integer NOT NULL,
  version text NOT NULL,
  sinks text[] NOT NULL,
  started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  beat_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  asleep_until timestamptz
) WITH (fillfactor = 50, autovacuum_vacuum_threshold = 200, autovacuum_vacuum_scale_factor = 0.0);
COMMENT ON TABLE pgqueue.outbox_relays IS 'Relay processes; a row goes when its relay stops, or has been silent for an hour';
COMMENT ON COLUMN pgqueue.outbox_relays.id IS 'New for every start';
COMMENT ON COLUMN pgqueue.outbox_relays.host IS 'Host name';
COMMENT ON COLUMN pgqueue.outbox_relays.pid IS 'Process id on its host';
COMMENT ON COLUMN pgqueue.outbox_relays.version IS 'Version of pgqueue it runs';
COMMENT ON COLUMN pgqueue.outbox_relays.sinks IS 'Sinks it delivers to; jobs are made by every relay';
COMMENT ON COLUMN pgqueue.outbox_relays.started_at IS 'When it started';
COMMENT ON COLUMN pgqueue.outbox_relays.beat_at IS 'Last sign of life';
COMMENT ON COLUMN pgqueue.outbox_relays.asleep_until IS 'Until then emits notify it; NULL = it is awake and looks by itself';

CREATE FUNCTION pgqueue.outbox_lane(key text, id bigint) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
  RETURN coalesce('=' || key, '#' || id);
COMMENT ON FUNCTION pgqueue.outbox_lane IS 'The line a message stands in';

CREATE FUNCTION pgqueue.topic_matches(topic text, pattern text) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE
  RETURN topic = pattern OR pattern = '*' OR (right(pattern, 2) = '.*' AND starts_with(topic, left(pattern, -1)));
COMMENT ON FUNCTION pgqueue.topic_matches IS 'Whether a subscription means a topic: the topic itself, ride.* for all below ride, * for every one';

CREATE FUNCTION pgqueue.check_message(topic text, payload jsonb, key text, headers jsonb)
RETURNS void LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
BEGIN
  IF topic IS NULL OR length(topic) > 200 OR topic !~ '^[A-Za-z_][A-Za-z0-9_-]*(?:\.[A-Za-z_][A-Za-z0-9_-]*)*$' THEN
    RAISE EXCEPTION 'topic: must be identifiers joined by dots, each of ASCII letters, digits, _ and - and not starting with a digit (limit: 1-200 characters)'
      USING ERRCODE = '22023';
  END IF;
  PERFORM pgqueue.check_args('payload', payload);
  IF key IS NOT NULL THEN
    PERFORM pgqueue.check_key('key', key);
  END IF;
  IF headers IS NOT NULL THEN
    PERFORM pgqueue.check_headers(headers);
  END IF;
END $$;
COMMENT ON FUNCTION pgqueue.check_message IS 'Raises 22023 with one clear line if a message may not be emitted like this';

-- The lock is what makes ids of one key follow the order of commits: it is held until the transaction has ended, and
-- the number is taken under it.
CREATE FUNCTION pgqueue.put_message(topic text, payload jsonb, key text DEFAULT NULL, headers jsonb DEFAULT NULL,
                                    job_id bigint DEFAULT NULL, wake boolean DEFAULT true, checked boolean DEFAULT false,
                                    uid uuid DEFAULT NULL)
RETURNS bigint LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  message_id bigint;
BEGIN
  IF NOT put_message.checked THEN
    PERFORM pgqueue.check_message(put_message.topic, put_message.payload, put_message.key, put_message.headers);
  END IF;
  IF put_message.key IS NOT NULL THEN
    PERFORM pg_advisory_xact_lock(hashtextextended('pgqueue outbox ' || put_message.key, 0));
  END IF;
  message_id := nextval('pgqueue.outbox_seq');
  INSERT INTO pgqueue.outbox (id, uid, emitted_at, job_id, topic, key, payload, headers)
    VALUES (message_id, coalesce(put_message.uid, gen_random_uuid()), clock_timestamp(), put_message.job_id, put_message.topic,
      put_message.key, put_message.payload, put_message.headers);
  -- A notifying commit serialises all notifying commits of the cluster, so only a relay that sleeps is notified.
  IF put_message.wake AND EXISTS (SELECT FROM pgqueue.outbox_relays r WHERE r.asleep_until > clock_timestamp()) THEN
    PERFORM pg_notify('pgqueue_outbox', '');
  END IF;
  RETURN message_id;
END $$;
COMMENT ON FUNCTION pgqueue.put_message IS 'As emit, with what only pgqueue itself says of a message';

CREATE FUNCTION pgqueue.emit(topic text, payload jsonb DEFAULT '{}', key text DEFAULT NULL, headers jsonb DEFAULT NULL)
RETURNS bigint LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN pgqueue.put_message(topic, payload, key, headers);
END $$;
COMMENT ON FUNCTION pgqueue.emit IS 'Puts a message into the outbox in the caller''s transaction and returns its id; producers of one key wait for each other until commit';

-- For messages that come from another database's outbox. dedup_keys remembers them under a task of its own; the job id
-- there names no job.
CREATE FUNCTION pgqueue.accept_message(uid uuid, topic text, payload jsonb, key text DEFAULT NULL, headers jsonb DEFAULT NULL)
RETURNS bigint LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  first record;
BEGIN
  PERFORM pgqueue.check_message(topic, payload, key, headers);
  first := pgqueue.take_key('pgqueue.outbox', accept_message.uid::text, interval '30 days');
  IF NOT first.taken THEN
    RETURN NULL;
  END IF;
  RETURN pgqueue.put_message(topic, payload, key, headers, checked => true, uid => accept_message.uid);
END $$;
COMMENT ON FUNCTION pgqueue.accept_message IS 'Emits a message that another database''s relay hands over, once within 30 days; NULL when it was here before';

-- Which life of the server this is: transaction numbers that were never flushed are handed out again after a crash,
-- and a crash sets both of these anew.
CREATE FUNCTION pgqueue.server_life() RETURNS text LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
  RETURN (SELECT concat_ws('/', extract(epoch FROM pg_postmaster_start_time()), extract(epoch FROM a.stats_reset)) FROM pg_stat_archiver a);
COMMENT ON FUNCTION pgqueue.server_life IS 'Another text after each restart or crash of the server';

CREATE FUNCTION pgqueue.emit_receipt(message_id bigint) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN (SELECT concat_ws(' ', 'message', pg_current_xact_id_if_assigned(), o.id, o.uid, pgqueue.server_life()) FROM pgqueue.outbox o
          WHERE o.id = emit_receipt.message_id);
END $$;
COMMENT ON FUNCTION pgqueue.emit_receipt IS 'What emit_outcome finds a message by that was emitted in this transaction';

-- A relay may have delivered the message already, and then no row is left of it: the transaction's number tells.
CREATE FUNCTION pgqueue.emit_outcome(receipt text) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  parts text[] := string_to_array(receipt, ' ');
  fate text;
BEGIN
  IF EXISTS (SELECT FROM pgqueue.outbox o WHERE o.id = parts[3]::bigint AND o.uid = parts[4]::uuid) THEN
    RETURN 'committed';
  ELSIF parts[5] IS DISTINCT FROM pgqueue.server_life() THEN
    RETURN 'unknown: the server was restarted meanwhile';
  END IF;
  fate := pg_xact_status(parts[2]::xid8);
  RETURN CASE fate WHEN 'in progress' THEN 'running' WHEN 'committed' THEN 'committed' WHEN 'aborted' THEN 'absent'
    ELSE 'unknown: it is too long ago' END;
END $$;
COMMENT ON FUNCTION pgqueue.emit_outcome IS 'Whether the transaction of a receipt committed its message: running, committed, absent or unknown';

-- One relay routes at a time: so a key's messages come into their lines in order. The lock is the transaction's, which
-- is this one statement: a relay that is stopped or cut in the middle holds nothing.
CREATE FUNCTION pgqueue.route_messages(batch integer, careful boolean DEFAULT false)
RETURNS TABLE (topic text, messages bigint, jobs bigint, deliveries bigint, parked bigint, unroutable bigint, oldest_s double precision)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  ids bigint[];
  bad bigint[] := '{}';
  job record;
BEGIN
  IF NOT pg_try_advisory_xact_lock(hashtextextended('pgqueue outbox router', 0)) THEN
    RETURN;
  END IF;
  ids := ARRAY(SELECT o.id FROM pgqueue.outbox o WHERE o.state = 'new' ORDER BY o.id LIMIT route_messages.batch FOR UPDATE);
  IF cardinality(ids) = 0 THEN
    RETURN;
  END IF;
  -- In the order of the messages: a lane of jobs grows at its tail.
  FOR job IN
    SELECT w.id, w.task, w.payload, w.headers, w.job_id FROM (
      SELECT DISTINCT ON (o.id, s.task) o.id, s.task, o.payload, o.job_id,
        coalesce(o.headers, '{}') || jsonb_strip_nulls(jsonb_build_object('pgqueue.message_id', o.id::text, 'pgqueue.message_uid', o.uid,
          'pgqueue.topic', o.topic, 'pgqueue.message_key', o.key)) AS headers
      FROM pgqueue.outbox o JOIN pgqueue.outbox_subscriptions s ON s.task IS NOT NULL AND pgqueue.topic_matches(o.topic, s.pattern)
      WHERE o.id = ANY (ids)) w
    ORDER BY w.id, w.task
  LOOP
    IF NOT route_messages.careful THEN
      PERFORM pgqueue.put_job(task => job.task, args => job.payload, headers => job.headers, parent_id => job.job_id, checked => true);
    ELSE
      BEGIN
        PERFORM pgqueue.put_job(task => job.task, args => job.payload, headers => job.headers, parent_id => job.job_id, checked => true);
      EXCEPTION WHEN data_exception OR integrity_constraint_violation OR program_limit_exceeded THEN
        INSERT INTO pgqueue.outbox_dead_letters (message_id, sink, uid, topic, key, payload, headers, emitted_at, job_id, reason, blocks,
            attempts, error_type, error_message, first_failed_at, created_at)
          SELECT o.id, 'task:' || job.task, o.uid, o.topic, o.key, o.payload, o.headers, o.emitted_at, o.job_id, 'unroutable', false, 1,
            'SQLSTATE ' || SQLSTATE, 'no job can be made of it', clock_timestamp(), clock_timestamp()
          FROM pgqueue.outbox o WHERE o.id = job.id
          ON CONFLICT (message_id, sink) DO NOTHING;
        bad := bad || job.id;
      END;
    END IF;
  END LOOP;
  -- A line that exists is locked too, though nothing of it changes: else its relay could find it empty and drop it
  -- before it sees the rows that follow. All in one order, as everybody who locks several.
  INSERT INTO pgqueue.outbox_lanes AS l (sink, lane, due_at)
    SELECT w.sink, w.lane, clock_timestamp() FROM (
      SELECT DISTINCT s.sink, pgqueue.outbox_lane(o.key, o.id) AS lane
      FROM pgqueue.outbox o JOIN pgqueue.outbox_subscriptions s ON s.task IS NULL AND pgqueue.topic_matches(o.topic, s.pattern)
      WHERE o.id = ANY (ids)) w ORDER BY w.sink, w.lane
    ON CONFLICT (sink, lane) DO UPDATE SET due_at = l.due_at WHERE false;
  INSERT INTO pgqueue.outbox_deliveries (sink, lane, message_id)
    SELECT DISTINCT s.sink, pgqueue.outbox_lane(o.key, o.id), o.id
    FROM pgqueue.outbox o JOIN pgqueue.outbox_subscriptions s ON s.task IS NULL AND pgqueue.topic_matches(o.topic, s.pattern)
    WHERE o.id = ANY (ids);
  RETURN QUERY
  WITH told AS MATERIALIZED (
    SELECT o.id, o.topic, o.emitted_at,
      (SELECT count(DISTINCT s.sink) FROM pgqueue.outbox_subscriptions s WHERE s.task IS NOT NULL AND pgqueue.topic_matches(o.topic, s.pattern)) AS tasks,
      (SELECT count(DISTINCT s.sink) FROM pgqueue.outbox_subscriptions s WHERE s.task IS NULL AND pgqueue.topic_matches(o.topic, s.pattern)) AS sinks
    FROM pgqueue.outbox o WHERE o.id = ANY (ids)
  ), gone AS (
    DELETE FROM pgqueue.outbox o USING told t WHERE o.id = t.id AND t.tasks > 0 AND t.sinks = 0
  ), stay AS (
    UPDATE pgqueue.outbox o SET state = CASE WHEN t.sinks > 0 THEN 'routed' ELSE 'parked' END, pending = t.sinks
    FROM told t WHERE o.id = t.id AND (t.sinks > 0 OR t.tasks = 0)
  )
  SELECT t.topic, count(*), (sum(t.tasks) - count(*) FILTER (WHERE t.id = ANY (bad)))::bigint, sum(t.sinks)::bigint,
    count(*) FILTER (WHERE t.tasks + t.sinks = 0), count(*) FILTER (WHERE t.id = ANY (bad)),
    greatest(0, extract(epoch FROM clock_timestamp() - min(t.emitted_at)))::double precision
  FROM told t GROUP BY t.topic;
END $$;
COMMENT ON FUNCTION pgqueue.route_messages IS 'Makes jobs of the next new messages and puts them in line before their sinks; nothing while another relay does. careful: one that no job can be made of becomes a dead letter';

-- In two statements: what stands in a line is read after the line was taken, or the rows might be those that another
-- relay has delivered in between.
CREATE FUNCTION pgqueue.claim_lanes(sinks text[], wants integer[], run integer, lease_s double precision, claim_id uuid, relay_id uuid)
RETURNS TABLE (sink text, lane text, attempts integer, failing_id bigint, message_id bigint, uid uuid, topic text, key text,
               payload text, headers text, emitted_at timestamptz, age_s double precision)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  taken_sinks text[];
  taken_lanes text[];
BEGIN
  SELECT array_agg(d.sink), array_agg(d.lane) INTO taken_sinks, taken_lanes
    FROM unnest(claim_lanes.sinks, claim_lanes.wants) AS w (sink, want)
    CROSS JOIN LATERAL (
      SELECT l.sink, l.lane FROM pgqueue.outbox_lanes l
      WHERE l.sink = w.sink AND l.blocked_at IS NULL AND l.due_at <= statement_timestamp()
      ORDER BY l.due_at LIMIT w.want FOR UPDATE SKIP LOCKED) d;
  IF taken_sinks IS NULL THEN
    RETURN;
  END IF;
  -- By arrays, of which a plan expects few: joined with the lines above it would read the whole table.
  UPDATE pgqueue.outbox_lanes l SET claim_id = claim_lanes.claim_id, relay_id = claim_lanes.relay_id,
      due_at = clock_timestamp() + make_interval(secs => claim_lanes.lease_s)
    FROM unnest(taken_sinks, taken_lanes) AS t (sink, lane) WHERE l.sink = t.sink AND l.lane = t.lane;
  DELETE FROM pgqueue.outbox_lanes l USING unnest(taken_sinks, taken_lanes) AS t (sink, lane)
    WHERE l.sink = t.sink AND l.lane = t.lane AND l.blocked_at IS NULL
      AND NOT EXISTS (SELECT FROM pgqueue.outbox_deliveries d WHERE d.sink = l.sink AND d.lane = l.lane);
  RETURN QUERY
  SELECT l.sink, l.lane, l.attempts::integer, l.failing_id, o.id, o.uid, o.topic, o.key, o.payload::text, o.headers::text, o.emitted_at,
    greatest(0, extract(epoch FROM clock_timestamp() - o.emitted_at))::double precision
  FROM unnest(taken_sinks, taken_lanes) AS t (sink, lane)
  JOIN pgqueue.outbox_lanes l ON l.sink = t.sink AND l.lane = t.lane
  CROSS JOIN LATERAL (SELECT d.message_id FROM pgqueue.outbox_deliveries d WHERE d.sink = l.sink AND d.lane = l.lane
                      ORDER BY d.message_id LIMIT claim_lanes.run) d
  JOIN pgqueue.outbox o ON o.id = d.message_id
  ORDER BY l.sink, l.lane, o.id;
END $$;
COMMENT ON FUNCTION pgqueue.claim_lanes IS 'Takes lines that are due, as many per sink as wanted, and returns the first messages of each';

-- Counts down who has still to get a message; it leaves with the last. Both rows of a message may be locked by several
-- lines at once, so in the order of the ids.
CREATE FUNCTION pgqueue.forget_deliveries(sink text, lane text, ids bigint[]) RETURNS void
LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
  gone bigint[];
BEGIN
  WITH done AS (
    DELETE FROM pgqueue.outbox_deliveries d WHERE d.sink = forget_deliveries.sink AND d.lane = forget_deliveries.lane
      AND d.message_id = ANY (forget_deliveries.ids) RETURNING d.message_id
  )
  SELECT array_agg(d.message_id) INTO gone FROM done d;
  PERFORM FROM pgqueue.outbox o WHERE o.id = ANY (gone) ORDER BY o.id FOR UPDATE;
  DELETE FROM pgqueue.outbox o WHERE o.id = ANY (gone) AND o.pending <= 1;
  UPDATE pgqueue.outbox o SET pending = o.pending - 1 WHERE o.id = ANY (gone);
END $$;
COMMENT ON FUNCTION pgqueue.forget_deliveries IS 'A sink has these messages, or gave them up';

-- keep_s: the relay goes on with this line and has so long again. fate of the failed message: retry, block, skip.
CREATE FUNCTION pgqueue.settle_lane(sink text, lane text, claim_id uuid, delivered bigint[], failed bigint DEFAULT NULL,
                                    fate text DEFAULT NULL, counts boolean DEFAULT true, reason text DEFAULT NULL,
                                    delay_s double precision DEFAULT 0, error_type text DEFAULT NULL, error_message text DEFAULT NULL,
                                    keep_s double precision DEFAULT NULL)
RETURNS boolean LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  held pgqueue.outbox_lanes;
  moment timestamptz := clock_timestamp();
  tries integer;
  buried bigint;
BEGIN
  SELECT * INTO held FROM pgqueue.outbox_lanes l
    WHERE l.sink = settle_lane.sink AND l.lane = settle_lane.lane AND l.claim_id = settle_lane.claim_id FOR UPDATE;
  IF NOT FOUND THEN
    RETURN false;
  END IF;
  IF held.failing_id = ANY (settle_lane.delivered) OR held.failing_id IS DISTINCT FROM coalesce(settle_lane.failed, held.failing_id) THEN
    held.failing_id := NULL; held.attempts := 0; held.first_failed_at := NULL; held.failed_at := NULL;
    held.error_type := NULL; held.error_message := NULL;
  END IF;
  PERFORM pgqueue.forget_deliveries(settle_lane.sink, settle_lane.lane, settle_lane.delivered);
  IF settle_lane.failed IS NOT NULL THEN
    tries := held.attempts + settle_lane.counts::integer;
    IF settle_lane.fate IN ('block', 'skip') THEN
      INSERT INTO pgqueue.outbox_dead_letters (message_id, sink, uid, topic, key, payload, headers, emitted_at, job_id, reason, blocks,
          attempts, error_type, error_message, first_failed_at, created_at)
        SELECT o.id, settle_lane.sink, o.uid, o.topic, o.key, o.payload, o.headers, o.emitted_at, o.job_id, settle_lane.reason,
          settle_lane.fate = 'block' AND o.key IS NOT NULL, tries, settle_lane.error_type, settle_lane.error_message,
          coalesce(held.first_failed_at, moment), moment
        FROM pgqueue.outbox o JOIN pgqueue.outbox_deliveries d ON d.sink = settle_lane.sink AND d.lane = settle_lane.lane AND d.message_id = o.id
        WHERE o.id = settle_lane.failed
        ON CONFLICT (message_id, sink) DO UPDATE SET reason = excluded.reason, blocks = excluded.blocks, attempts = excluded.attempts,
          error_type = excluded.error_type, error_message = excluded.error_message, created_at = excluded.created_at
        RETURNING CASE WHEN blocks THEN message_id END INTO buried;
      PERFORM pgqueue.forget_deliveries(settle_lane.sink, settle_lane.lane, ARRAY[settle_lane.failed]);
      held.failing_id := buried; held.attempts := 0; held.first_failed_at := NULL; held.failed_at := NULL;
      held.blocked_at := CASE WHEN buried IS NOT NULL THEN moment END;
      held.error_type := settle_lane.error_type; held.error_message := settle_lane.error_message;
    ELSE
      held.failing_id := settle_lane.failed; held.attempts := tries; held.first_failed_at := coalesce(held.first_failed_at, moment);
      held.failed_at := moment; held.error_type := settle_lane.error_type; held.error_message := settle_lane.error_message;
    END IF;
  END IF;
  IF held.blocked_at IS NULL AND NOT EXISTS (SELECT FROM pgqueue.outbox_deliveries d WHERE d.sink = held.sink AND d.lane = held.lane) THEN
    DELETE FROM pgqueue.outbox_lanes l WHERE l.sink = held.sink AND l.lane = held.lane;
    RETURN true;
  END IF;
  UPDATE pgqueue.outbox_lanes l SET failing_id = held.failing_id, attempts = held.attempts, first_failed_at = held.first_failed_at,
      failed_at = held.failed_at, blocked_at = held.blocked_at, error_type = held.error_type, error_message = held.error_message,
      claim_id = CASE WHEN settle_lane.keep_s IS NOT NULL THEN l.claim_id END, relay_id = CASE WHEN settle_lane.keep_s IS NOT NULL THEN l.relay_id END,
      due_at = moment + make_interval(secs => coalesce(settle_lane.keep_s, CASE settle_lane.fate WHEN 'retry' THEN settle_lane.delay_s ELSE 0 END))
    WHERE l.sink = held.sink AND l.lane = held.lane;
  RETURN true;
END $$;
COMMENT ON FUNCTION pgqueue.settle_lane IS 'What became of the messages that a relay took from a line; false if the line is no longer its own';

-- Under the router's lock: a message is either routed by the old subscriptions, or parked before this looks.
CREATE FUNCTION pgqueue.put_subscriptions(defined_in text, wanted jsonb, prune boolean DEFAULT true)
RETURNS TABLE (pattern text, sink text, change text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
  IF NOT EXISTS (
      SELECT w.sink, w.pattern FROM jsonb_to_recordset(wanted) AS w (pattern text, sink text, task text)
      EXCEPT SELECT s.sink, s.pattern FROM pgqueue.outbox_subscriptions s WHERE s.defined_in = put_subscriptions.defined_in)
    AND NOT EXISTS (
      SELECT s.sink, s.pattern FROM pgqueue.outbox_subscriptions s WHERE s.defined_in = put_subscriptions.defined_in AND put_subscriptions.prune
      EXCEPT SELECT w.sink, w.pattern FROM jsonb_to_recordset(wanted) AS w (pattern text, sink text, task text)) THEN
    RETURN;
  END IF;
  PERFORM pg_advisory_xact_lock(hashtextextended('pgqueue outbox router', 0));
  RETURN QUERY
  WITH made AS (
    INSERT INTO pgqueue.outbox_subscriptions AS s (pattern, sink, task, defined_in)
      SELECT DISTINCT w.pattern, w.sink, w.task, put_subscriptions.defined_in
      FROM jsonb_to_recordset(wanted) AS w (pattern text, sink text, task text) ORDER BY 1, 2
      ON CONFLICT DO NOTHING RETURNING s.pattern, s.sink
  ), gone AS (
    DELETE FROM pgqueue.outbox_subscriptions s WHERE s.defined_in = put_subscriptions.defined_in AND put_subscriptions.prune
      AND NOT EXISTS (SELECT FROM jsonb_to_recordset(wanted) AS w (pattern text, sink text) WHERE w.pattern = s.pattern AND w.sink = s.sink)
      RETURNING s.pattern, s.sink
  )
  SELECT m.pattern, m.sink, 'subscribed' FROM made m UNION ALL SELECT g.pattern, g.sink, 'unsubscribed' FROM gone g;
  UPDATE pgqueue.outbox o SET state = 'new' WHERE o.state = 'parked'
    AND EXISTS (SELECT FROM pgqueue.outbox_subscriptions s WHERE pgqueue.topic_matches(o.topic, s.pattern));
END $$;
COMMENT ON FUNCTION pgqueue.put_subscriptions IS 'Makes the subscriptions of one application what its code says, and brings parked messages back that somebody wants now';

CREATE FUNCTION pgqueue.subscribe(pattern text, task text, reason text DEFAULT NULL, actor text DEFAULT NULL, via text DEFAULT NULL)
RETURNS boolean LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  made boolean;
BEGIN
  SELECT bool_or(true) INTO made FROM pgqueue.put_subscriptions('',
    jsonb_build_array(jsonb_build_object('pattern', subscribe.pattern, 'sink', 'task:' || subscribe.task, 'task', subscribe.task)), false);
  IF made THEN
    PERFORM pgqueue.note_operation(subscribe.actor, subscribe.via, 'subscribe', 'topic ' || subscribe.pattern, subscribe.reason,
      detail => jsonb_build_object('task', subscribe.task));
  END IF;
  RETURN coalesce(made, false);
END $$;
COMMENT ON FUNCTION pgqueue.subscribe IS 'Lets messages of a topic, or of ride.*, become jobs of a task; false if they did already';

CREATE FUNCTION pgqueue.unsubscribe(pattern text, task text, reason text DEFAULT NULL, actor text DEFAULT NULL, via text DEFAULT NULL)
RETURNS boolean LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
  DELETE FROM pgqueue.outbox_subscriptions s WHERE s.pattern = unsubscribe.pattern AND s.sink = 'task:' || unsubscribe.task AND s.defined_in = '';
  IF NOT FOUND THEN
    RETURN false;
  END IF;
  PERFORM pgqueue.note_operation(unsubscribe.actor, unsubscribe.via, 'unsubscribe', 'topic ' || unsubscribe.pattern, unsubscribe.reason,
    detail => jsonb_build_object('task', unsubscribe.task));
  RETURN true;
END $$;
COMMENT ON FUNCTION pgqueue.unsubscribe IS 'Takes back what subscribe said; false if it said no such thing';

CREATE FUNCTION pgqueue.replay_message(message_id bigint, sink text DEFAULT NULL, reason text DEFAULT NULL, actor text DEFAULT NULL, via text DEFAULT NULL)
RETURNS text LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  letter pgqueue.outbox_dead_letters;
  line text;
  verdict text := 'unknown';
BEGIN
  FOR letter IN SELECT * FROM pgqueue.outbox_dead_letters d WHERE d.message_id = replay_message.message_id
      AND (replay_message.sink IS NULL OR d.sink = replay_message.sink) ORDER BY d.sink FOR UPDATE LOOP
    line := pgqueue.outbox_lane(letter.key, letter.message_id);
    IF starts_with(letter.sink, 'task:') THEN
      PERFORM pgqueue.put_job(task => substr(letter.sink, 6), args => letter.payload, parent_id => letter.job_id, checked => true,
        headers => coalesce(letter.headers, '{}') || jsonb_strip_nulls(jsonb_build_object('pgqueue.message_id', letter.message_id::text,
          'pgqueue.message_uid', letter.uid, 'pgqueue.topic', letter.topic, 'pgqueue.message_key', letter.key)));
    ELSE
      -- The line first, as everybody; then the message, which may have left.
      INSERT INTO pgqueue.outbox_lanes AS l (sink, lane, due_at) VALUES (letter.sink, line, clock_timestamp())
        ON CONFLICT (sink, lane) DO UPDATE SET
          due_at = CASE WHEN l.claim_id IS NULL THEN clock_timestamp() ELSE l.due_at END,
          blocked_at = CASE WHEN l.failing_id IS DISTINCT FROM letter.message_id THEN l.blocked_at END,
          failing_id = nullif(l.failing_id, letter.message_id);
      INSERT INTO pgqueue.outbox AS o (id, uid, emitted_at, job_id, pending, state, topic, key, payload, headers)
        VALUES (letter.message_id, letter.uid, letter.emitted_at, letter.job_id, 1, 'routed', letter.topic, letter.key, letter.payload, letter.headers)
        ON CONFLICT (id) DO UPDATE SET pending = o.pending + 1;
      INSERT INTO pgqueue.outbox_deliveries (sink, lane, message_id) VALUES (letter.sink, line, letter.message_id);
    END IF;
    DELETE FROM pgqueue.outbox_dead_letters d WHERE d.message_id = letter.message_id AND d.sink = letter.sink;
    PERFORM pgqueue.note_operation(replay_message.actor, replay_message.via, 'replay', 'message ' || letter.message_id, replay_message.reason,
      detail => jsonb_build_object('sink', letter.sink, 'topic', letter.topic, 'was', 'dead', 'attempts', letter.attempts));
    verdict := 'replayed';
  END LOOP;
  UPDATE pgqueue.outbox_lanes l SET due_at = clock_timestamp()
    WHERE l.failing_id = replay_message.message_id AND l.blocked_at IS NULL AND l.claim_id IS NULL
      AND (replay_message.sink IS NULL OR l.sink = replay_message.sink);
  IF FOUND THEN
    PERFORM pgqueue.note_operation(replay_message.actor, replay_message.via, 'replay', 'message ' || replay_message.message_id,
      replay_message.reason, detail => '{"was": "failing"}');
    verdict := 'replayed';
  END IF;
  IF verdict = 'unknown' AND EXISTS (SELECT FROM pgqueue.outbox o WHERE o.id = replay_message.message_id) THEN
    RETURN 'waiting';
  END IF;
  RETURN verdict;
END $$;
COMMENT ON FUNCTION pgqueue.replay_message IS 'Lets a message be delivered again that is a dead letter, or at once if it waits for its next try (replayed); or says waiting or unknown. Without a sink: to all of them';

CREATE FUNCTION pgqueue.skip_message(message_id bigint, sink text DEFAULT NULL, reason text DEFAULT NULL, actor text DEFAULT NULL, via text DEFAULT NULL)
RETURNS text LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  stands record;
  what jsonb;
  skipped jsonb := '[]';
BEGIN
  FOR stands IN DELETE FROM pgqueue.outbox_dead_letters d WHERE d.message_id = skip_message.message_id
      AND (skip_message.sink IS NULL OR d.sink = skip_message.sink) RETURNING d.sink, d.topic, d.key LOOP
    UPDATE pgqueue.outbox_lanes l SET blocked_at = NULL, failing_id = NULL, due_at = clock_timestamp(), error_type = NULL, error_message = NULL
      WHERE l.sink = stands.sink AND l.lane = pgqueue.outbox_lane(stands.key, skip_message.message_id) AND l.failing_id = skip_message.message_id
        AND l.blocked_at IS NOT NULL;
    skipped := skipped || jsonb_build_object('sink', stands.sink, 'topic', stands.topic, 'was', 'dead');
  END LOOP;
  FOR stands IN SELECT l.sink, l.lane, l.claim_id FROM pgqueue.outbox_lanes l WHERE (l.sink, l.lane) IN (
        SELECT d.sink, d.lane FROM pgqueue.outbox_deliveries d WHERE d.message_id = skip_message.message_id
          AND (skip_message.sink IS NULL OR d.sink = skip_message.sink))
      ORDER BY l.sink, l.lane FOR UPDATE LOOP
    PERFORM pgqueue.forget_deliveries(stands.sink, stands.lane, ARRAY[skip_message.message_id]);
    -- A relay that is at it goes on; its word about this message finds no row.
    UPDATE pgqueue.outbox_lanes l SET failing_id = NULL, attempts = 0, first_failed_at = NULL, failed_at = NULL, error_type = NULL,
        error_message = NULL, due_at = CASE WHEN l.claim_id IS NULL THEN clock_timestamp() ELSE l.due_at END
      WHERE l.sink = stands.sink AND l.lane = stands.lane AND l.failing_id = skip_message.message_id;
    skipped := skipped || jsonb_build_object('sink', stands.sink, 'was', 'waiting');
  END LOOP;
  IF skip_message.sink IS NULL THEN
    DELETE FROM pgqueue.outbox o WHERE o.id = skip_message.message_id AND o.state <> 'routed'
      RETURNING jsonb_build_object('topic', o.topic, 'was', o.state) INTO what;
    skipped := skipped || coalesce(what, '[]');
  END IF;
  IF skipped = '[]' THEN
    RETURN 'unknown';
  END IF;
  PERFORM pgqueue.note_operation(skip_message.actor, skip_message.via, 'skip', 'message ' || skip_message.message_id, skip_message.reason,
    detail => jsonb_build_object('from', skipped));
  RETURN 'skipped';
END $$;
COMMENT ON FUNCTION pgqueue.skip_message IS 'Gives a message up, as a dead letter or in its line, and lets its key go on: skipped, or unknown. Without a sink: for all of them';

CREATE VIEW pgqueue.outbox_status AS
WITH looked AS (
  SELECT o.id, o.topic, o.state, o.emitted_at FROM pgqueue.outbox o ORDER BY o.id LIMIT 100001
), waiting AS (
  SELECT l.topic, count(*) AS pending, count(*) FILTER (WHERE l.state = 'new') AS unrouted, count(*) FILTER (WHERE l.state = 'parked') AS parked,
    min(l.emitted_at) FILTER (WHERE l.state <> 'parked') AS oldest_at
  FROM looked l GROUP BY l.topic
), failing AS (
  SELECT o.topic, count(*) AS failing FROM pgqueue.outbox_lanes l JOIN pgqueue.outbox o ON o.id = l.failing_id
  WHERE l.blocked_at IS NULL AND l.failing_id IS NOT NULL GROUP BY o.topic
), dead AS (
  SELECT d.topic, count(*) AS dead, count(DISTINCT d.key) FILTER (WHERE d.blocks) AS blocked_keys
  FROM (SELECT d.topic, d.key, d.blocks FROM pgqueue.outbox_dead_letters d ORDER BY d.message_id, d.sink LIMIT 100001) d GROUP BY d.topic
)
SELECT t.topic, coalesce(w.pending, 0) AS pending, coalesce(w.unrouted, 0) AS unrouted, coalesce(w.parked, 0) AS parked,
  coalesce(f.failing, 0) AS failing, coalesce(d.blocked_keys, 0) AS blocked_keys, coalesce(d.dead, 0) AS dead, w.oldest_at,
  coalesce(greatest(0, extract(epoch FROM clock_timestamp() - w.oldest_at)), 0)::double precision AS oldest_age_s,
  (SELECT count(DISTINCT s.sink) FROM pgqueue.outbox_subscriptions s WHERE pgqueue.topic_matches(t.topic, s.pattern)) AS subscribers
FROM (SELECT w.topic FROM waiting w UNION SELECT d.topic FROM dead d UNION SELECT f.topic FROM failing f
      UNION SELECT s.pattern FROM pgqueue.outbox_subscriptions s WHERE right(s.pattern, 1) <> '*') t (topic)
LEFT JOIN waiting w ON w.topic = t.topic LEFT JOIN failing f ON f.topic = t.topic LEFT JOIN dead d ON d.topic = t.topic;
COMMENT ON VIEW pgqueue.outbox_status IS 'One row per topic: what waits, since when, what fails; looks at the oldest 100,001 messages. Parked ones, which nobody subscribes to, do not count as late';

-- The one door through which jobs come in. Python calls enqueue_job and enqueue_jobs; people and other
-- languages call enqueue and enqueue_many. All run in the caller's transaction.
-- Written for one call per transaction: there each PL/pgSQL expression is prepared anew (1-2 us), so the common
-- case is one test and one statement, and the helpers have no SET search_path of their own: they run inside
-- functions that fixed it.

-- Refuses what Python refuses before it sends anything, in the same words; SQLSTATE 22023. Returns true, so that
-- it may be called as a plain expression. One look at everything first, the search for the culprit after it.
CREATE FUNCTION pgqueue.check_job(task text, args jsonb, queue text, priority integer, delay interval, run_at timestamptz,
                                  idempotency_key text, key_ttl interval, headers jsonb, max_attempts integer)
RETURNS boolean LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
BEGIN
  IF length(task) <= 200 AND task ~ '^[A-Za-z_][A-Za-z0-9_-]*(?:\.[A-Za-z_][A-Za-z0-9_-]*)*$' AND jsonb_typeof(args) = 'object'
      AND octet_length(args::text) <= 128 AND (queue IS NULL OR queue ~ '^[a-z][a-z0-9_.-]{0,62}$')
      AND coalesce(priority, 0) BETWEEN 0 AND 9 AND coalesce(max_attempts, 1) BETWEEN 1 AND 1001
      AND num_nonnulls(delay, run_at, idempotency_key, key_ttl, headers) = 0 THEN
    RETURN true;
  END IF;
  IF task IS NULL OR length(task) > 200 OR task !~ '^[A-Za-z_][A-Za-z0-9_-]*(?:\.[A-Za-z_][A-Za-z0-9_-]*)*$' THEN
    RAISE EXCEPTION 'task: must be identifiers joined by dots, each of ASCII letters, digits, _ and - and not starting with a digit (limit: 1-200 characters)'
      USING ERRCODE = '22023';
  END IF;
  PERFORM pgqueue.check_args('args', args);
  IF queue !~ '^[a-z][a-z0-9_.-]{0,62}$' THEN
    RAISE EXCEPTION 'queue: must start with a lower-case letter and hold only a-z, 0-9, _, . and -; rename the queue (limit: 1-63 characters)'
      USING ERRCODE = '22023';
  END IF;
  IF priority NOT BETWEEN 0 AND 9 THEN
    RAISE EXCEPTION 'priority: is out of range (limit: 0-9, 0 runs first)' USING ERRCODE = '22023';
  END IF;
  IF delay IS NOT NULL THEN
    IF run_at IS NOT NULL THEN
      RAISE EXCEPTION 'delay: is given together with run_at; give one of them' USING ERRCODE = '22023';
    ELSIF delay < interval '0' THEN
      RAISE EXCEPTION 'delay: must not be negative (limit: >= 0s)' USING ERRCODE = '22023';
    ELSIF delay > interval '3652 days 12:00' THEN
      RAISE EXCEPTION 'delay: is too long (limit: <= 3652d 12h)' USING ERRCODE = '22023';
    END IF;
  ELSIF run_at >= '9999-01-01 00:00:00+00' THEN
    RAISE EXCEPTION 'run_at: lies too far in the future (limit: year <= 9998)' USING ERRCODE = '22023';
  ELSIF NOT isfinite(run_at) THEN
    RAISE EXCEPTION 'run_at: is not a moment' USING ERRCODE = '22023';
  END IF;
  IF idempotency_key IS NOT NULL THEN
    PERFORM pgqueue.check_key('idempotency_key', idempotency_key);
  END IF;
  IF key_ttl IS NOT NULL THEN
    IF key_ttl < interval '1 ms' THEN
      RAISE EXCEPTION 'key_ttl: is too short (limit: >= 1ms)' USING ERRCODE = '22023';
    ELSIF key_ttl > interval '3652 days 12:00' THEN
      RAISE EXCEPTION 'key_ttl: is too long (limit: <= 3652d 12h)' USING ERRCODE = '22023';
    END IF;
  END IF;
  IF headers IS NOT NULL THEN
    PERFORM pgqueue.check_headers(headers);
  END IF;
  IF max_attempts NOT BETWEEN 1 AND 1001 THEN
    RAISE EXCEPTION 'max_attempts: is out of range (limit: 1-1001)' USING ERRCODE = '22023';
  END IF;
  RETURN true;
END $$;
COMMENT ON FUNCTION pgqueue.check_job IS 'True, or raises 22023 with one clear line if a job may not be enqueued like this';

CREATE FUNCTION pgqueue.check_key(field text, key text) RETURNS void LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
BEGIN
  IF key = '' THEN
    RAISE EXCEPTION '%: is empty (limit: 1-200 bytes)', field USING ERRCODE = '22023';
  ELSIF octet_length(key) > 200 THEN
    RAISE EXCEPTION '%: is too long; pass a digest of it (limit: 1-200 bytes)', field USING ERRCODE = '22023';
  ELSIF key ~ '[\u0001-\u001f\u007f-\u009f]' THEN
    RAISE EXCEPTION '%: holds a control character (limit: 1-200 bytes)', field USING ERRCODE = '22023';
  END IF;
END $$;
COMMENT ON FUNCTION pgqueue.check_key IS 'Raises 22023 if a key is empty, too long or unprintable';

CREATE FUNCTION pgqueue.check_headers(headers jsonb) RETURNS void LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
BEGIN
  IF jsonb_typeof(headers) <> 'object' OR octet_length(headers::text) > 8192 THEN
    RAISE EXCEPTION 'headers: must be a JSON object of text to text (limit: <= 8192 bytes as JSON)' USING ERRCODE = '22023';
  END IF;
  IF EXISTS (SELECT FROM jsonb_each(headers) h
             WHERE jsonb_typeof(h.value) <> 'string' OR length(h.key) NOT BETWEEN 1 AND 200 OR h.key ~ '[\u0001-\u001f\u007f-\u009f]'
               OR h.value #>> '{}' ~ '[\u0001-\u0008\u000a-\u001f\u007f-\u009f]') THEN
    RAISE EXCEPTION 'headers: must be a JSON object of text to text without control characters, its names 1-200 characters long' USING ERRCODE = '22023';
  END IF;
END $$;
COMMENT ON FUNCTION pgqueue.check_headers IS 'Raises 22023 if headers are not a small map of text to text';

-- The text is measured, not the column: numbers take up to six times as much in jsonb as in JSON, and a value
-- read from a table may come compressed. 63 levels down only scalars may stand.
CREATE FUNCTION pgqueue.check_args(field text, args jsonb) RETURNS void LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
  bytes integer := octet_length(args::text);
BEGIN
  IF args IS NULL OR jsonb_typeof(args) <> 'object' THEN
    RAISE EXCEPTION '%: must be a JSON object; pass the arguments by name, as in {"ride_id": 7}', field USING ERRCODE = '22023';
  ELSIF bytes > 262144 THEN
    RAISE EXCEPTION '%: are too large; store the data in a table and pass its id (limit: 262144 bytes)', field USING ERRCODE = '22023';
  ELSIF bytes > 128 AND jsonb_path_exists(args, 'strict $.**{64} ? (@.type() == "object" || @.type() == "array")') THEN
    RAISE EXCEPTION '%: are nested too deep (limit: 64 levels)', field USING ERRCODE = '22023';
  END IF;
END $$;
COMMENT ON FUNCTION pgqueue.check_args IS 'Raises 22023 if a job''s arguments are not an object, too large or nested too deep';

-- The options that only enqueue_job and enqueue_jobs take.
CREATE FUNCTION pgqueue.check_options(retry jsonb, timeout_s double precision, expires_at timestamptz, concurrency_key text, tags text[])
RETURNS boolean LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
BEGIN
  IF num_nonnulls(retry, timeout_s, expires_at, concurrency_key, tags) = 0 THEN
    RETURN true;
  ELSIF jsonb_typeof(retry) <> 'object' THEN
    RAISE EXCEPTION 'retry: must be a JSON object' USING ERRCODE = '22023';
  ELSIF NOT timeout_s BETWEEN 0.001 AND 315576000 THEN
    RAISE EXCEPTION 'timeout: is out of range (limit: 1ms to 3652d 12h)' USING ERRCODE = '22023';
  ELSIF expires_at >= '9999-01-01 00:00:00+00' OR NOT isfinite(expires_at) THEN
    RAISE EXCEPTION 'expires_at: is not a moment before the year 9999' USING ERRCODE = '22023';
  ELSIF cardinality(tags) > 20 OR EXISTS (SELECT FROM unnest(tags) t (tag) WHERE t.tag IS NULL OR length(t.tag) NOT BETWEEN 1 AND 60) THEN
    RAISE EXCEPTION 'tags: must be at most 20 texts of 1-60 characters' USING ERRCODE = '22023';
  ELSIF concurrency_key IS NOT NULL THEN
    PERFORM pgqueue.check_key('concurrency_key', concurrency_key);
  END IF;
  RETURN true;
END $$;
COMMENT ON FUNCTION pgqueue.check_options IS 'True, or raises 22023 if one of the rarer options of a job is out of bounds';

-- The options of a key. `keyed`: whether there is one.
CREATE FUNCTION pgqueue.check_key_options(keyed boolean, key_ttl interval, key_scope text, on_conflict text)
RETURNS boolean LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
BEGIN
  IF num_nonnulls(key_scope, on_conflict) = 0 THEN
    RETURN true;
  ELSIF key_scope NOT IN ('time', 'forever', 'live', 'waiting') THEN
    RAISE EXCEPTION 'key_scope: unknown; there are time, forever, live and waiting' USING ERRCODE = '22023';
  ELSIF on_conflict NOT IN ('return_existing', 'raise', 'replace') THEN
    RAISE EXCEPTION 'on_conflict: unknown; there are return_existing, raise and replace' USING ERRCODE = '22023';
  ELSIF NOT keyed THEN
    RAISE EXCEPTION '%: is given without idempotency_key; it says how that key is used',
      CASE WHEN key_scope IS NOT NULL THEN 'key_scope' ELSE 'on_conflict' END USING ERRCODE = '22023';
  ELSIF key_ttl IS NOT NULL AND key_scope <> 'time' THEN
    RAISE EXCEPTION 'key_ttl: is given together with key_scope %, which ends otherwise; give one of them', key_scope USING ERRCODE = '22023';
  END IF;
  RETURN true;
END $$;
COMMENT ON FUNCTION pgqueue.check_key_options IS 'True, or raises 22023 if a key''s life or the answer to a second use is none that we know';

-- Whether a key still belongs to its job. A job that waits stays as it is until the caller's transaction ends: a
-- worker that began it now would not see what the caller is about to commit, and the caller was told that it will.
CREATE FUNCTION pgqueue.key_is_held(scope text, expires_at timestamptz, job_id bigint)
RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$
BEGIN
  IF scope = 'live' THEN
    RETURN EXISTS (SELECT FROM pgqueue.jobs j WHERE j.id = key_is_held.job_id);
  ELSIF scope = 'waiting' THEN
    PERFORM FROM pgqueue.jobs j
      WHERE j.id = key_is_held.job_id AND j.state IN ('ready', 'scheduled', 'held') AND j.attempt = 0 AND j.errors IS NULL
      FOR KEY SHARE;
    RETURN FOUND;
  END IF;
  RETURN expires_at > clock_timestamp();
END $$;
COMMENT ON FUNCTION pgqueue.key_is_held IS 'Whether a key is taken: by its expiry, or by where its job stands';

-- Takes the key, or tells who has it. A conflict is looked at in a second statement: one statement sees
-- nothing after it waited for the other's commit.
CREATE FUNCTION pgqueue.take_key(task text, key text, ttl interval, key_scope text DEFAULT NULL, for_job bigint DEFAULT NULL, OUT job_id bigint, OUT taken boolean)
LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
  moment timestamptz := clock_timestamp();
  until timestamptz := CASE coalesce(take_key.key_scope, 'time') WHEN 'time' THEN moment + coalesce(take_key.ttl, interval '24 hours')
    WHEN 'forever' THEN 'infinity' ELSE moment + interval '1 minute' END;
  holder record;
BEGIN
  LOOP
    INSERT INTO pgqueue.dedup_keys AS k (task, key, job_id, created_at, expires_at, scope)
      VALUES (take_key.task, take_key.key, coalesce(take_key.for_job, nextval('pgqueue.job_seq')), moment, until,
        coalesce(take_key.key_scope, 'time'))
      ON CONFLICT (task, key) DO NOTHING
      RETURNING k.job_id INTO take_key.job_id;
    IF FOUND THEN
      take_key.taken := true;
      RETURN;
    END IF;
    SELECT k.job_id, k.expires_at, k.scope INTO holder FROM pgqueue.dedup_keys k WHERE k.task = take_key.task AND k.key = take_key.key;
    IF FOUND AND pgqueue.key_is_held(holder.scope, holder.expires_at, holder.job_id) THEN
      take_key.job_id := holder.job_id;
      take_key.taken := false;
      RETURN;
    END IF;
    -- Free again: the first to update it owns it; whoever comes second finds another job there and goes round.
    UPDATE pgqueue.dedup_keys k
      SET job_id = coalesce(take_key.for_job, nextval('pgqueue.job_seq')), created_at = moment, expires_at = until,
        scope = coalesce(take_key.key_scope, 'time'), result = NULL
      WHERE k.task = take_key.task AND k.key = take_key.key AND k.job_id = holder.job_id AND k.expires_at = holder.expires_at
      RETURNING k.job_id INTO take_key.job_id;
    IF FOUND THEN
      take_key.taken := true;
      RETURN;
    END IF;
  END LOOP;
END $$;
COMMENT ON FUNCTION pgqueue.take_key IS 'Takes an idempotency key for a job id (NULL: a new one), or returns the id of the job that has it';

-- The answer to a second use of a key that wants the waiting job to be as the newest call says.
CREATE FUNCTION pgqueue.replace_job(job_id bigint, args jsonb, headers jsonb, delay interval, run_at timestamptz, expires_at timestamptz)
RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
  moment timestamptz := clock_timestamp();
  due timestamptz := greatest(moment, replace_job.run_at, moment + replace_job.delay);
  old pgqueue.jobs;
  next_state text;
BEGIN
  -- A job that has begun once may have left traces of its old arguments: recorded steps, calls to others.
  SELECT * INTO old FROM pgqueue.jobs j
    WHERE j.id = replace_job.job_id AND j.state IN ('ready', 'scheduled', 'held') AND j.attempt = 0 AND j.errors IS NULL
      AND NOT EXISTS (SELECT FROM pgqueue.job_steps s WHERE s.job_id = j.id)
    FOR UPDATE;
  IF NOT FOUND THEN
    RETURN false;
  END IF;
  next_state := CASE WHEN old.state = 'held' THEN 'held' WHEN due > moment THEN 'scheduled' ELSE 'ready' END;
  UPDATE pgqueue.jobs j
    SET args = replace_job.args, headers = replace_job.headers, expires_at = replace_job.expires_at, state = next_state,
      run_at = CASE WHEN j.hold_reason = 'window' THEN j.run_at ELSE due END,  -- a window's jobs start together
      batch_key = CASE WHEN j.hold_reason = 'window'
        THEN pgqueue.batch_key(replace_job.args, (SELECT t.batch_key FROM pgqueue.tasks t WHERE t.name = j.task)) ELSE j.batch_key END,
      ready_seq = CASE next_state WHEN 'ready' THEN coalesce(j.ready_seq, nextval('pgqueue.job_seq')) END
    WHERE j.id = old.id;
  IF next_state <> old.state THEN
    INSERT INTO pgqueue.job_transitions (job_id, from_state, to_state, reason, actor, queue, task, next_run_at)
      VALUES (old.id, old.state, next_state, 'rescheduled', session_user, old.queue, old.task, due);
    IF next_state = 'ready' THEN
      PERFORM pgqueue.wake(old.queue);
    END IF;
  END IF;
  RETURN true;
END $$;
COMMENT ON FUNCTION pgqueue.replace_job IS 'Gives a job that waits for its first start new arguments and a new time; false if it no longer waits';

-- What a call gets whose key had a job already: minus the job's id; minus 2^62 more if that job was changed by it.
CREATE FUNCTION pgqueue.meet_key(job_id bigint, task text, on_conflict text, args jsonb, headers jsonb, delay interval,
                                 run_at timestamptz, expires_at timestamptz)
RETURNS bigint LANGUAGE plpgsql VOLATILE AS $$
BEGIN
  IF on_conflict = 'raise' THEN
    RAISE EXCEPTION 'task %: job % has this idempotency key already, nothing was enqueued; use that job, or another key', task, job_id
      USING ERRCODE = 'PQ013';
  ELSIF on_conflict = 'replace' THEN  -- not with AND: of NULL AND a function, the function is called
    IF pgqueue.replace_job(job_id, args, headers, delay, run_at, expires_at) THEN
      RETURN -job_id - 4611686018427387904;
    END IF;
  END IF;
  RETURN -job_id;
END $$;
COMMENT ON FUNCTION pgqueue.meet_key IS 'Answers a call whose idempotency key has a job, as its on_conflict asks';

CREATE FUNCTION pgqueue.wake(queue text) RETURNS void
LANGUAGE plpgsql VOLATILE AS $$
BEGIN
  -- A notifying commit serialises all notifying commits of the cluster, so only sleepers are notified.
  IF EXISTS (SELECT FROM pgqueue.sleepers s WHERE s.queue = wake.queue) THEN
    PERFORM pg_notify('pgqueue_wake', '');
  END IF;
END $$;
COMMENT ON FUNCTION pgqueue.wake IS 'Notifies at commit, if a worker of the queue sleeps';

-- Windows begin at whole multiples of their length since a Monday, so that every producer finds the same one by the
-- clock alone: nothing is opened, nobody waits, and nothing is lost with whoever came first.
CREATE FUNCTION pgqueue.window_end(moment timestamptz, window_s double precision) RETURNS timestamptz LANGUAGE sql STABLE PARALLEL SAFE AS $$
  SELECT date_bin(make_interval(secs => window_s), moment, '2000-01-03 00:00:00+00') + make_interval(secs => window_s)
$$;
COMMENT ON FUNCTION pgqueue.window_end IS 'The end of the window of this length that a moment lies in';

CREATE FUNCTION pgqueue.batch_key(args jsonb, name text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
  SELECT CASE WHEN octet_length(v.value) > 200 THEN md5(v.value) ELSE coalesce(v.value, '') END FROM (SELECT args ->> name) AS v (value)
$$;
COMMENT ON FUNCTION pgqueue.batch_key IS 'The value of a job''s argument as the key of its window: cut to a digest if it is long, empty if there is none';

-- One number instead of a row: a scalar in the SELECT list needs no tuplestore (10 us). Its sign tells what
-- created tells elsewhere: negative when the key already had a job, below -2^62 when that job was replaced.
-- checked: the caller has applied these rules itself, with its own limit of size; the table's CHECKs remain.
CREATE FUNCTION pgqueue.put_job(
  task text, args jsonb DEFAULT '{}', queue text DEFAULT NULL, priority integer DEFAULT NULL, delay interval DEFAULT NULL,
  run_at timestamptz DEFAULT NULL, idempotency_key text DEFAULT NULL, key_ttl interval DEFAULT NULL, headers jsonb DEFAULT NULL,
  max_attempts integer DEFAULT NULL, retry jsonb DEFAULT NULL, timeout_s double precision DEFAULT NULL,
  expires_at timestamptz DEFAULT NULL, concurrency_key text DEFAULT NULL, tags text[] DEFAULT NULL,
  parent_id bigint DEFAULT NULL, wake boolean DEFAULT true, checked boolean DEFAULT false,
  window_s double precision DEFAULT NULL, batch_key text DEFAULT NULL, key_scope text DEFAULT NULL, on_conflict text DEFAULT NULL,
  audit boolean DEFAULT NULL)
RETURNS bigint LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  job_id bigint;
  moment timestamptz;
  known record;
  first record;
  asleep boolean;
BEGIN
  IF put_job.checked AND put_job.idempotency_key IS NULL AND put_job.queue IS NOT NULL AND put_job.priority IS NOT NULL
      AND put_job.max_attempts IS NOT NULL AND put_job.window_s = 0 AND put_job.audit IS NOT TRUE THEN
    job_id := nextval('pgqueue.job_seq');
  ELSE
    IF NOT put_job.checked THEN
      put_job.checked := pgqueue.check_job(put_job.task, put_job.args, put_job.queue, put_job.priority, put_job.delay,
        put_job.run_at, put_job.idempotency_key, put_job.key_ttl, put_job.headers, put_job.max_attempts)
        AND pgqueue.check_options(put_job.retry, put_job.timeout_s, put_job.expires_at, put_job.concurrency_key, put_job.tags)
        AND pgqueue.check_key_options(put_job.idempotency_key IS NOT NULL, put_job.key_ttl, put_job.key_scope, put_job.on_conflict);
    END IF;
    IF put_job.queue IS NULL OR put_job.priority IS NULL OR put_job.max_attempts IS NULL OR put_job.window_s IS NULL THEN
      SELECT t.queue, t.priority, t.max_attempts, t.batch_window_s, t.batch_key, t.audit_full INTO known FROM pgqueue.tasks t WHERE t.name = put_job.task;
      -- Who knows the task's attempts has its code, and knows whether it has a window.
      IF put_job.window_s IS NULL OR put_job.max_attempts IS NULL THEN
        put_job.window_s := known.batch_window_s;
        put_job.batch_key := known.batch_key;
      END IF;
      put_job.queue := coalesce(put_job.queue, known.queue, 'default');
      put_job.priority := coalesce(put_job.priority, known.priority, 5);
      put_job.max_attempts := coalesce(put_job.max_attempts, known.max_attempts, 6);
      put_job.audit := coalesce(put_job.audit, known.audit_full);
    END IF;
    IF put_job.idempotency_key IS NULL THEN
      job_id := nextval('pgqueue.job_seq');
    ELSE
      first := pgqueue.take_key(put_job.task, put_job.idempotency_key, put_job.key_ttl, put_job.key_scope, NULL);
      job_id := first.job_id;
      IF NOT first.taken AND put_job.on_conflict IS NULL THEN
        RETURN -job_id;
      ELSIF NOT first.taken THEN
        RETURN pgqueue.meet_key(job_id, put_job.task, put_job.on_conflict, put_job.args, put_job.headers, put_job.delay, put_job.run_at,
          put_job.expires_at);
      END IF;
    END IF;
    IF put_job.audit THEN
      INSERT INTO pgqueue.job_transitions (job_id, to_state, reason, actor, queue, task)
        VALUES (job_id, CASE WHEN put_job.window_s > 0 THEN 'held'
            WHEN put_job.run_at > clock_timestamp() OR put_job.delay > interval '0' THEN 'scheduled' ELSE 'ready' END,
          'enqueued', session_user, put_job.queue, put_job.task);
    END IF;
    IF put_job.window_s > 0 THEN
      moment := clock_timestamp();
      INSERT INTO pgqueue.jobs (id, created_at, run_at, priority, max_attempts, state, hold_reason, batch_key, queue, task, args, headers,
          tags, idempotency_key, concurrency_key, timeout_s, expires_at, retry, parent_id)
        VALUES (job_id, moment, pgqueue.window_end(greatest(moment, put_job.run_at, moment + put_job.delay), put_job.window_s),
          put_job.priority, put_job.max_attempts, 'held', 'window', pgqueue.batch_key(put_job.args, put_job.batch_key), put_job.queue,
          put_job.task, put_job.args, put_job.headers, put_job.tags, put_job.idempotency_key, put_job.concurrency_key, put_job.timeout_s,
          put_job.expires_at, put_job.retry, put_job.parent_id);
      RETURN job_id;
    END IF;
  END IF;

  -- clock_timestamp, not now(): a job enqueued late in a long transaction is not late.
  moment := clock_timestamp();
  INSERT INTO pgqueue.jobs AS j (id, created_at, run_at, ready_seq, priority, max_attempts, state, queue, task, args, headers, tags,
      idempotency_key, concurrency_key, timeout_s, expires_at, retry, parent_id)
    VALUES (job_id, moment, greatest(moment, put_job.run_at, moment + put_job.delay),
      CASE WHEN greatest(moment, put_job.run_at, moment + put_job.delay) = moment THEN job_id END,
      put_job.priority, put_job.max_attempts,
      CASE WHEN greatest(moment, put_job.run_at, moment + put_job.delay) = moment THEN 'ready' ELSE 'scheduled' END,
      put_job.queue, put_job.task, put_job.args, put_job.headers, put_job.tags, put_job.idempotency_key,
      put_job.concurrency_key, put_job.timeout_s, put_job.expires_at, put_job.retry, put_job.parent_id)
    -- As wake() does, without a statement of its own.
    RETURNING CASE WHEN put_job.wake AND j.state = 'ready' AND EXISTS (SELECT FROM pgqueue.sleepers s WHERE s.queue = j.queue)
      THEN pg_notify('pgqueue_wake', '') IS NOT NULL END INTO asleep;
  RETURN job_id;
END $$;
COMMENT ON FUNCTION pgqueue.put_job IS 'As enqueue_job; returns the id, negative when the idempotency key already had a job, 2^62 less when that job was replaced';

CREATE FUNCTION pgqueue.enqueue_job(
  task text, args jsonb DEFAULT '{}', queue text DEFAULT NULL, priority integer DEFAULT NULL, delay interval DEFAULT NULL,
  run_at timestamptz DEFAULT NULL, idempotency_key text DEFAULT NULL, key_ttl interval DEFAULT NULL, headers jsonb DEFAULT NULL,
  max_attempts integer DEFAULT NULL, retry jsonb DEFAULT NULL, timeout_s double precision DEFAULT NULL,
  expires_at timestamptz DEFAULT NULL, concurrency_key text DEFAULT NULL, tags text[] DEFAULT NULL,
  parent_id bigint DEFAULT NULL, wake boolean DEFAULT true, checked boolean DEFAULT false, key_scope text DEFAULT NULL,
  on_conflict text DEFAULT NULL,
  OUT job_id bigint, OUT created boolean, OUT replaced boolean)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  job_id := pgqueue.put_job(task, args, queue, priority, delay, run_at, idempotency_key, key_ttl, headers, max_attempts, retry,
    timeout_s, expires_at, concurrency_key, tags, parent_id, wake, checked, key_scope => key_scope, on_conflict => on_conflict);
  created := job_id > 0;
  replaced := job_id < -4611686018427387904;
  job_id := abs(job_id) & 4611686018427387903;
END $$;
COMMENT ON FUNCTION pgqueue.enqueue_job IS 'Enqueues one job in the caller''s transaction; created is false when the idempotency key already had a job, whose id is returned; replaced, when that job has the new arguments and time';

-- Many jobs of one task, their arguments as one JSON array: one text to send and one to parse. Returns the ids in
-- the order given, with the sign as in put_job.
CREATE FUNCTION pgqueue.put_jobs(
  task text, args jsonb, queue text DEFAULT NULL, priority integer DEFAULT NULL, delay interval DEFAULT NULL,
  run_at timestamptz DEFAULT NULL, idempotency_keys text[] DEFAULT NULL, key_ttl interval DEFAULT NULL, headers jsonb DEFAULT NULL,
  max_attempts integer DEFAULT NULL, retry jsonb DEFAULT NULL, timeout_s double precision DEFAULT NULL,
  expires_at timestamptz DEFAULT NULL, concurrency_key text DEFAULT NULL, tags text[] DEFAULT NULL,
  parent_id bigint DEFAULT NULL, wake boolean DEFAULT true, checked boolean DEFAULT false,
  window_s double precision DEFAULT NULL, batch_key text DEFAULT NULL, key_scope text DEFAULT NULL, on_conflict text DEFAULT NULL,
  audit boolean DEFAULT NULL)
RETURNS bigint[] LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  moment timestamptz;
  due timestamptz;
  known record;
  ids bigint[];
  row record;
  first record;
BEGIN
  IF args IS NULL OR jsonb_typeof(args) <> 'array' THEN
    RAISE EXCEPTION 'args: must be an array of JSON objects, one per job' USING ERRCODE = '22023';
  END IF;
  IF cardinality(put_jobs.idempotency_keys) <> jsonb_array_length(args) OR array_ndims(put_jobs.idempotency_keys) > 1 THEN
    RAISE EXCEPTION 'idempotency_keys: % for % jobs; give one per job', cardinality(put_jobs.idempotency_keys), jsonb_array_length(args)
      USING ERRCODE = '22023';
  END IF;
  IF NOT put_jobs.checked THEN
    PERFORM pgqueue.check_job(put_jobs.task, '{}', put_jobs.queue, put_jobs.priority, put_jobs.delay, put_jobs.run_at, NULL,
      put_jobs.key_ttl, put_jobs.headers, put_jobs.max_attempts),
      pgqueue.check_options(put_jobs.retry, put_jobs.timeout_s, put_jobs.expires_at, put_jobs.concurrency_key, put_jobs.tags),
      pgqueue.check_key_options(put_jobs.idempotency_keys IS NOT NULL, put_jobs.key_ttl, put_jobs.key_scope, put_jobs.on_conflict);
    PERFORM pgqueue.check_args(format('args[%s]', a.i - 1), a.arg)
      FROM jsonb_array_elements(args) WITH ORDINALITY AS a (arg, i);
    PERFORM pgqueue.check_key(format('idempotency_keys[%s]', k.i - 1), k.key)
      FROM unnest(put_jobs.idempotency_keys) WITH ORDINALITY AS k (key, i) WHERE k.key IS NOT NULL;
  END IF;
  SELECT t.queue, t.priority, t.max_attempts, t.batch_window_s, t.batch_key, t.audit_full INTO known FROM pgqueue.tasks t WHERE t.name = put_jobs.task;
  IF put_jobs.window_s IS NULL OR put_jobs.max_attempts IS NULL THEN
    put_jobs.window_s := known.batch_window_s;
    put_jobs.batch_key := known.batch_key;
  END IF;
  put_jobs.queue := coalesce(put_jobs.queue, known.queue, 'default');
  put_jobs.priority := coalesce(put_jobs.priority, known.priority, 5);
  put_jobs.max_attempts := coalesce(put_jobs.max_attempts, known.max_attempts, 6);

  ids := ARRAY(SELECT CASE WHEN k.key IS NULL THEN nextval('pgqueue.job_seq') END
    FROM generate_series(1, jsonb_array_length(args)) WITH ORDINALITY AS g (_, i)
      LEFT JOIN unnest(put_jobs.idempotency_keys) WITH ORDINALITY AS k (key, i) ON k.i = g.i ORDER BY g.i);
  -- In the order of the keys, so that two producers with overlapping batches cannot deadlock.
  FOR row IN SELECT k.key, k.i, lag(k.i) OVER (PARTITION BY k.key ORDER BY k.i) AS before
             FROM unnest(put_jobs.idempotency_keys) WITH ORDINALITY AS k (key, i)
             WHERE k.key IS NOT NULL ORDER BY k.key COLLATE "C", k.i LOOP
    IF ids[row.before] > 0 THEN
      -- Twice in this very call, and the first is not in the table yet. Of two that replace each other the last stays.
      IF put_jobs.on_conflict = 'replace' THEN
        ids[row.i] := ids[row.before];
        ids[row.before] := -ids[row.before];
      ELSE
        ids[row.i] := pgqueue.meet_key(ids[row.before], put_jobs.task, put_jobs.on_conflict, NULL, NULL, NULL, NULL, NULL);
      END IF;
      CONTINUE;
    END IF;
    first := pgqueue.take_key(put_jobs.task, row.key, put_jobs.key_ttl, put_jobs.key_scope, NULL);
    ids[row.i] := CASE WHEN first.taken THEN first.job_id
      ELSE pgqueue.meet_key(first.job_id, put_jobs.task, put_jobs.on_conflict, put_jobs.args -> (row.i - 1)::integer, put_jobs.headers,
        put_jobs.delay, put_jobs.run_at, put_jobs.expires_at) END;
  END LOOP;

  moment := clock_timestamp();
  due := greatest(moment, put_jobs.run_at, moment + put_jobs.delay);
  IF put_jobs.window_s > 0 THEN
    due := pgqueue.window_end(due, put_jobs.window_s);
  END IF;
  INSERT INTO pgqueue.jobs (id, created_at, run_at, ready_seq, priority, max_attempts, state, queue, task, args, headers, tags,
      idempotency_key, concurrency_key, timeout_s, expires_at, retry, parent_id, hold_reason, batch_key)
    SELECT j.id, moment, due, CASE WHEN due = moment THEN j.id END, put_jobs.priority, put_jobs.max_attempts,
      CASE WHEN put_jobs.window_s > 0 THEN 'held' WHEN due = moment THEN 'ready' ELSE 'scheduled' END, put_jobs.queue, put_jobs.task, j.arg,
      put_jobs.headers, put_jobs.tags, j.key, put_jobs.concurrency_key, put_jobs.timeout_s,
      put_jobs.expires_at, put_jobs.retry, put_jobs.parent_id,
      CASE WHEN put_jobs.window_s > 0 THEN 'window' END,
      CASE WHEN put_jobs.window_s > 0 THEN pgqueue.batch_key(j.arg, put_jobs.batch_key) END
    FROM ROWS FROM (unnest(ids), jsonb_array_elements(put_jobs.args), unnest(put_jobs.idempotency_keys)) AS j (id, arg, key)
    WHERE j.id > 0;
  IF coalesce(put_jobs.audit, known.audit_full) THEN
    INSERT INTO pgqueue.job_transitions (job_id, to_state, reason, actor, queue, task)
      SELECT j.id, CASE WHEN put_jobs.window_s > 0 THEN 'held' WHEN due = moment THEN 'ready' ELSE 'scheduled' END, 'enqueued',
        session_user, put_jobs.queue, put_jobs.task
      FROM unnest(ids) AS j (id) WHERE j.id > 0;
  END IF;
  IF put_jobs.wake AND due = moment THEN
    PERFORM pgqueue.wake(put_jobs.queue);
  END IF;
  RETURN ids;
END $$;
COMMENT ON FUNCTION pgqueue.put_jobs IS 'As enqueue_jobs; returns the ids, negative where the idempotency key already had a job, 2^62 less where that job was replaced';

CREATE FUNCTION pgqueue.enqueue_jobs(
  task text, args jsonb[], queue text DEFAULT NULL, priority integer DEFAULT NULL, delay interval DEFAULT NULL,
  run_at timestamptz DEFAULT NULL, idempotency_keys text[] DEFAULT NULL, key_ttl interval DEFAULT NULL, headers jsonb DEFAULT NULL,
  max_attempts integer DEFAULT NULL, retry jsonb DEFAULT NULL, timeout_s double precision DEFAULT NULL,
  expires_at timestamptz DEFAULT NULL, concurrency_key text DEFAULT NULL, tags text[] DEFAULT NULL,
  parent_id bigint DEFAULT NULL, wake boolean DEFAULT true, checked boolean DEFAULT false, key_scope text DEFAULT NULL,
  on_conflict text DEFAULT NULL)
RETURNS TABLE (job_id bigint, created boolean, replaced boolean)
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  SELECT abs(j.id) & 4611686018427387903, j.id > 0, j.id < -4611686018427387904
  FROM unnest(pgqueue.put_jobs(task, to_jsonb(args), queue, priority, delay, run_at, idempotency_keys, key_ttl, headers, max_attempts,
    retry, timeout_s, expires_at, concurrency_key, tags, parent_id, wake, checked, key_scope => key_scope, on_conflict => on_conflict)) AS j (id);
$$;
COMMENT ON FUNCTION pgqueue.enqueue_jobs IS 'Enqueues many jobs of one task in the caller''s transaction, all or none; one row per job, in the order given';

CREATE FUNCTION pgqueue.enqueue(
  task text, args jsonb DEFAULT '{}', queue text DEFAULT NULL, priority integer DEFAULT NULL, delay interval DEFAULT NULL,
  run_at timestamptz DEFAULT NULL, idempotency_key text DEFAULT NULL, key_ttl interval DEFAULT NULL, headers jsonb DEFAULT NULL,
  key_scope text DEFAULT NULL, on_conflict text DEFAULT NULL)
RETURNS bigint LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN abs(pgqueue.put_job(task, args, queue, priority, delay, run_at, idempotency_key, key_ttl, headers, key_scope => key_scope,
    on_conflict => on_conflict)) & 4611686018427387903;
END $$;
COMMENT ON FUNCTION pgqueue.enqueue IS 'Enqueues one job in the caller''s transaction and returns its id (or that of the job that has the idempotency key)';

CREATE FUNCTION pgqueue.enqueue_many(
  task text, args jsonb[], queue text DEFAULT NULL, priority integer DEFAULT NULL, delay interval DEFAULT NULL,
  run_at timestamptz DEFAULT NULL, idempotency_keys text[] DEFAULT NULL, key_ttl interval DEFAULT NULL, headers jsonb DEFAULT NULL,
  key_scope text DEFAULT NULL, on_conflict text DEFAULT NULL)
RETURNS SETOF bigint LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  SELECT e.job_id FROM pgqueue.enqueue_jobs(task, args, queue, priority, delay, run_at, idempotency_keys, key_ttl, headers,
    key_scope => key_scope, on_conflict => on_conflict) e;
$$;
COMMENT ON FUNCTION pgqueue.enqueue_many IS 'Enqueues many jobs of one task in the caller''s transaction and returns their ids in the order given';

-- For producers that commit a transaction of their own and lose the answer. An id alone proves nothing: after a
-- crash the server hands out the ids, and the transaction numbers, of what it forgot once more.
CREATE FUNCTION pgqueue.enqueue_receipt(job_id bigint) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN (SELECT concat_ws(' ', pg_current_xact_id_if_assigned(), j.id, extract(epoch FROM j.created_at)) FROM pgqueue.jobs j
          WHERE j.id = enqueue_receipt.job_id);
END $$;
COMMENT ON FUNCTION pgqueue.enqueue_receipt IS 'What enqueue_outcome finds a job by that was enqueued in this transaction';

CREATE FUNCTION pgqueue.enqueue_outcome(receipt text) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  parts text[] := string_to_array(receipt, ' ');
  the_id bigint := parts[2]::bigint;
  moment timestamptz := to_timestamp(0) + make_interval(secs => parts[3]::double precision);
BEGIN
  BEGIN
    -- The backend of a lost connection may still be at work on its COMMIT.
    IF pg_xact_status(parts[1]::xid8) = 'in progress' THEN
      RETURN 'running';
    END IF;
  EXCEPTION WHEN invalid_parameter_value THEN
    NULL;  -- a number that lies in the future again: the server crashed and knows nothing of that transaction
  END;
  -- A statement of its own, so that its snapshot is younger than the answer above.
  IF EXISTS (SELECT FROM pgqueue.jobs j WHERE j.id = the_id AND j.created_at = moment)
      OR EXISTS (SELECT FROM pgqueue.job_history h WHERE h.job_id = the_id AND h.enqueued_at = moment AND h.finished_at >= moment)
      OR EXISTS (SELECT FROM pgqueue.dead_letter_jobs d WHERE d.job_id = the_id AND d.job_created_at = moment) THEN
    RETURN 'committed';
  END IF;
  RETURN 'absent';
END $$;
COMMENT ON FUNCTION pgqueue.enqueue_outcome IS 'Whether the transaction of a receipt committed its job: running, committed or absent';

-- The last statement of a job's transaction. It raises, because a count looked at after COMMIT comes too late.
CREATE FUNCTION pgqueue.assert_settled(settled bigint, asked integer, claim text) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF current_setting('pgqueue.claim', true) IS DISTINCT FROM claim THEN
    RAISE EXCEPTION 'the job''s transaction was ended inside its handler' USING ERRCODE = 'PQ002';
  END IF;
  IF settled <> asked THEN
    RAISE EXCEPTION 'claim lost: % of % jobs still belong to this claim', settled, asked USING ERRCODE = 'PQ001';
  END IF;
END $$;
COMMENT ON FUNCTION pgqueue.assert_settled IS 'Raises PQ001 when a claim was lost, PQ002 when the transaction is no longer the job''s own';

-- What people do to jobs, each deed with its audit row in the same transaction.

CREATE FUNCTION pgqueue.note_operation(actor text, via text, action text, target text, reason text, matched bigint DEFAULT 1,
                                       changed bigint DEFAULT 1, detail jsonb DEFAULT NULL)
RETURNS void LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  INSERT INTO pgqueue.operator_audit (actor, via, action, target, reason, matched, changed, detail)
  VALUES (coalesce(actor, session_user), coalesce(via, 'sql'), action, target, reason, matched, changed, detail);
$$;
COMMENT ON FUNCTION pgqueue.note_operation IS 'Writes one operator_audit row';

CREATE FUNCTION pgqueue.cancel(job_id bigint, reason text DEFAULT NULL, actor text DEFAULT NULL, via text DEFAULT NULL)
RETURNS text LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  job pgqueue.jobs;
BEGIN
  SELECT * INTO job FROM pgqueue.jobs j WHERE j.id = cancel.job_id FOR UPDATE;
  IF NOT FOUND THEN
    RETURN CASE WHEN EXISTS (SELECT FROM pgqueue.job_history h WHERE h.job_id = cancel.job_id)
                  OR EXISTS (SELECT FROM pgqueue.dead_letter_jobs d WHERE d.job_id = cancel.job_id) THEN 'ended' ELSE 'unknown' END;
  END IF;
  IF job.state = 'running' THEN
    UPDATE pgqueue.jobs SET cancel_requested_at = coalesce(cancel_requested_at, clock_timestamp()),
      cancel_reason = coalesce(cancel_reason, cancel.reason, 'cancelled') WHERE id = cancel.job_id;
    PERFORM pgqueue.note_operation(cancel.actor, cancel.via, 'cancel', 'job ' || cancel.job_id, cancel.reason, detail => '{"state": "running"}');
    RETURN 'requested';
  END IF;
  DELETE FROM pgqueue.jobs WHERE id = cancel.job_id;
  INSERT INTO pgqueue.job_history (job_id, enqueued_at, due_at, finished_at, ready_seq, priority, attempts, max_attempts, state,
      queue, task, args, headers, tags, idempotency_key, errors, parent_id, redrive_of)
    VALUES (job.id, job.created_at, job.run_at, clock_timestamp(), job.ready_seq, job.priority, job.attempt, job.max_attempts, 'cancelled',
      job.queue, job.task, job.args, job.headers, job.tags, job.idempotency_key, job.errors, job.parent_id, job.redrive_of);
  INSERT INTO pgqueue.job_transitions (job_id, from_state, to_state, reason, actor, queue, task, attempt, note)
    VALUES (job.id, job.state, 'cancelled', 'cancelled', coalesce(cancel.actor, session_user), job.queue, job.task, job.attempt, cancel.reason);
  PERFORM pgqueue.note_operation(cancel.actor, cancel.via, 'cancel', 'job ' || cancel.job_id, cancel.reason,
    detail => jsonb_build_object('state', job.state));
  RETURN 'cancelled';
END $$;
COMMENT ON FUNCTION pgqueue.cancel IS 'Cancels a waiting job at once (cancelled), asks a running one to stop (requested), or says ended or unknown';

CREATE FUNCTION pgqueue.run_now(job_id bigint, reason text DEFAULT NULL, actor text DEFAULT NULL, via text DEFAULT NULL)
RETURNS text LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  job pgqueue.jobs;
BEGIN
  SELECT * INTO job FROM pgqueue.jobs j WHERE j.id = run_now.job_id FOR UPDATE;
  IF NOT FOUND THEN
    RETURN CASE WHEN EXISTS (SELECT FROM pgqueue.job_history h WHERE h.job_id = run_now.job_id)
                  OR EXISTS (SELECT FROM pgqueue.dead_letter_jobs d WHERE d.job_id = run_now.job_id) THEN 'ended' ELSE 'unknown' END;
  END IF;
  IF job.state IN ('ready', 'running') THEN
    RETURN job.state;
  END IF;
  UPDATE pgqueue.jobs SET state = 'ready', hold_reason = NULL, run_at = clock_timestamp(), ready_seq = nextval('pgqueue.job_seq')
    WHERE id = run_now.job_id;
  INSERT INTO pgqueue.job_transitions (job_id, from_state, to_state, reason, actor, queue, task, attempt, note)
    VALUES (job.id, job.state, 'ready', 'run_now', coalesce(run_now.actor, session_user), job.queue, job.task, job.attempt, run_now.reason);
  PERFORM pgqueue.note_operation(run_now.actor, run_now.via, 'run_now', 'job ' || run_now.job_id, run_now.reason,
    detail => jsonb_build_object('state', job.state));
  PERFORM pgqueue.wake(job.queue);
  RETURN 'freed';
END $$;
COMMENT ON FUNCTION pgqueue.run_now IS 'Makes a scheduled or held job ready now (freed), or says ready, running, ended or unknown';

CREATE FUNCTION pgqueue.reschedule(job_id bigint, delay interval DEFAULT NULL, run_at timestamptz DEFAULT NULL, reason text DEFAULT NULL,
                                   actor text DEFAULT NULL, via text DEFAULT NULL)
RETURNS text LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  job pgqueue.jobs;
  moment timestamptz;
  due timestamptz;
BEGIN
  IF num_nonnulls(reschedule.delay, reschedule.run_at) <> 1 THEN
    RAISE EXCEPTION 'run_at: give it or delay, one of them' USING ERRCODE = '22023';
  END IF;
  PERFORM pgqueue.check_job('reschedule', '{}', NULL, NULL, reschedule.delay, reschedule.run_at, NULL, NULL, NULL, NULL);
  -- The lock first: a claim or a promotion that was faster has committed when this returns, and the row says so.
  SELECT * INTO job FROM pgqueue.jobs j WHERE j.id = reschedule.job_id FOR UPDATE;
  IF NOT FOUND THEN
    RETURN CASE WHEN EXISTS (SELECT FROM pgqueue.job_history h WHERE h.job_id = reschedule.job_id)
                  OR EXISTS (SELECT FROM pgqueue.dead_letter_jobs d WHERE d.job_id = reschedule.job_id) THEN 'ended' ELSE 'unknown' END;
  END IF;
  moment := clock_timestamp();
  due := greatest(moment, reschedule.run_at, moment + reschedule.delay);
  -- A held job waits for something else than a moment, and would forget what; but one of a window may leave it.
  IF job.state = 'running' OR job.hold_reason <> 'window' OR job.state = 'ready' AND due = moment THEN
    RETURN job.state;
  ELSIF job.expires_at <= due THEN
    RETURN 'expires';
  END IF;
  UPDATE pgqueue.jobs SET run_at = due, state = CASE WHEN due = moment THEN 'ready' ELSE 'scheduled' END, hold_reason = NULL,
      ready_seq = CASE WHEN due = moment THEN nextval('pgqueue.job_seq') END
    WHERE id = reschedule.job_id;
  INSERT INTO pgqueue.job_transitions (job_id, from_state, to_state, reason, actor, queue, task, attempt, next_run_at, note)
    VALUES (job.id, job.state, CASE WHEN due = moment THEN 'ready' ELSE 'scheduled' END, 'rescheduled',
      coalesce(reschedule.actor, session_user), job.queue, job.task, job.attempt, due, reschedule.reason);
  PERFORM pgqueue.note_operation(reschedule.actor, reschedule.via, 'reschedule', 'job ' || reschedule.job_id, reschedule.reason,
    detail => jsonb_build_object('state', job.state, 'from', job.run_at, 'to', due));
  IF due = moment THEN
    PERFORM pgqueue.wake(job.queue);
  END IF;
  RETURN 'rescheduled';
END $$;
COMMENT ON FUNCTION pgqueue.reschedule IS 'Moves a scheduled or ready job, or one of a window, to another moment (rescheduled), or says why not: ready (it is due already), running, held, expires (before that moment), ended, unknown';

CREATE FUNCTION pgqueue.redrive(job_id bigint, reason text DEFAULT NULL, actor text DEFAULT NULL, via text DEFAULT NULL,
                                queue text DEFAULT NULL, priority integer DEFAULT NULL, delay interval DEFAULT NULL)
RETURNS bigint LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  letter pgqueue.dead_letter_jobs;
  moment timestamptz := clock_timestamp();
  due timestamptz := moment + coalesce(redrive.delay, interval '0');
  new_id bigint;
  holder pgqueue.dedup_keys;
BEGIN
  PERFORM pgqueue.check_job('redrive', '{}', redrive.queue, redrive.priority, redrive.delay, NULL, NULL, NULL, NULL, NULL);
  SELECT * INTO letter FROM pgqueue.dead_letter_jobs d WHERE d.job_id = redrive.job_id FOR UPDATE;
  IF NOT FOUND THEN
    RETURN NULL;
  END IF;
  IF letter.redriven_as IS NOT NULL THEN
    RETURN letter.redriven_as;
  END IF;
  SELECT * INTO holder FROM pgqueue.dedup_keys k WHERE k.task = letter.task AND k.key = letter.idempotency_key FOR UPDATE;
  IF FOUND AND holder.job_id <> letter.job_id AND pgqueue.key_is_held(holder.scope, holder.expires_at, holder.job_id) THEN
    -- Somebody has enqueued it again under its key: that job repeats the letter, and a second one would be one too many.
    UPDATE pgqueue.dead_letter_jobs SET redriven_as = holder.job_id, redriven_at = moment WHERE job_id = letter.job_id;
    PERFORM pgqueue.note_operation(redrive.actor, redrive.via, 'redrive', 'dead letter ' || letter.job_id, redrive.reason, changed => 0,
      detail => jsonb_build_object('redriven_as', holder.job_id, 'its_key_had_a_job', true));
    RETURN holder.job_id;
  END IF;
  new_id := nextval('pgqueue.job_seq');
  IF holder.job_id = letter.job_id OR holder.scope IN ('live', 'waiting') THEN
    -- The key follows. Upkeep, which may just be about to let it go, sees by expires_at that it has moved on.
    UPDATE pgqueue.dedup_keys k
      SET job_id = new_id, expires_at = CASE WHEN k.scope IN ('live', 'waiting') THEN moment + interval '1 minute' ELSE k.expires_at END
      WHERE k.task = letter.task AND k.key = letter.idempotency_key;
  END IF;
  INSERT INTO pgqueue.jobs (id, created_at, run_at, ready_seq, priority, max_attempts, state, queue, task, args, headers, tags,
      idempotency_key, timeout_s, retry, parent_id, redrive_of)
    VALUES (new_id, moment, due, CASE WHEN due = moment THEN new_id END, coalesce(redrive.priority, letter.priority), letter.max_attempts,
      CASE WHEN due = moment THEN 'ready' ELSE 'scheduled' END, coalesce(redrive.queue, letter.queue), letter.task, letter.args,
      coalesce(letter.headers, '{}')
        || jsonb_build_object('pgqueue.origin', coalesce(letter.headers ->> 'pgqueue.origin', letter.job_id::text)),
      letter.tags, letter.idempotency_key, letter.timeout_s, letter.retry, letter.parent_id, letter.job_id);
  -- What was done stays done, and keys for outside calls stay the same. A refused step is the reason for its letter.
  INSERT INTO pgqueue.job_steps (job_id, name, result, recorded_at, attempt, run_s, claim_id, worker_id, record_id)
    SELECT new_id, s.name, s.result, s.recorded_at, s.attempt, s.run_s, s.claim_id, s.worker_id, s.record_id
    FROM pgqueue.job_steps s WHERE s.job_id = letter.job_id AND s.refused IS NULL;
  UPDATE pgqueue.dead_letter_jobs SET redriven_as = new_id, redriven_at = moment WHERE job_id = letter.job_id;
  INSERT INTO pgqueue.job_transitions (job_id, from_state, to_state, reason, actor, queue, task, note)
    VALUES (new_id, 'dead', CASE WHEN due = moment THEN 'ready' ELSE 'scheduled' END, 'redriven', coalesce(redrive.actor, session_user), coalesce(redrive.queue, letter.queue), letter.task, redrive.reason);
  PERFORM pgqueue.note_operation(redrive.actor, redrive.via, 'redrive', 'dead letter ' || letter.job_id, redrive.reason,
    detail => jsonb_build_object('redriven_as', new_id));
  PERFORM pgqueue.wake(coalesce(redrive.queue, letter.queue));
  RETURN new_id;
END $$;
COMMENT ON FUNCTION pgqueue.redrive IS 'Enqueues a dead job again as a new, linked job and returns its id; a second call returns the same id, and so does one whose idempotency key has another job by now; NULL if there is no such dead letter';

CREATE FUNCTION pgqueue.discard(job_id bigint, reason text DEFAULT NULL, actor text DEFAULT NULL, via text DEFAULT NULL)
RETURNS boolean LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  letter pgqueue.dead_letter_jobs;
BEGIN
  DELETE FROM pgqueue.dead_letter_jobs d WHERE d.job_id = discard.job_id RETURNING * INTO letter;
  IF NOT FOUND THEN
    RETURN false;
  END IF;
  INSERT INTO pgqueue.job_history (job_id, enqueued_at, due_at, finished_at, claim_id, worker_id, priority, attempts, max_attempts, state,
      queue, task, args, headers, tags, idempotency_key, errors, parent_id, redrive_of)
    VALUES (letter.job_id, letter.job_created_at, letter.failed_at, clock_timestamp(), letter.claim_id, letter.worker_id, letter.priority,
      letter.attempts, letter.max_attempts, 'cancelled', letter.queue, letter.task, letter.args, letter.headers, letter.tags,
      letter.idempotency_key, letter.errors, letter.parent_id, letter.redrive_of);
  INSERT INTO pgqueue.job_transitions (job_id, from_state, to_state, reason, actor, queue, task, attempt, note)
    VALUES (letter.job_id, 'dead', 'cancelled', 'discarded', coalesce(discard.actor, session_user), letter.queue, letter.task, letter.attempts, discard.reason);
  PERFORM pgqueue.note_operation(discard.actor, discard.via, 'discard', 'dead letter ' || letter.job_id, discard.reason,
    detail => jsonb_build_object('reason', letter.reason, 'redriven_as', letter.redriven_as));
  RETURN true;
END $$;
COMMENT ON FUNCTION pgqueue.discard IS 'Gives a dead letter up: it moves to job_history as cancelled; false if there is no such dead letter';

CREATE FUNCTION pgqueue.pause(queue text, reason text DEFAULT NULL, until timestamptz DEFAULT NULL, actor text DEFAULT NULL, via text DEFAULT NULL)
RETURNS timestamptz LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  since timestamptz;
BEGIN
  IF pause.until <= clock_timestamp() THEN
    RAISE EXCEPTION 'until: lies in the past; give a later moment' USING ERRCODE = '22023';
  END IF;
  INSERT INTO pgqueue.queues AS q (name, paused_at, paused_by, pause_reason, paused_until)
    VALUES (pause.queue, clock_timestamp(), coalesce(pause.actor, session_user), pause.reason, pause.until)
    ON CONFLICT (name) DO UPDATE SET paused_at = coalesce(q.paused_at, excluded.paused_at), paused_by = excluded.paused_by,
      pause_reason = excluded.pause_reason, paused_until = excluded.paused_until
    RETURNING q.paused_at INTO since;
  PERFORM pgqueue.note_operation(pause.actor, pause.via, 'pause', 'queue ' || pause.queue, pause.reason);
  PERFORM pg_notify('pgqueue_wake', '');
  RETURN since;
END $$;
COMMENT ON FUNCTION pgqueue.pause IS 'Stops claims of the queue from this commit on and returns since when; jobs already claimed may still start within a heartbeat';

CREATE FUNCTION pgqueue.resume(queue text, reason text DEFAULT NULL, actor text DEFAULT NULL, via text DEFAULT NULL)
RETURNS boolean LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
  UPDATE pgqueue.queues SET paused_at = NULL, paused_by = NULL, pause_reason = NULL, paused_until = NULL
    WHERE name = resume.queue AND paused_at IS NOT NULL;
  IF NOT FOUND THEN
    RETURN false;
  END IF;
  PERFORM pgqueue.note_operation(resume.actor, resume.via, 'resume', 'queue ' || resume.queue, resume.reason);
  PERFORM pgqueue.wake(resume.queue);
  RETURN true;
END $$;
COMMENT ON FUNCTION pgqueue.resume IS 'Lifts a pause; false if the queue was not paused';

CREATE FUNCTION pgqueue.set_queue(queue text, attributes jsonb, reason text DEFAULT NULL, actor text DEFAULT NULL, via text DEFAULT NULL)
RETURNS text LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  known text[] := ARRAY['sla_s', 'sla_target', 'run_objective_s', 'run_target', 'dead_letter_limit', 'tier', 'owner', 'display_name'];
  old pgqueue.queues;
  new pgqueue.queues;
  made boolean;
BEGIN
  IF attributes = '{}' OR EXISTS (SELECT FROM jsonb_object_keys(attributes) AS k (name) WHERE k.name <> ALL (known)) THEN
    RAISE EXCEPTION 'attributes: must name one or more of %', array_to_string(known, ', ') USING ERRCODE = '22023';
  END IF;
  INSERT INTO pgqueue.queues (name) VALUES (set_queue.queue) ON CONFLICT (name) DO NOTHING;
  made := FOUND;
  SELECT * INTO old FROM pgqueue.queues q WHERE q.name = set_queue.queue FOR UPDATE;
  new := jsonb_populate_record(old, attributes);
  IF new IS NOT DISTINCT FROM old AND NOT made THEN
    RETURN 'same';
  END IF;
  UPDATE pgqueue.queues q SET sla_s = new.sla_s, sla_target = new.sla_target, run_objective_s = new.run_objective_s,
      run_target = new.run_target, dead_letter_limit = new.dead_letter_limit, tier = new.tier, owner = new.owner,
      display_name = new.display_name
    WHERE q.name = set_queue.queue;
  PERFORM pgqueue.note_operation(set_queue.actor, set_queue.via, 'set', 'queue ' || set_queue.queue, set_queue.reason,
    detail => jsonb_build_object('to', attributes, 'was',
      (SELECT jsonb_object_agg(k.name, to_jsonb(old) -> k.name) FROM jsonb_object_keys(attributes) AS k (name))));
  RETURN CASE WHEN made THEN 'created' ELSE 'changed' END;
END $$;
COMMENT ON FUNCTION pgqueue.set_queue IS 'Sets attributes of a queue (null = as configured or built in), making it known if it was not: created, changed or same';

-- For workers, which may not change a queue's row otherwise. ON CONFLICT alone would wait for whoever is changing it.
CREATE FUNCTION pgqueue.register_queues(queues text[], defaults jsonb) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  WITH configured AS (
    SELECT u.queue, register_queues.defaults -> u.queue AS defaults FROM unnest(register_queues.queues) AS u (queue)
  ), made AS (
    INSERT INTO pgqueue.queues (name, defaults) SELECT c.queue, coalesce(c.defaults, '{}') FROM configured c
    WHERE NOT EXISTS (SELECT FROM pgqueue.queues q WHERE q.name = c.queue) ORDER BY c.queue
    ON CONFLICT (name) DO NOTHING
  ), stale AS (
    SELECT q.name, c.defaults FROM configured c JOIN pgqueue.queues q ON q.name = c.queue
    WHERE c.defaults IS NOT NULL AND c.defaults <> q.defaults ORDER BY q.name FOR UPDATE OF q
  )
  UPDATE pgqueue.queues q SET defaults = s.defaults FROM stale s WHERE q.name = s.name
$$;
COMMENT ON FUNCTION pgqueue.register_queues IS 'Makes queues known, with what a worker''s configuration says of them; a known queue keeps its switches';

CREATE FUNCTION pgqueue.paused_queues() RETURNS SETOF text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  UPDATE pgqueue.queues q SET paused_at = NULL, paused_by = NULL, pause_reason = NULL, paused_until = NULL
    WHERE q.paused_at IS NOT NULL AND q.paused_until <= clock_timestamp();
  RETURN QUERY SELECT q.name FROM pgqueue.queues q
    WHERE q.paused_at IS NOT NULL AND (q.paused_until IS NULL OR q.paused_until > clock_timestamp());
END $$;
COMMENT ON FUNCTION pgqueue.paused_queues IS 'Queues that are paused now, after lifting the pauses whose time has come';

CREATE FUNCTION pgqueue.drain_worker(worker text, reason text DEFAULT NULL, actor text DEFAULT NULL, via text DEFAULT NULL)
RETURNS text LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  ids uuid[];
  found pgqueue.workers;
BEGIN
  IF length(drain_worker.worker) < 8 OR drain_worker.worker !~ '^[0-9a-f-]+$' THEN
    RAISE EXCEPTION 'worker: must be an id as `pgqueue workers list` shows it, or its first 8 characters' USING ERRCODE = '22023';
  END IF;
  ids := ARRAY(SELECT w.id FROM pgqueue.workers w WHERE starts_with(w.id::text, drain_worker.worker) LIMIT 2);
  IF cardinality(ids) <> 1 THEN
    RETURN CASE cardinality(ids) WHEN 0 THEN 'unknown' ELSE 'ambiguous' END;
  END IF;
  SELECT * INTO found FROM pgqueue.workers w WHERE w.id = ids[1] FOR UPDATE;
  IF found.status NOT IN ('live', 'draining') THEN
    RETURN 'ended';
  ELSIF found.drain_requested_at IS NOT NULL THEN
    RETURN 'requested';
  END IF;
  UPDATE pgqueue.workers w SET drain_requested_at = clock_timestamp() WHERE w.id = found.id;
  PERFORM pgqueue.note_operation(drain_worker.actor, drain_worker.via, 'drain', 'worker ' || found.id, drain_worker.reason,
    detail => jsonb_build_object('host', found.host, 'pid', found.pid));
  RETURN 'requested';
END $$;
COMMENT ON FUNCTION pgqueue.drain_worker IS 'Asks a worker to take nothing new, finish what runs and leave: requested, or ended, unknown, ambiguous (more than one id begins so)';

-- Upkeep: who last did which duty, the day partitions of job_history and job_transitions (UTC days), and what retention takes.

CREATE TABLE pgqueue.upkeep_duties (
  duty text PRIMARY KEY,
  next_at timestamptz,
  started_at timestamptz,
  took_s double precision,
  rounds bigint NOT NULL DEFAULT 0,
  changed bigint NOT NULL DEFAULT 0,
  failures bigint NOT NULL DEFAULT 0,
  failed_at timestamptz,
  error text,
  by_whom text
) WITH (fillfactor = 50, autovacuum_vacuum_threshold = 200, autovacuum_vacuum_scale_factor = 0.0);
COMMENT ON TABLE pgqueue.upkeep_duties IS 'One row per upkeep duty: its newest round, its newest failure, and when it is next due where one process does it for all';
COMMENT ON COLUMN pgqueue.upkeep_duties.duty IS 'promote, rescue, expiry, partitions, retention, rollups, …';
COMMENT ON COLUMN pgqueue.upkeep_duties.next_at IS 'From here on the first process that comes takes the next round; NULL where every process does it by itself';
COMMENT ON COLUMN pgqueue.upkeep_duties.started_at IS 'When the newest noted round began';
COMMENT ON COLUMN pgqueue.upkeep_duties.took_s IS 'Seconds it took; of several noted together, the longest';
COMMENT ON COLUMN pgqueue.upkeep_duties.rounds IS 'Rounds noted so far';
COMMENT ON COLUMN pgqueue.upkeep_duties.changed IS 'What they changed in all: jobs, keys, partitions, rows';
COMMENT ON COLUMN pgqueue.upkeep_duties.failures IS 'Rounds that failed';
COMMENT ON COLUMN pgqueue.upkeep_duties.failed_at IS 'When one last failed';
COMMENT ON COLUMN pgqueue.upkeep_duties.error IS 'Why, without values';
COMMENT ON COLUMN pgqueue.upkeep_duties.by_whom IS 'Who did the newest round: worker:<id>, scheduler:<id>';

CREATE TABLE pgqueue.history_sweeps (
  part text PRIMARY KEY,
  queues text[] NOT NULL,
  next_block bigint NOT NULL,
  swept_at timestamptz
);
COMMENT ON TABLE pgqueue.history_sweeps IS 'How far days were searched for rows of queues that keep their history shorter than the rest';
COMMENT ON COLUMN pgqueue.history_sweeps.part IS 'The day partition';
COMMENT ON COLUMN pgqueue.history_sweeps.queues IS 'The queues whose rows go from it';
COMMENT ON COLUMN pgqueue.history_sweeps.next_block IS 'The block of the table to go on from';
COMMENT ON COLUMN pgqueue.history_sweeps.swept_at IS 'When it was through; NULL = not yet';

-- Attached, not created in place: CREATE TABLE … PARTITION OF locks out everybody who settles a job, ATTACH does not.
-- What it does lock is the default partition, for as long as that takes to read; it is empty while days are made ahead.
CREATE FUNCTION pgqueue.ensure_partitions(ahead_days integer DEFAULT 7)
RETURNS integer LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '500ms' AS $$
DECLARE
  parent text;
  part text;
  day date;
  made integer := 0;
BEGIN
  IF ahead_days NOT BETWEEN 0 AND 60 THEN
    RAISE EXCEPTION 'ahead_days: out of range; 0 to 60' USING ERRCODE = '22023';
  END IF;
  FOREACH parent IN ARRAY ARRAY['job_history', 'job_transitions'] LOOP
    FOR i IN 0..ahead_days LOOP
      day := (clock_timestamp() AT TIME ZONE 'UTC')::date + i;
      part := parent || to_char(day, '"_"YYYYMMDD');
      CONTINUE WHEN to_regclass(format('pgqueue.%I', part)) IS NOT NULL;
      BEGIN
        EXECUTE format('CREATE TABLE pgqueue.%I (LIKE pgqueue.%I INCLUDING ALL EXCLUDING IDENTITY EXCLUDING COMMENTS)', part, parent);
        EXECUTE format('ALTER TABLE pgqueue.%I ATTACH PARTITION pgqueue.%I FOR VALUES FROM (%L) TO (%L)', parent, part,
          to_char(day, 'YYYY-MM-DD') || ' 00:00:00+00', to_char(day + 1, 'YYYY-MM-DD') || ' 00:00:00+00');
        made := made + 1;
      EXCEPTION
        -- Rows of that day already lie in the default partition, or another process was faster.
        WHEN check_violation OR duplicate_table THEN NULL;
      END;
    END LOOP;
  END LOOP;
  RETURN made;
END $$;
COMMENT ON FUNCTION pgqueue.ensure_partitions IS 'Makes the missing day partitions from today to ahead_days from now; returns how many';

-- A drop locks the whole table for a moment, and settlements queue behind it while it waits: so it waits shortly, one
-- day to a transaction. (DETACH … CONCURRENTLY does not go where a default partition is.)
CREATE FUNCTION pgqueue.drop_partition(keep_days integer)
RETURNS text LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '200ms' AS $$
DECLARE
  oldest text;
BEGIN
  IF keep_days NOT BETWEEN 1 AND 36500 THEN
    RAISE EXCEPTION 'keep_days: out of range; 1 to 36500' USING ERRCODE = '22023';
  END IF;
  SELECT c.relname INTO oldest FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    JOIN pg_class p ON p.oid = i.inhparent JOIN pg_namespace n ON n.oid = p.relnamespace
  WHERE n.nspname = 'pgqueue' AND p.relname IN ('job_history', 'job_transitions') AND c.relname ~ '_[0-9]{8}$'
    AND to_date(right(c.relname, 8), 'YYYYMMDD') < (clock_timestamp() AT TIME ZONE 'UTC')::date - keep_days
  ORDER BY right(c.relname, 8), c.relname
  LIMIT 1;
  IF oldest IS NOT NULL THEN
    EXECUTE format('DROP TABLE pgqueue.%I', oldest);
    DELETE FROM pgqueue.history_sweeps s WHERE s.part = oldest;
  END IF;
  RETURN oldest;
END $$;
COMMENT ON FUNCTION pgqueue.drop_partition IS 'Drops the oldest day partition older than keep_days and returns its name; NULL if there is none';

-- Rows by blocks of the table, since no index finds a queue's rows: one would cost every settlement. Days that are over
-- are written to no more, so one passage is enough for each set of queues.
CREATE FUNCTION pgqueue.sweep_history(blocks integer DEFAULT 2000, OUT deleted bigint, OUT looked boolean)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  today date := (clock_timestamp() AT TIME ZONE 'UTC')::date;
  day record;
  due text[];
  from_block bigint;
  pages bigint;
BEGIN
  deleted := 0;
  looked := false;
  FOR day IN
    SELECT c.oid, c.relname::text AS part, to_date(right(c.relname, 8), 'YYYYMMDD') AS date, s.queues, s.next_block, s.swept_at
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
      JOIN pg_class p ON p.oid = i.inhparent JOIN pg_namespace n ON n.oid = p.relnamespace
      LEFT JOIN pgqueue.history_sweeps s ON s.part = c.relname
    WHERE n.nspname = 'pgqueue' AND p.relname IN ('job_history', 'job_transitions') AND c.relname ~ '_[0-9]{8}$'
      AND to_date(right(c.relname, 8), 'YYYYMMDD') < today - 1
      -- What is not counted yet stays until it is.
      AND to_date(right(c.relname, 8), 'YYYYMMDD') + 1 <= (SELECT u.done_upto AT TIME ZONE 'UTC' FROM pgqueue.stats_progress u WHERE u.what = 'recount')
    ORDER BY 3, 2
  LOOP
    SELECT coalesce(array_agg(q.name ORDER BY q.name), '{}') INTO due FROM pgqueue.queues q WHERE q.history_days < today - day.date;
    CONTINUE WHEN due = '{}' OR (due <@ day.queues AND day.swept_at IS NOT NULL);
    from_block := CASE WHEN day.queues = due THEN day.next_block ELSE 0 END;
    EXECUTE format('DELETE FROM pgqueue.%I r WHERE r.ctid >= $1 AND r.ctid < $2 AND r.queue = ANY ($3)', day.part)
      USING format('(%s,0)', from_block)::tid, format('(%s,0)', from_block + sweep_history.blocks)::tid, due;
    GET DIAGNOSTICS deleted = ROW_COUNT;
    looked := true;
    pages := pg_relation_size(day.oid) / current_setting('block_size')::bigint;
    INSERT INTO pgqueue.history_sweeps AS s (part, queues, next_block, swept_at)
      VALUES (day.part, due, from_block + sweep_history.blocks, CASE WHEN from_block + sweep_history.blocks >= pages THEN clock_timestamp() END)
      ON CONFLICT (part) DO UPDATE SET queues = excluded.queues, next_block = excluded.next_block, swept_at = excluded.swept_at;
    RETURN;
  END LOOP;
END $$;
COMMENT ON FUNCTION pgqueue.sweep_history IS 'Deletes rows of queues that keep their history shorter (queues.history_days) from so many blocks of one day; looked = false when no day is left to search';

CREATE FUNCTION pgqueue.prune_default_partitions(keep_days integer, batch integer)
RETURNS bigint LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  oldest timestamptz := date_trunc('day', clock_timestamp(), 'UTC') - make_interval(days => keep_days);
  ended bigint;
  noted bigint;
BEGIN
  IF keep_days NOT BETWEEN 1 AND 36500 THEN
    RAISE EXCEPTION 'keep_days: out of range; 1 to 36500' USING ERRCODE = '22023';
  END IF;
  DELETE FROM pgqueue.job_history_default h
    WHERE h.ctid = ANY (ARRAY(SELECT o.ctid FROM pgqueue.job_history_default o WHERE o.finished_at < oldest LIMIT batch));
  GET DIAGNOSTICS ended = ROW_COUNT;
  DELETE FROM pgqueue.job_transitions_default t
    WHERE t.ctid = ANY (ARRAY(SELECT o.ctid FROM pgqueue.job_transitions_default o WHERE o.at < oldest LIMIT batch));
  GET DIAGNOSTICS noted = ROW_COUNT;
  RETURN ended + noted;
END $$;
COMMENT ON FUNCTION pgqueue.prune_default_partitions IS 'Deletes up to so many rows of each default partition, where those lie that found no day, when their time is over';

CREATE FUNCTION pgqueue.prune_redriven(keep_days integer, batch integer)
RETURNS bigint LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  pruned bigint;
BEGIN
  IF keep_days NOT BETWEEN 1 AND 36500 THEN
    RAISE EXCEPTION 'keep_days: out of range; 1 to 36500' USING ERRCODE = '22023';
  END IF;
  WITH old AS MATERIALIZED (
    SELECT d.job_id FROM pgqueue.dead_letter_jobs d
    WHERE d.redriven_at IS NOT NULL AND d.redriven_at < (SELECT clock_timestamp() - make_interval(days => keep_days))
    ORDER BY d.redriven_at
    LIMIT batch
    FOR UPDATE SKIP LOCKED
  )
  DELETE FROM pgqueue.dead_letter_jobs d USING old o WHERE d.job_id = o.job_id;
  GET DIAGNOSTICS pruned = ROW_COUNT;
  RETURN pruned;
END $$;
COMMENT ON FUNCTION pgqueue.prune_redriven IS 'Deletes up to so many dead letters that were redriven longer ago: another job went on with their work; returns how many';

CREATE FUNCTION pgqueue.discard_old_letters(keep_days integer, batch integer, actor text)
RETURNS bigint LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  discarded bigint;
BEGIN
  IF keep_days NOT BETWEEN 1 AND 36500 THEN
    RAISE EXCEPTION 'keep_days: out of range; 1 to 36500' USING ERRCODE = '22023';
  END IF;
  -- Decided under the row's lock: a letter that somebody redrives at this moment stays.
  WITH old AS MATERIALIZED (
    SELECT d.job_id FROM pgqueue.dead_letter_jobs d
    WHERE d.redriven_as IS NULL AND d.created_at < (SELECT clock_timestamp() - make_interval(days => keep_days))
    ORDER BY d.created_at
    LIMIT batch
    FOR UPDATE SKIP LOCKED
  )
  SELECT count(*) FILTER (WHERE pgqueue.discard(o.job_id, 'dead-letter retention', discard_old_letters.actor, 'upkeep')) INTO discarded FROM old o;
  RETURN discarded;
END $$;
COMMENT ON FUNCTION pgqueue.discard_old_letters IS 'Discards up to so many dead letters that nobody decided about for keep_days, each with its audit rows; returns how many';

-- What is not summarized is read whole. Waits for nobody: vacuum does the same, and what holds the lock may be it.
CREATE FUNCTION pgqueue.summarize_days()
RETURNS integer LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '50ms' AS $$
DECLARE
  part record;
  ranges integer := 0;
BEGIN
  FOR part IN
    SELECT x.oid FROM pg_inherits i JOIN pg_class x ON x.oid = i.inhrelid JOIN pg_index d ON d.indexrelid = x.oid
      JOIN pg_class c ON c.oid = d.indrelid
    WHERE i.inhparent IN ('pgqueue.job_history_finished_at_idx'::regclass, 'pgqueue.job_transitions_at_idx'::regclass)
      AND right(c.relname, 8) IN (to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYYMMDD'),
        to_char(clock_timestamp() AT TIME ZONE 'UTC' - interval '1 hour', 'YYYYMMDD'))
  LOOP
    BEGIN
      ranges := ranges + brin_summarize_new_values(part.oid::regclass);
    EXCEPTION
      WHEN lock_not_available THEN NULL;
    END;
  END LOOP;
  RETURN ranges;
END $$;
COMMENT ON FUNCTION pgqueue.summarize_days IS 'Notes for the newest blocks of today''s history which times they hold, so that a minute is found without reading the day';

CREATE FUNCTION pgqueue.keep_history(queue text, days integer, reason text DEFAULT NULL, actor text DEFAULT NULL, via text DEFAULT NULL)
RETURNS boolean LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
  IF days NOT BETWEEN 1 AND 36500 THEN
    RAISE EXCEPTION 'days: out of range; 1 to 36500, or NULL for the setting of all' USING ERRCODE = '22023';
  END IF;
  UPDATE pgqueue.queues q SET history_days = days WHERE q.name = keep_history.queue;
  IF NOT FOUND THEN
    RETURN false;
  END IF;
  PERFORM pgqueue.note_operation(keep_history.actor, keep_history.via, 'keep_history', 'queue ' || keep_history.queue, keep_history.reason,
    detail => jsonb_build_object('history_days', days));
  RETURN true;
END $$;
COMMENT ON FUNCTION pgqueue.keep_history IS 'Sets how many days a queue keeps its history when that is shorter than for all, NULL = as all; false if the queue is not known';

CREATE VIEW pgqueue.upkeep_status AS
SELECT u.duty, u.started_at, u.took_s, u.rounds, u.changed, u.by_whom, u.next_at,
  greatest(0, extract(epoch FROM clock_timestamp() - u.next_at))::double precision AS overdue_s,
  coalesce(u.failed_at > u.started_at, u.failed_at IS NOT NULL) AS failing, u.failures, u.failed_at, u.error
FROM pgqueue.upkeep_duties u;
COMMENT ON VIEW pgqueue.upkeep_status IS 'The duties of upkeep: when each was last done and by whom, how late it is, whether its newest round failed';

SELECT pgqueue.ensure_partitions(7);

-- What DBAs and dashboards read. No arguments, headers, results or tracebacks in any of them.

-- Bounded whatever lies in the tables: names are found by stepping from one queue to the next in an index, counts
-- stop at 10,001, what is scheduled and what died lately is looked at through one window each, lag at lane heads.
-- A lane's index holds what is ready and what runs. OFFSET 0 keeps a small table's join from reading all of jobs, and
-- an ORDER BY keeps a bitmap from reading a whole queue before the count stops.
CREATE VIEW pgqueue.queue_health AS
WITH RECURSIVE lanes AS (
  (SELECT j.queue FROM pgqueue.jobs j WHERE j.ready_seq IS NOT NULL ORDER BY j.queue LIMIT 1)
  UNION ALL
  SELECT (SELECT j.queue FROM pgqueue.jobs j WHERE j.ready_seq IS NOT NULL AND j.queue > l.queue ORDER BY j.queue LIMIT 1)
  FROM lanes l WHERE l.queue IS NOT NULL
), held_places AS (
  (SELECT j.hold_reason, j.queue FROM pgqueue.jobs j WHERE j.hold_reason IS NOT NULL ORDER BY j.hold_reason, j.queue LIMIT 1)
  UNION ALL
  SELECT n.hold_reason, n.queue FROM held_places p
  CROSS JOIN LATERAL (SELECT j.hold_reason, j.queue FROM pgqueue.jobs j
    WHERE j.hold_reason IS NOT NULL AND (j.hold_reason, j.queue) > (p.hold_reason, p.queue) ORDER BY j.hold_reason, j.queue LIMIT 1) n
), held AS (
  SELECT p.queue, sum(c.n)::bigint AS n, min(first.run_at) FILTER (WHERE p.hold_reason IN ('concurrency', 'rate')) AS limited_at
  FROM held_places p
  CROSS JOIN LATERAL (SELECT count(*) AS n FROM (SELECT FROM pgqueue.jobs j
    WHERE j.hold_reason = p.hold_reason AND j.queue = p.queue ORDER BY j.id LIMIT 10001) w) c
  LEFT JOIN LATERAL (SELECT j.run_at FROM pgqueue.jobs j
    WHERE j.hold_reason = p.hold_reason AND j.queue = p.queue ORDER BY j.id LIMIT 1) first ON true
  GROUP BY p.queue
), soonest AS MATERIALIZED (
  SELECT j.queue, j.run_at FROM pgqueue.jobs j WHERE j.ready_seq IS NULL AND j.hold_reason IS NULL ORDER BY j.run_at LIMIT 20001
), scheduled AS (
  SELECT s.queue, count(*) AS n, count(*) FILTER (WHERE s.run_at <= clock_timestamp()) AS overdue, min(s.run_at) AS first_at
  FROM soonest s GROUP BY s.queue
), died AS (
  SELECT w.queue, count(*) AS n FROM (SELECT d.queue FROM pgqueue.dead_letter_jobs d
    WHERE d.created_at > (SELECT clock_timestamp()) - interval '15 minutes' ORDER BY d.created_at DESC LIMIT 10001) w GROUP BY w.queue
), running AS (
  SELECT r.queue, count(*) AS n FROM pgqueue.claims c CROSS JOIN LATERAL unnest(c.job_ids) AS m (id)
  CROSS JOIN LATERAL (SELECT j.queue FROM pgqueue.jobs j WHERE j.id = m.id AND j.claim_id = c.claim_id OFFSET 0) r GROUP BY r.queue
), served AS (
  SELECT s.queue, count(*) AS workers, sum(w.slots) AS slots
  FROM pgqueue.workers w CROSS JOIN LATERAL unnest(w.queues) AS s (queue)
  WHERE w.status = 'live' AND w.beat_at > clock_timestamp() - make_interval(secs => w.lease_s) GROUP BY s.queue
), named AS (
  SELECT q.name AS queue FROM pgqueue.queues q
  UNION SELECT l.queue FROM lanes l WHERE l.queue IS NOT NULL
  UNION SELECT h.queue FROM held h
  UNION SELECT s.queue FROM scheduled s
)
SELECT n.queue, q.name IS NOT NULL AS known, coalesce(q.display_name, q.defaults ->> 'display_name') AS display_name,
  coalesce(q.tier, q.defaults ->> 'tier', 'standard') AS tier, coalesce(q.owner, q.defaults ->> 'owner') AS owner,
  coalesce(q.paused_at IS NOT NULL AND (q.paused_until IS NULL OR q.paused_until > clock_timestamp()), false) AS paused,
  least(10001, greatest(0, lane.n - coalesce(r.n, 0)) + coalesce(s.overdue, 0)) AS due, lane.n + coalesce(s.overdue, 0) > 10000 AS due_capped,
  coalesce(s.n, 0) AS scheduled, (SELECT count(*) > 20000 FROM soonest) AS scheduled_capped, least(10001, coalesce(h.n, 0)) AS held,
  coalesce(r.n, 0) AS running,
  greatest(0, extract(epoch FROM clock_timestamp() - least(head.due_at, s.first_at)))::double precision AS lag_s,
  greatest(0, extract(epoch FROM clock_timestamp() - h.limited_at))::double precision AS limited_lag_s,
  coalesce(q.sla_s, (q.defaults ->> 'sla_s')::double precision) AS sla_s,
  coalesce(q.sla_target, (q.defaults ->> 'sla_target')::double precision, 0.99) AS sla_target,
  coalesce(q.run_objective_s, (q.defaults ->> 'run_objective_s')::double precision) AS run_objective_s,
  coalesce(q.run_target, (q.defaults ->> 'run_target')::double precision, 0.995) AS run_target,
  coalesce(q.dead_letter_limit, (q.defaults ->> 'dead_letter_limit')::integer, 0) AS dead_letter_limit,
  coalesce(v.workers, 0) AS workers_live, coalesce(v.slots, 0) AS slots, coalesce(d.n, 0) AS dead_recent,
  (SELECT count(*) FROM (SELECT FROM pgqueue.dead_letter_jobs l WHERE l.queue = n.queue AND l.redriven_as IS NULL
    ORDER BY l.task, l.created_at LIMIT 10001) w) AS dead_waiting
FROM named n
LEFT JOIN pgqueue.queues q ON q.name = n.queue
LEFT JOIN held h ON h.queue = n.queue
LEFT JOIN scheduled s ON s.queue = n.queue
LEFT JOIN died d ON d.queue = n.queue
LEFT JOIN running r ON r.queue = n.queue
LEFT JOIN served v ON v.queue = n.queue
CROSS JOIN LATERAL (SELECT count(*) AS n FROM (SELECT FROM pgqueue.jobs j
  WHERE j.ready_seq IS NOT NULL AND j.queue = n.queue ORDER BY j.priority, j.ready_seq LIMIT 10001) w) lane
CROSS JOIN LATERAL (SELECT min(first.due_at) AS due_at FROM generate_series(0, 9) AS p (priority)
  CROSS JOIN LATERAL (SELECT j.run_at AS due_at FROM pgqueue.jobs j
    WHERE j.ready_seq IS NOT NULL AND j.state = 'ready' AND j.queue = n.queue AND j.priority = p.priority
    ORDER BY j.ready_seq LIMIT 1) first) head;
COMMENT ON VIEW pgqueue.queue_health IS 'One row per queue, also those that no worker ever served (known = false): what is due, how late the oldest is (lag_s, not that of deferred or limited jobs), who works on it, what was promised. Counts end at 10,001; scheduled ones at the 20,000 soonest of all queues';

CREATE VIEW pgqueue.running_jobs AS
SELECT j.id AS job_id, j.queue, j.task, j.attempt, j.max_attempts, j.started_at,
  extract(epoch FROM clock_timestamp() - j.started_at)::double precision AS age_s,
  j.worker_id, w.host, w.pid, w.status AS worker_status, j.cancel_requested_at, j.progress
FROM pgqueue.claims c CROSS JOIN LATERAL unnest(c.job_ids) AS m (id)
CROSS JOIN LATERAL (SELECT * FROM pgqueue.jobs r WHERE r.id = m.id AND r.claim_id = c.claim_id OFFSET 0) j
LEFT JOIN pgqueue.workers w ON w.id = j.worker_id;
COMMENT ON VIEW pgqueue.running_jobs IS 'Claimed jobs and where they run';

CREATE VIEW pgqueue.dead_letter_summary AS
SELECT d.queue, d.task, d.reason, d.error_type, d.error_fingerprint, count(*) AS dead, min(d.created_at) AS first_at, max(d.created_at) AS last_at,
  (array_agg(d.error_message ORDER BY d.created_at DESC))[1] AS sample_message
FROM pgqueue.dead_letter_jobs d
WHERE d.redriven_as IS NULL
GROUP BY d.queue, d.task, d.reason, d.error_type, d.error_fingerprint;
COMMENT ON VIEW pgqueue.dead_letter_summary IS 'Dead letters that wait for a decision, grouped by cause';

CREATE FUNCTION pgqueue.job_timeline(job_id bigint)
RETURNS TABLE (at timestamptz, event text, from_state text, to_state text, reason text, actor text, attempt integer, detail text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  WITH whole AS MATERIALIZED (
    SELECT j.created_at, j.run_at, j.started_at, j.state, j.attempt::integer AS attempt, j.worker_id, NULL::timestamptz AS finished_at, j.redrive_of, j.parent_id,
      j.headers, j.errors
      FROM pgqueue.jobs j WHERE j.id = job_timeline.job_id
    UNION ALL
    SELECT h.enqueued_at, h.due_at, h.started_at, h.state, h.attempts, h.worker_id, h.finished_at, h.redrive_of, h.parent_id, h.headers, h.errors
      FROM pgqueue.job_history h WHERE h.job_id = job_timeline.job_id
    UNION ALL
    SELECT d.job_created_at, NULL, NULL, 'dead', d.attempts, d.worker_id, d.created_at, d.redrive_of, d.parent_id, d.headers, d.errors
      FROM pgqueue.dead_letter_jobs d WHERE d.job_id = job_timeline.job_id
  ), moves AS MATERIALIZED (
    SELECT t.* FROM pgqueue.job_transitions t WHERE t.job_id = job_timeline.job_id
  ), failed AS MATERIALIZED (
    SELECT (e.value ->> 'attempt')::integer AS attempt, max(e.value ->> 'message') AS message
    FROM whole w CROSS JOIN LATERAL jsonb_array_elements(w.errors) AS e (value) GROUP BY 1
  ), told AS (
    SELECT w.created_at AS at, 0 AS place, 'enqueued' AS event, NULL AS from_state, NULL AS to_state, NULL AS reason, NULL AS actor,
        NULL::integer AS attempt,
        concat_ws(', ', 'repeats dead letter ' || w.redrive_of, 'enqueued by job ' || w.parent_id,
          'from message ' || (w.headers ->> 'pgqueue.message_id') || coalesce(', ' || (w.headers ->> 'pgqueue.topic'), ''),
          'fire of ' || (w.headers ->> 'pgqueue.schedule')) AS detail FROM whole w
    UNION ALL
    -- The newest claim. A suspect of its worker's death is claimed alone, from where it is held.
    SELECT w.started_at, 2, 'claimed',
        CASE (SELECT m.to_state FROM moves m WHERE m.at <= w.started_at ORDER BY m.at DESC, m.id DESC LIMIT 1) WHEN 'held' THEN 'held' ELSE 'ready' END,
        'running', 'claimed', 'worker:' || w.worker_id, w.attempt, NULL FROM whole w
      WHERE w.started_at IS NOT NULL AND NOT EXISTS (SELECT FROM moves m WHERE m.reason = 'claimed')
    UNION ALL
    SELECT m.at, 3, CASE m.reason WHEN 'claimed' THEN 'claimed' ELSE 'transition' END, m.from_state, m.to_state, m.reason, m.actor, m.attempt::integer,
        concat_ws(', ', m.error_type || coalesce(': ' || left(f.message, 200), ''), 'waited ' || round(m.wait_s::numeric, 3) || ' s',
          'ran ' || round(m.run_s::numeric, 3) || ' s', 'next ' || m.next_run_at, m.note)
      FROM moves m LEFT JOIN failed f ON f.attempt = m.attempt AND m.error_type IS NOT NULL
      -- Told above and below already, with more.
      WHERE m.reason NOT IN ('enqueued', 'succeeded')
    UNION ALL
    SELECT s.recorded_at, 3, 'step', NULL, NULL, s.name, 'worker:' || s.worker_id, s.attempt::integer,
        concat_ws(', ', 'took ' || round(s.run_s::numeric, 3) || ' s', s.refused)
      FROM pgqueue.job_steps s WHERE s.job_id = job_timeline.job_id
    UNION ALL
    SELECT o.emitted_at, 3, 'emitted', NULL, NULL, o.topic, NULL, NULL,
        concat_ws(', ', 'message ' || o.id, 'key ' || o.key,
          CASE o.state WHEN 'new' THEN 'no relay has seen it' WHEN 'parked' THEN 'nobody subscribes' ELSE 'waits for ' || o.pending || ' sinks' END)
      FROM pgqueue.outbox o WHERE o.job_id = job_timeline.job_id
    UNION ALL
    SELECT l.created_at, 3, 'undelivered', NULL, NULL, l.topic, NULL, NULL,
        concat_ws(', ', 'message ' || l.message_id || ' to ' || l.sink, l.reason, l.error_type, 'after ' || l.attempts || ' tries')
      FROM pgqueue.outbox_dead_letters l WHERE l.job_id = job_timeline.job_id
    UNION ALL
    SELECT w.finished_at, 4, 'ended', 'running', w.state, w.state, 'worker:' || w.worker_id, w.attempt, NULL FROM whole w WHERE w.state = 'succeeded'
    UNION ALL
    SELECT a.at, 5, 'operator', NULL, NULL, a.action, a.actor, NULL,
        concat_ws(', ', a.reason, 'via ' || a.via, 'as job ' || (a.detail ->> 'redriven_as')) FROM pgqueue.operator_audit a
      WHERE a.target IN ('job ' || job_timeline.job_id, 'dead letter ' || job_timeline.job_id)
  )
  SELECT t.at, t.event, t.from_state, t.to_state, t.reason, t.actor, t.attempt, t.detail FROM told t ORDER BY t.at, t.place;
$$;
COMMENT ON FUNCTION pgqueue.job_timeline IS 'One job''s life from its enqueue to its end, in order: moves with the errors of attempts, steps, messages that have not reached everybody, deeds of people';

-- What held jobs wait for, counted per queue: for metrics and DBAs who may not read the jobs themselves.
-- The groups are found by one probe of jobs_held_idx each, however many jobs a group has.
CREATE VIEW pgqueue.held_summary AS
WITH RECURSIVE groups AS (
  (SELECT j.hold_reason, j.queue FROM pgqueue.jobs j WHERE j.hold_reason IS NOT NULL ORDER BY j.hold_reason, j.queue LIMIT 1)
  UNION ALL
  SELECT f.hold_reason, f.queue FROM groups g CROSS JOIN LATERAL (
    SELECT j.hold_reason, j.queue FROM pgqueue.jobs j
    WHERE j.hold_reason IS NOT NULL AND (j.hold_reason, j.queue) > (g.hold_reason, g.queue)
    ORDER BY j.hold_reason, j.queue LIMIT 1) f
)
SELECT g.queue, g.hold_reason,
  (SELECT count(*) FROM (SELECT FROM pgqueue.jobs j WHERE j.hold_reason = g.hold_reason AND j.queue = g.queue LIMIT 10001) c) AS held
FROM groups g;
COMMENT ON VIEW pgqueue.held_summary IS 'Held jobs by queue and by what they wait for; counts are capped at 10,001';

-- Why is this job not running? One answer, and the command that changes it.

CREATE FUNCTION pgqueue.explain(job_id bigint)
RETURNS TABLE (id bigint, state text, reason text, sentence text, command text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  the_id bigint := explain.job_id;
  j pgqueue.jobs;
  h record;
  d record;
  w record;
  p record;
  ahead bigint;
  moment timestamptz := clock_timestamp();
BEGIN
  explain.id := the_id;
  SELECT * INTO j FROM pgqueue.jobs x WHERE x.id = the_id;
  IF NOT FOUND THEN
    SELECT x.state, x.finished_at INTO h FROM pgqueue.job_history x WHERE x.job_id = the_id LIMIT 1;
    IF FOUND THEN
      explain.state := h.state;
      explain.reason := 'ended';
      explain.sentence := format('job %s: it %s at %s', the_id, CASE h.state WHEN 'succeeded' THEN 'succeeded' ELSE 'was cancelled' END,
        to_char(h.finished_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'));
      RETURN NEXT;
      RETURN;
    END IF;
    SELECT x.reason, x.attempts, x.max_attempts, x.redriven_as, x.error_type INTO d FROM pgqueue.dead_letter_jobs x WHERE x.job_id = the_id;
    IF FOUND THEN
      explain.state := 'dead';
      explain.reason := CASE WHEN d.redriven_as IS NULL THEN 'dead' ELSE 'redriven' END;
      explain.sentence := format('job %s: it died (%s%s) after %s of %s attempts', the_id, d.reason, ', ' || d.error_type, d.attempts, d.max_attempts)
        || coalesce(' and goes on as job ' || d.redriven_as, '');
      explain.command := CASE WHEN d.redriven_as IS NULL THEN 'pgqueue dlq redrive ' || the_id ELSE 'pgqueue jobs explain ' || d.redriven_as END;
      RETURN NEXT;
      RETURN;
    END IF;
    explain.state := 'unknown';
    explain.reason := 'unknown';
    explain.sentence := format('job %s: no such job; it never existed, its transaction has not committed, or its history is past retention', the_id);
    RETURN NEXT;
    RETURN;
  END IF;

  explain.state := j.state;
  SELECT q.paused_at, q.paused_by, q.pause_reason INTO p FROM pgqueue.queues q
    WHERE q.name = j.queue AND q.paused_at IS NOT NULL AND (q.paused_until IS NULL OR q.paused_until > moment);
  IF j.state = 'running' THEN
    SELECT x.host, x.pid, x.status IN ('live', 'draining') AND x.beat_at + make_interval(secs => x.lease_s) > moment AS alive INTO w
      FROM pgqueue.workers x WHERE x.id = j.worker_id;
    IF w.alive THEN
      explain.reason := CASE WHEN j.cancel_requested_at IS NULL THEN 'running' ELSE 'cancelling' END;
      explain.sentence := format('job %s: it is with worker %s (%s, pid %s) since %s s, attempt %s of %s', the_id, left(j.worker_id::text, 8),
        w.host, w.pid, round(extract(epoch FROM moment - j.started_at)), j.attempt, j.max_attempts)
        || CASE WHEN j.cancel_requested_at IS NULL THEN '' ELSE ', and was asked to stop' END;
      explain.command := CASE WHEN j.cancel_requested_at IS NULL THEN 'pgqueue jobs cancel ' || the_id END;
    ELSE
      explain.reason := 'worker_gone';
      explain.sentence := format('job %s: its worker %s is gone; any living worker takes it back within its lease', the_id, left(j.worker_id::text, 8));
      explain.command := 'pgqueue workers list --ended';
    END IF;
  ELSIF j.hold_reason = 'window' AND j.run_at > moment THEN
    explain.reason := 'window';
    explain.sentence := format('job %s: collected with others of task %s until %s, in %s s, for one call', the_id, j.task,
      to_char(j.run_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'), ceil(extract(epoch FROM j.run_at - moment)));
    explain.command := 'pgqueue jobs run-now ' || the_id;
  ELSIF j.state = 'held' AND j.hold_reason <> 'window' THEN
    explain.reason := j.hold_reason;
    explain.sentence := format('job %s: held, %s', the_id, CASE j.hold_reason
      WHEN 'unknown_task' THEN format('no worker of queue %s knows task %s; a worker that does frees it by itself', j.queue, j.task)
      WHEN 'suspect' THEN 'its last worker died while it had it; it runs alone, one such job at a time'
      ELSE j.hold_reason END);
    explain.command := CASE j.hold_reason WHEN 'unknown_task' THEN 'pgqueue worker -A … -q ' || j.queue ELSE 'pgqueue jobs run-now ' || the_id END;
  ELSIF j.state = 'scheduled' AND j.run_at > moment THEN
    explain.reason := CASE WHEN j.attempt > 0 THEN 'retry' ELSE 'scheduled' END;
    explain.sentence := format('job %s: scheduled until %s, in %s s', the_id, to_char(j.run_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'),
        ceil(extract(epoch FROM j.run_at - moment)))
      || CASE WHEN j.attempt > 0 THEN format(', after attempt %s of %s%s', j.attempt, j.max_attempts, ' failed with ' || (j.errors -> -1 ->> 'type')) ELSE '' END;
    explain.command := 'pgqueue jobs run-now ' || the_id;
  ELSIF p.paused_at IS NOT NULL THEN
    explain.reason := 'paused';
    explain.sentence := format('job %s: queue %s is paused since %s by %s%s', the_id, j.queue,
      to_char(p.paused_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'), p.paused_by, ': ' || p.pause_reason);
    explain.command := 'pgqueue queues resume ' || j.queue;
  ELSIF NOT EXISTS (SELECT FROM pgqueue.workers x WHERE x.status = 'live' AND j.queue = ANY (x.queues)
      AND x.beat_at + make_interval(secs => x.lease_s) > moment) THEN
    explain.reason := 'no_worker';
    explain.sentence := format('job %s: no living worker serves queue %s', the_id, j.queue);
    explain.command := 'pgqueue worker -A … -q ' || j.queue;
  ELSIF j.hold_reason = 'window' THEN
    explain.reason := 'window_ended';
    explain.sentence := format('job %s: its window ended %s s ago; it goes along in the window''s next call', the_id,
      round(extract(epoch FROM moment - j.run_at)));
  ELSIF j.state = 'scheduled' THEN
    explain.reason := 'due';
    explain.sentence := format('job %s: due since %s s; the next round of promotion makes it ready', the_id, round(extract(epoch FROM moment - j.run_at)));
  ELSIF j.expires_at <= moment THEN
    explain.reason := 'expired';
    explain.sentence := format('job %s: it was not worth starting after %s; the worker that claims it lets it die as expired', the_id,
      to_char(j.expires_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'));
  ELSE
    SELECT count(*) INTO ahead FROM (SELECT FROM pgqueue.jobs x WHERE x.ready_seq IS NOT NULL AND x.queue = j.queue
      AND (x.priority, x.ready_seq) < (j.priority, j.ready_seq) AND x.state = 'ready' ORDER BY x.priority, x.ready_seq LIMIT 10001) c;
    explain.reason := CASE ahead WHEN 0 THEN 'next' ELSE 'behind' END;
    explain.sentence := CASE ahead WHEN 0 THEN format('job %s: first in queue %s; it starts when a slot is free', the_id, j.queue)
      ELSE format('job %s: behind %s jobs of queue %s', the_id, CASE WHEN ahead > 10000 THEN 'more than 10000' ELSE ahead::text END, j.queue) END;
    explain.command := CASE WHEN ahead > 0 THEN format('pgqueue worker -A … -q %s', j.queue) END;
  END IF;
  RETURN NEXT;
END $$;
COMMENT ON FUNCTION pgqueue.explain IS 'The one reason why a job is not running, and the command that lifts it; shows no arguments';

-- Who may do what. The four roles are groups without login; their members are the logins of applications, workers,
-- people and dashboards. Roles belong to the whole cluster, rights to this database.

-- Letters: S select, s select without what is hidden below, I insert, U update, D delete, X execute, - nothing.
-- A worker holds claims and ends them, so it writes the tables of its work. Everybody else writes through functions,
-- which check, and note what people do. A name without an object here is one that another revision brings.
CREATE FUNCTION pgqueue.role_rights()
RETURNS TABLE (kind text, object text, role text, privilege text, columns text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  WITH matrix (name, producer, worker, operator, reader) AS (VALUES
    ('jobs', '-', 'SUD', 'S', '-'),
    ('claims', '-', 'SIUD', 'S', 'S'),
    ('job_history', '-', 'SI', 'S', 's'),
    ('job_transitions', '-', 'SI', 'S', 'S'),
    ('job_history_default', '-', '-', 'S', '-'),
    ('job_transitions_default', '-', '-', 'S', '-'),
    ('dead_letter_jobs', '-', 'SI', 'S', 's'),
    ('dedup_keys', '-', 'SIUD', 'S', '-'),
    ('job_steps', '-', 'SID', 'S', 's'),
    ('queues', '-', 'SI', 'S', 'S'),
    ('tasks', '-', 'SIU', 'S', 'S'),
    ('workers', '-', 'SIUD', 'S', 'S'),
    ('sleepers', '-', 'SIUD', 'S', 'S'),
    ('operator_audit', '-', '-', 'S', 'S'),
    ('stats_minutely', '-', 'SIUD', 'S', 'S'),
    ('stats_progress', '-', 'S', 'S', 'S'),
    ('history_sweeps', '-', '-', 'S', 'S'),
    ('upkeep_duties', '-', 'SIU', 'S', 'S'),
    ('held_summary', '-', 'S', 'S', 'S'),
    ('upkeep_status', '-', 'S', 'S', 'S'),
    ('schedules', '-', 'SIU', 'S', 'S'),
    ('schedule_runs', '-', 'SIUD', 'S', 'S'),
    ('outbox', '-', 'SIUD', 'S', '-'),
    ('outbox_lanes', '-', 'SIUD', 'S', '-'),
    ('outbox_deliveries', '-', 'SIUD', 'S', '-'),
    ('outbox_dead_letters', '-', 'SIUD', 'S', '-'),
    ('outbox_subscriptions', '-', 'SIUD', 'S', '-'),
    ('outbox_relays', '-', 'SIUD', 'S', 'S'),
    ('outbox_status', '-', 'S', 'S', 'S'),
    ('alert_rules', '-', 'S', 'S', 'S'),
    ('alert_events', '-', 'S', 'S', 'S'),
    ('alert_deliveries', '-', 'SU', 'S', 'S'),
    ('alert_evaluations', '-', 'S', 'S', 'S'),
    ('shipped_alert_rules', '-', 'S', 'S', 'S'),
    ('alembic_version', 'S', 'S', 'S', 'S'),
    ('queue_health', '-', 'S', 'S', 'S'),
    ('running_jobs', '-', 'S', 'S', 'S'),
    ('dead_letter_summary', '-', 'S', 'S', 'S'),
    ('schedule_status', '-', 'S', 'S', 'S'),
    ('job_seq', '-', 'u', '-', '-'),
    ('outbox_seq', '-', 'u', '-', '-'),
    ('enqueue', 'X', 'X', 'X', '-'),
    ('enqueue_many', 'X', 'X', 'X', '-'),
    ('enqueue_job', 'X', 'X', 'X', '-'),
    ('enqueue_jobs', 'X', 'X', 'X', '-'),
    ('put_job', 'X', 'X', 'X', '-'),
    ('put_jobs', 'X', 'X', 'X', '-'),
    ('enqueue_receipt', 'X', 'X', 'X', '-'),
    ('enqueue_outcome', 'X', 'X', 'X', '-'),
    ('emit', 'X', 'X', 'X', '-'),
    ('put_message', 'X', 'X', 'X', '-'),
    ('emit_receipt', 'X', 'X', 'X', '-'),
    ('emit_outcome', 'X', 'X', 'X', '-'),
    ('accept_message', 'X', 'X', '-', '-'),
    ('cancel', 'X', 'X', 'X', '-'),
    ('run_now', '-', '-', 'X', '-'),
    ('reschedule', 'X', 'X', 'X', '-'),
    ('redrive', '-', '-', 'X', '-'),
    ('discard', '-', '-', 'X', '-'),
    ('pause', '-', '-', 'X', '-'),
    ('resume', '-', '-', 'X', '-'),
    ('note_operation', '-', '-', 'X', '-'),
    ('pause_schedule', '-', '-', 'X', '-'),
    ('resume_schedule', '-', '-', 'X', '-'),
    ('run_schedule', '-', '-', 'X', '-'),
    ('delete_schedule', '-', '-', 'X', '-'),
    ('put_schedule', '-', 'X', 'X', '-'),
    ('tick_schedule', '-', 'X', '-', '-'),
    ('prune_orphans', '-', 'X', '-', '-'),
    ('drain_worker', '-', '-', 'X', '-'),
    ('set_queue', '-', '-', 'X', '-'),
    ('register_queues', '-', 'X', '-', '-'),
    ('claim_lanes', '-', 'X', '-', '-'),
    ('settle_lane', '-', 'X', '-', '-'),
    ('route_messages', '-', 'X', '-', '-'),
    ('put_subscriptions', '-', 'X', '-', '-'),
    ('subscribe', '-', '-', 'X', '-'),
    ('unsubscribe', '-', '-', 'X', '-'),
    ('replay_message', '-', '-', 'X', '-'),
    ('skip_message', '-', '-', 'X', '-'),
    ('topic_matches', '-', 'X', 'X', 'X'),
    ('paused_queues', '-', 'X', '-', '-'),
    ('evaluate_alerts', '-', 'X', 'X', '-'),
    ('ack_alert', '-', '-', 'X', '-'),
    ('set_alert_rule', '-', '-', 'X', '-'),
    ('restore_alert_rules', '-', '-', 'X', '-'),
    ('wake', '-', 'X', '-', '-'),
    ('take_once', '-', 'X', '-', '-'),
    ('keep_once', '-', 'X', '-', '-'),
    ('keep_results', '-', 'X', '-', '-'),
    ('note_moves', '-', 'X', '-', '-'),
    ('key_result', 'X', 'X', 'X', '-'),
    ('assert_settled', '-', 'X', '-', '-'),
    ('ensure_partitions', '-', 'X', '-', '-'),
    ('drop_partition', '-', 'X', '-', '-'),
    ('prune_default_partitions', '-', 'X', '-', '-'),
    ('sweep_history', '-', 'X', '-', '-'),
    ('prune_redriven', '-', 'X', '-', '-'),
    ('discard_old_letters', '-', 'X', '-', '-'),
    ('summarize_days', '-', 'X', '-', '-'),
    ('roll_up', '-', 'X', '-', '-'),
    ('recount', '-', 'X', '-', '-'),
    ('bucket_bounds', '-', 'X', 'X', 'X'),
    ('bucket_percentile', '-', 'X', 'X', 'X'),
    ('work_stats', '-', 'X', 'X', 'X'),
    ('keep_history', '-', '-', 'X', '-'),
    ('explain', '-', 'X', 'X', 'X'),
    ('job_timeline', '-', 'X', 'X', 'X'),
    ('role_rights', '-', '-', 'X', 'X')
  ), wanted AS (
    SELECT m.name, g.role, CASE l.letter WHEN 'S' THEN 'SELECT' WHEN 's' THEN 'SELECT' WHEN 'I' THEN 'INSERT' WHEN 'U' THEN 'UPDATE'
      WHEN 'D' THEN 'DELETE' WHEN 'X' THEN 'EXECUTE' WHEN 'u' THEN 'USAGE' END AS privilege, l.letter = 's' AS partly
    FROM matrix m
    CROSS JOIN LATERAL (VALUES ('pgqueue_producer', m.producer), ('pgqueue_worker', m.worker), ('pgqueue_operator', m.operator),
      ('pgqueue_reader', m.reader)) AS g (role, letters)
    CROSS JOIN LATERAL regexp_split_to_table(g.letters, '') AS l (letter)
    WHERE l.letter <> '-'
  )
  SELECT 'SCHEMA', 'pgqueue', r.role, 'USAGE', NULL
  FROM unnest(ARRAY['pgqueue_producer', 'pgqueue_worker', 'pgqueue_operator', 'pgqueue_reader']) AS r (role)
  UNION ALL
  SELECT CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, c.oid::regclass::text, w.role, w.privilege,
    CASE WHEN w.partly THEN (SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum) FROM pg_attribute a
      WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        AND a.attname NOT IN ('args', 'headers', 'result', 'traceback', 'payload')) END
  FROM wanted w JOIN pg_class c ON c.relname = w.name AND c.relnamespace = 'pgqueue'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'S')
  UNION ALL
  SELECT 'FUNCTION', p.oid::regprocedure::text, w.role, w.privilege, NULL
  FROM wanted w JOIN pg_proc p ON p.proname = w.name AND p.pronamespace = 'pgqueue'::regnamespace
  WHERE w.privilege = 'EXECUTE'
$$;
COMMENT ON FUNCTION pgqueue.role_rights IS 'What each of the four roles is granted in this database, as grant_roles() grants it';

-- Does the same whenever it runs. Not with its owner's rights: who may not grant is told so by the server.
CREATE FUNCTION pgqueue.grant_roles() RETURNS SETOF text
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  the_role text;
  line record;
BEGIN
  FOREACH the_role IN ARRAY ARRAY['pgqueue_producer', 'pgqueue_worker', 'pgqueue_operator', 'pgqueue_reader'] LOOP
    IF to_regrole(the_role) IS NULL AND (SELECT r.rolsuper OR r.rolcreaterole FROM pg_roles r WHERE r.rolname = current_user) THEN
      BEGIN
        EXECUTE format('CREATE ROLE %I NOLOGIN', the_role);
      EXCEPTION
        -- A migration of another database of this cluster was faster.
        WHEN duplicate_object OR unique_violation THEN NULL;
      END;
    END IF;
    IF to_regrole(the_role) IS NULL THEN
      RETURN NEXT the_role;
      CONTINUE;
    END IF;
    EXECUTE format('REVOKE ALL ON ALL TABLES IN SCHEMA pgqueue FROM %I', the_role);
    EXECUTE format('REVOKE ALL ON ALL SEQUENCES IN SCHEMA pgqueue FROM %I', the_role);
    EXECUTE format('REVOKE ALL ON ALL FUNCTIONS IN SCHEMA pgqueue FROM %I', the_role);
    FOR line IN SELECT * FROM pgqueue.role_rights() w WHERE w.role = the_role LOOP
      EXECUTE format('GRANT %s%s ON %s %s TO %I', line.privilege, ' (' || line.columns || ')', line.kind, line.object, the_role);
    END LOOP;
  END LOOP;
END $$;
COMMENT ON FUNCTION pgqueue.grant_roles IS 'Makes the four roles, if the caller may, and grants each exactly its rights here; returns the roles that are missing';

-- PUBLIC gets nothing. New functions are open to everybody until this is said, and default privileges within a schema
-- can only add to that, never take away: so every revision ends with these lines.
REVOKE ALL ON ALL TABLES IN SCHEMA pgqueue FROM PUBLIC;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA pgqueue FROM PUBLIC;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA pgqueue FROM PUBLIC;
SELECT pgqueue.grant_roles();
