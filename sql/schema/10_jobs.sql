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
