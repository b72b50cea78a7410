-- Idempotency keys: at most one job per (task, key) until the key expires. They outlive their jobs.
CREATE TABLE pgqueue.dedup_keys (
  task text NOT NULL,
  key text NOT NULL,
  job_id bigint NOT NULL,
  created_at timestamptz NOT NULL,
  expires_at timestamptz NOT NULL,
  result jsonb,
  PRIMARY KEY (task, key)
);
CREATE INDEX dedup_keys_expires_at_idx ON pgqueue.dedup_keys (expires_at);

COMMENT ON TABLE pgqueue.dedup_keys IS 'Who was first under an idempotency key';
COMMENT ON COLUMN pgqueue.dedup_keys.task IS 'Task name; keys of different tasks never meet';
COMMENT ON COLUMN pgqueue.dedup_keys.key IS 'The caller''s key';
COMMENT ON COLUMN pgqueue.dedup_keys.job_id IS 'The first job, whose id every later caller gets';
COMMENT ON COLUMN pgqueue.dedup_keys.created_at IS 'When it was first used';
COMMENT ON COLUMN pgqueue.dedup_keys.expires_at IS 'From here on the key is free again; ''infinity'' = never';
COMMENT ON COLUMN pgqueue.dedup_keys.result IS 'The first job''s result, kept as long as the key';
