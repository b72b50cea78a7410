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
