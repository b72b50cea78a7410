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
