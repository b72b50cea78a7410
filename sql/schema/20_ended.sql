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
