-- Idempotency keys: at most one job per (task, key) while the key is held. They outlive their jobs.
-- How long a key is held, its scope: a time; for ever; while its job is live; while its job waits for its first
-- start. The last two end with what the job's own row says, so that settling a job never touches its key.
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
COMMENT ON COLUMN pgqueue.dedup_keys.result IS 'The job''s result once its history is gone, or what the handler kept under ctx.once';
