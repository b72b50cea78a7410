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
  IF args IS NULL OR jsonb_typeof(args) <> 'object' THEN
    RAISE EXCEPTION 'args: must be a JSON object; pass the arguments by name, as in {"ride_id": 7}' USING ERRCODE = '22023';
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
  IF bytes > 262144 THEN
    RAISE EXCEPTION '%: are too large; store the data in a table and pass its id (limit: 262144 bytes)', field USING ERRCODE = '22023';
  ELSIF bytes > 128 AND jsonb_path_exists(args, 'strict $.**{64} ? (@.type() == "object" || @.type() == "array")') THEN
    RAISE EXCEPTION '%: are nested too deep (limit: 64 levels)', field USING ERRCODE = '22023';
  END IF;
END $$;
COMMENT ON FUNCTION pgqueue.check_args IS 'Raises 22023 if a job''s arguments are too large or nested too deep';

-- The options that only enqueue_job and enqueue_jobs take.
CREATE FUNCTION pgqueue.check_options(retry jsonb, timeout_s double precision, expires_at timestamptz, concurrency_key text, tags text[])
RETURNS void LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
BEGIN
  IF jsonb_typeof(retry) <> 'object' THEN
    RAISE EXCEPTION 'retry: must be a JSON object' USING ERRCODE = '22023';
  ELSIF NOT timeout_s BETWEEN 0.001 AND 315576000 THEN
    RAISE EXCEPTION 'timeout: is out of range (limit: 1ms to 3652d 12h)' USING ERRCODE = '22023';
  ELSIF expires_at >= '9999-01-01 00:00:00+00' OR NOT isfinite(expires_at) THEN
    RAISE EXCEPTION 'expires_at: is not a moment before the year 9999' USING ERRCODE = '22023';
  ELSIF cardinality(tags) > 20 OR EXISTS (SELECT FROM unnest(tags) t (tag) WHERE t.tag IS NULL OR length(t.tag) NOT BETWEEN 1 AND 60) THEN
    RAISE EXCEPTION 'tags: must be at most 20 texts of 1-60 characters' USING ERRCODE = '22023';
  END IF;
  IF concurrency_key IS NOT NULL THEN
    PERFORM pgqueue.check_key('concurrency_key', concurrency_key);
  END IF;
END $$;
COMMENT ON FUNCTION pgqueue.check_options IS 'Raises 22023 if one of the rarer options of a job is out of bounds';

-- Takes the key, or tells who has it. A conflict is looked at in a second statement: one statement sees
-- nothing after it waited for the other's commit.
CREATE FUNCTION pgqueue.take_key(task text, key text, ttl interval, OUT job_id bigint, OUT taken boolean)
LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
  moment timestamptz := clock_timestamp();
  until timestamptz := moment + coalesce(take_key.ttl, interval '24 hours');
  free_from timestamptz;
BEGIN
  LOOP
    INSERT INTO pgqueue.dedup_keys AS k (task, key, job_id, created_at, expires_at)
      VALUES (take_key.task, take_key.key, nextval('pgqueue.job_seq'), moment, until)
      ON CONFLICT (task, key) DO NOTHING
      RETURNING k.job_id INTO take_key.job_id;
    IF FOUND THEN
      take_key.taken := true;
      RETURN;
    END IF;
    SELECT k.job_id, k.expires_at INTO take_key.job_id, free_from
      FROM pgqueue.dedup_keys k WHERE k.task = take_key.task AND k.key = take_key.key;
    IF FOUND AND free_from > clock_timestamp() THEN
      take_key.taken := false;
      RETURN;
    END IF;
    -- Expired: the first to update it owns it; whoever comes second finds it alive again and goes round.
    UPDATE pgqueue.dedup_keys k
      SET job_id = nextval('pgqueue.job_seq'), created_at = moment, expires_at = until, result = NULL
      WHERE k.task = take_key.task AND k.key = take_key.key AND k.expires_at <= clock_timestamp()
      RETURNING k.job_id INTO take_key.job_id;
    IF FOUND THEN
      take_key.taken := true;
      RETURN;
    END IF;
  END LOOP;
END $$;
COMMENT ON FUNCTION pgqueue.take_key IS 'Takes an idempotency key for a new job id, or returns the id of the job that has it';

CREATE FUNCTION pgqueue.wake(queue text) RETURNS void
LANGUAGE plpgsql VOLATILE AS $$
BEGIN
  -- A notifying commit serialises all notifying commits of the cluster, so only sleepers are notified.
  IF EXISTS (SELECT FROM pgqueue.sleepers s WHERE s.queue = wake.queue) THEN
    PERFORM pg_notify('pgqueue_wake', '');
  END IF;
END $$;
COMMENT ON FUNCTION pgqueue.wake IS 'Notifies at commit, if a worker of the queue sleeps';

-- checked: the caller has applied these rules itself, with its own limit of size; the table's CHECKs remain.
CREATE FUNCTION pgqueue.enqueue_job(
  task text, args jsonb DEFAULT '{}', queue text DEFAULT NULL, priority integer DEFAULT NULL, delay interval DEFAULT NULL,
  run_at timestamptz DEFAULT NULL, idempotency_key text DEFAULT NULL, key_ttl interval DEFAULT NULL, headers jsonb DEFAULT NULL,
  max_attempts integer DEFAULT NULL, retry jsonb DEFAULT NULL, timeout_s double precision DEFAULT NULL,
  expires_at timestamptz DEFAULT NULL, concurrency_key text DEFAULT NULL, tags text[] DEFAULT NULL,
  parent_id bigint DEFAULT NULL, wake boolean DEFAULT true, checked boolean DEFAULT false,
  OUT job_id bigint, OUT created boolean)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  moment timestamptz;
  due timestamptz;
  known record;
  asleep boolean;
BEGIN
  IF NOT enqueue_job.checked THEN
    enqueue_job.checked := pgqueue.check_job(enqueue_job.task, enqueue_job.args, enqueue_job.queue, enqueue_job.priority, enqueue_job.delay,
      enqueue_job.run_at, enqueue_job.idempotency_key, enqueue_job.key_ttl, enqueue_job.headers, enqueue_job.max_attempts);
    PERFORM pgqueue.check_options(enqueue_job.retry, enqueue_job.timeout_s, enqueue_job.expires_at, enqueue_job.concurrency_key, enqueue_job.tags)
      WHERE num_nonnulls(enqueue_job.retry, enqueue_job.timeout_s, enqueue_job.expires_at, enqueue_job.concurrency_key, enqueue_job.tags) > 0;
  END IF;
  IF enqueue_job.queue IS NULL OR enqueue_job.priority IS NULL OR enqueue_job.max_attempts IS NULL THEN
    SELECT t.queue, t.priority, t.max_attempts INTO known FROM pgqueue.tasks t WHERE t.name = enqueue_job.task;
    enqueue_job.queue := coalesce(enqueue_job.queue, known.queue, 'default');
    enqueue_job.priority := coalesce(enqueue_job.priority, known.priority, 5);
    enqueue_job.max_attempts := coalesce(enqueue_job.max_attempts, known.max_attempts, 6);
  END IF;

  IF enqueue_job.idempotency_key IS NULL THEN
    enqueue_job.job_id := nextval('pgqueue.job_seq');
  ELSE
    SELECT k.job_id, k.taken INTO enqueue_job.job_id, enqueue_job.created
      FROM pgqueue.take_key(enqueue_job.task, enqueue_job.idempotency_key, enqueue_job.key_ttl) k;
    IF NOT enqueue_job.created THEN
      RETURN;
    END IF;
  END IF;

  -- clock_timestamp, not now(): a job enqueued late in a long transaction is not late.
  moment := clock_timestamp();
  due := greatest(moment, enqueue_job.run_at, moment + enqueue_job.delay);
  INSERT INTO pgqueue.jobs AS j (id, created_at, run_at, ready_seq, priority, max_attempts, state, queue, task, args, headers, tags,
      idempotency_key, concurrency_key, timeout_s, expires_at, retry, parent_id)
    VALUES (enqueue_job.job_id, moment, due, CASE WHEN due = moment THEN enqueue_job.job_id END, enqueue_job.priority,
      enqueue_job.max_attempts, CASE WHEN due = moment THEN 'ready' ELSE 'scheduled' END, enqueue_job.queue, enqueue_job.task,
      enqueue_job.args, enqueue_job.headers, enqueue_job.tags, enqueue_job.idempotency_key, enqueue_job.concurrency_key,
      enqueue_job.timeout_s, enqueue_job.expires_at, enqueue_job.retry, enqueue_job.parent_id)
    -- As wake() does, without a statement of its own.
    RETURNING true, CASE WHEN enqueue_job.wake AND due = moment AND EXISTS (SELECT FROM pgqueue.sleepers s WHERE s.queue = j.queue)
      THEN pg_notify('pgqueue_wake', '') IS NOT NULL END INTO enqueue_job.created, asleep;
END $$;
COMMENT ON FUNCTION pgqueue.enqueue_job IS 'Enqueues one job in the caller''s transaction; created is false when the idempotency key already had a job, whose id is returned';

CREATE FUNCTION pgqueue.enqueue_jobs(
  task text, args jsonb[], queue text DEFAULT NULL, priority integer DEFAULT NULL, delay interval DEFAULT NULL,
  run_at timestamptz DEFAULT NULL, idempotency_keys text[] DEFAULT NULL, key_ttl interval DEFAULT NULL, headers jsonb DEFAULT NULL,
  max_attempts integer DEFAULT NULL, retry jsonb DEFAULT NULL, timeout_s double precision DEFAULT NULL,
  expires_at timestamptz DEFAULT NULL, concurrency_key text DEFAULT NULL, tags text[] DEFAULT NULL,
  parent_id bigint DEFAULT NULL, wake boolean DEFAULT true, checked boolean DEFAULT false)
RETURNS TABLE (job_id bigint, created boolean)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  jobs_n integer := cardinality(enqueue_jobs.args);
  moment timestamptz;
  due timestamptz;
  known record;
  ids bigint[];
  news boolean[];
  wrong bigint;
  row record;
  first record;
BEGIN
  IF jobs_n IS NULL OR array_ndims(enqueue_jobs.args) > 1 THEN
    RAISE EXCEPTION 'args: must be an array of JSON objects, one per job' USING ERRCODE = '22023';
  END IF;
  IF cardinality(enqueue_jobs.idempotency_keys) <> jobs_n OR array_ndims(enqueue_jobs.idempotency_keys) > 1 THEN
    RAISE EXCEPTION 'idempotency_keys: % for % jobs; give one per job', cardinality(enqueue_jobs.idempotency_keys), jobs_n
      USING ERRCODE = '22023';
  END IF;
  IF NOT enqueue_jobs.checked THEN
    PERFORM pgqueue.check_job(enqueue_jobs.task, '{}', enqueue_jobs.queue, enqueue_jobs.priority, enqueue_jobs.delay,
      enqueue_jobs.run_at, NULL, enqueue_jobs.key_ttl, enqueue_jobs.headers, enqueue_jobs.max_attempts);
    PERFORM pgqueue.check_options(enqueue_jobs.retry, enqueue_jobs.timeout_s, enqueue_jobs.expires_at, enqueue_jobs.concurrency_key, enqueue_jobs.tags);
    SELECT a.i - 1 INTO wrong FROM unnest(enqueue_jobs.args) WITH ORDINALITY AS a (arg, i)
      WHERE a.arg IS NULL OR jsonb_typeof(a.arg) <> 'object' LIMIT 1;
    IF FOUND THEN
      RAISE EXCEPTION 'args[%]: must be a JSON object; pass the arguments by name, as in {"ride_id": 7}', wrong USING ERRCODE = '22023';
    END IF;
    PERFORM pgqueue.check_args(format('args[%s]', a.i - 1), a.arg) FROM unnest(enqueue_jobs.args) WITH ORDINALITY AS a (arg, i);
    PERFORM pgqueue.check_key(format('idempotency_keys[%s]', k.i - 1), k.key)
      FROM unnest(enqueue_jobs.idempotency_keys) WITH ORDINALITY AS k (key, i) WHERE k.key IS NOT NULL;
  END IF;
  SELECT t.queue, t.priority, t.max_attempts INTO known FROM pgqueue.tasks t WHERE t.name = enqueue_jobs.task;
  enqueue_jobs.queue := coalesce(enqueue_jobs.queue, known.queue, 'default');
  enqueue_jobs.priority := coalesce(enqueue_jobs.priority, known.priority, 5);
  enqueue_jobs.max_attempts := coalesce(enqueue_jobs.max_attempts, known.max_attempts, 6);

  IF enqueue_jobs.idempotency_keys IS NOT NULL THEN
    ids := array_fill(NULL::bigint, ARRAY[jobs_n]);
    news := array_fill(true, ARRAY[jobs_n]);
    -- In the order of the keys, so that two producers with overlapping batches cannot deadlock.
    FOR row IN SELECT k.key, k.i FROM unnest(enqueue_jobs.idempotency_keys) WITH ORDINALITY AS k (key, i)
               WHERE k.key IS NOT NULL ORDER BY k.key COLLATE "C", k.i LOOP
      SELECT k.job_id, k.taken INTO first FROM pgqueue.take_key(enqueue_jobs.task, row.key, enqueue_jobs.key_ttl) k;
      ids[row.i] := first.job_id;
      news[row.i] := first.taken;
    END LOOP;
  END IF;

  moment := clock_timestamp();
  due := greatest(moment, enqueue_jobs.run_at, moment + enqueue_jobs.delay);
  RETURN QUERY
    WITH numbered AS MATERIALIZED (
      SELECT a.i, a.arg, coalesce(ids[a.i], nextval('pgqueue.job_seq')) AS id, coalesce(news[a.i], true) AS is_new,
        enqueue_jobs.idempotency_keys[a.i] AS key
      FROM unnest(enqueue_jobs.args) WITH ORDINALITY AS a (arg, i)
    ), inserted AS (
      INSERT INTO pgqueue.jobs (id, created_at, run_at, ready_seq, priority, max_attempts, state, queue, task, args, headers, tags,
          idempotency_key, concurrency_key, timeout_s, expires_at, retry, parent_id)
        SELECT n.id, moment, due, CASE WHEN due = moment THEN n.id END, enqueue_jobs.priority, enqueue_jobs.max_attempts,
          CASE WHEN due = moment THEN 'ready' ELSE 'scheduled' END, enqueue_jobs.queue, enqueue_jobs.task, n.arg,
          enqueue_jobs.headers, enqueue_jobs.tags, n.key, enqueue_jobs.concurrency_key, enqueue_jobs.timeout_s,
          enqueue_jobs.expires_at, enqueue_jobs.retry, enqueue_jobs.parent_id
        FROM numbered n WHERE n.is_new
    )
    SELECT n.id, n.is_new FROM numbered n ORDER BY n.i;
  IF enqueue_jobs.wake AND due = moment THEN
    PERFORM pgqueue.wake(enqueue_jobs.queue);
  END IF;
END $$;
COMMENT ON FUNCTION pgqueue.enqueue_jobs IS 'Enqueues many jobs of one task in the caller''s transaction, all or none; one row per job, in the order given';

CREATE FUNCTION pgqueue.enqueue(
  task text, args jsonb DEFAULT '{}', queue text DEFAULT NULL, priority integer DEFAULT NULL, delay interval DEFAULT NULL,
  run_at timestamptz DEFAULT NULL, idempotency_key text DEFAULT NULL, key_ttl interval DEFAULT NULL, headers jsonb DEFAULT NULL)
RETURNS bigint LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  SELECT e.job_id FROM pgqueue.enqueue_job(task, args, queue, priority, delay, run_at, idempotency_key, key_ttl, headers) e;
$$;
COMMENT ON FUNCTION pgqueue.enqueue IS 'Enqueues one job in the caller''s transaction and returns its id (or that of the job that has the idempotency key)';

CREATE FUNCTION pgqueue.enqueue_many(
  task text, args jsonb[], queue text DEFAULT NULL, priority integer DEFAULT NULL, delay interval DEFAULT NULL,
  run_at timestamptz DEFAULT NULL, idempotency_keys text[] DEFAULT NULL, key_ttl interval DEFAULT NULL, headers jsonb DEFAULT NULL)
RETURNS SETOF bigint LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  SELECT e.job_id FROM pgqueue.enqueue_jobs(task, args, queue, priority, delay, run_at, idempotency_keys, key_ttl, headers) e;
$$;
COMMENT ON FUNCTION pgqueue.enqueue_many IS 'Enqueues many jobs of one task in the caller''s transaction and returns their ids in the order given';

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
