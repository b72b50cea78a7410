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
