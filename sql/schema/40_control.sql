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
