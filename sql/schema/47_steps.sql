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
