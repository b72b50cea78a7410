-- Why is this job not running? One answer, and the command that changes it.

CREATE FUNCTION pgqueue.explain(job_id bigint)
RETURNS TABLE (id bigint, state text, reason text, sentence text, command text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  the_id bigint := explain.job_id;
  j pgqueue.jobs;
  h record;
  d record;
  w record;
  p record;
  ahead bigint;
  moment timestamptz := clock_timestamp();
BEGIN
  explain.id := the_id;
  SELECT * INTO j FROM pgqueue.jobs x WHERE x.id = the_id;
  IF NOT FOUND THEN
    SELECT x.state, x.finished_at INTO h FROM pgqueue.job_history x WHERE x.job_id = the_id LIMIT 1;
    IF FOUND THEN
      explain.state := h.state;
      explain.reason := 'ended';
      explain.sentence := format('job %s: it %s at %s', the_id, CASE h.state WHEN 'succeeded' THEN 'succeeded' ELSE 'was cancelled' END,
        to_char(h.finished_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'));
      RETURN NEXT;
      RETURN;
    END IF;
    SELECT x.reason, x.attempts, x.max_attempts, x.redriven_as, x.error_type INTO d FROM pgqueue.dead_letter_jobs x WHERE x.job_id = the_id;
    IF FOUND THEN
      explain.state := 'dead';
      explain.reason := CASE WHEN d.redriven_as IS NULL THEN 'dead' ELSE 'redriven' END;
      explain.sentence := format('job %s: it died (%s%s) after %s of %s attempts', the_id, d.reason, ', ' || d.error_type, d.attempts, d.max_attempts)
        || coalesce(' and goes on as job ' || d.redriven_as, '');
      explain.command := CASE WHEN d.redriven_as IS NULL THEN 'pgqueue dlq redrive ' || the_id ELSE 'pgqueue jobs explain ' || d.redriven_as END;
      RETURN NEXT;
      RETURN;
    END IF;
    explain.state := 'unknown';
    explain.reason := 'unknown';
    explain.sentence := format('job %s: no such job; it never existed, its transaction has not committed, or its history is past retention', the_id);
    RETURN NEXT;
    RETURN;
  END IF;

  explain.state := j.state;
  SELECT q.paused_at, q.paused_by, q.pause_reason INTO p FROM pgqueue.queues q
    WHERE q.name = j.queue AND q.paused_at IS NOT NULL AND (q.paused_until IS NULL OR q.paused_until > moment);
  IF j.state = 'running' THEN
    SELECT x.host, x.pid, x.status IN ('live', 'draining') AND x.beat_at + make_interval(secs => x.lease_s) > moment AS alive INTO w
      FROM pgqueue.workers x WHERE x.id = j.worker_id;
    IF w.alive THEN
      explain.reason := CASE WHEN j.cancel_requested_at IS NULL THEN 'running' ELSE 'cancelling' END;
      explain.sentence := format('job %s: it is with worker %s (%s, pid %s) since %s s, attempt %s of %s', the_id, left(j.worker_id::text, 8),
        w.host, w.pid, round(extract(epoch FROM moment - j.started_at)), j.attempt, j.max_attempts)
        || CASE WHEN j.cancel_requested_at IS NULL THEN '' ELSE ', and was asked to stop' END;
      explain.command := CASE WHEN j.cancel_requested_at IS NULL THEN 'pgqueue jobs cancel ' || the_id END;
    ELSE
      explain.reason := 'worker_gone';
      explain.sentence := format('job %s: its worker %s is gone; any living worker takes it back within its lease', the_id, left(j.worker_id::text, 8));
      explain.command := 'pgqueue workers list --ended';
    END IF;
  ELSIF j.hold_reason = 'window' AND j.run_at > moment THEN
    explain.reason := 'window';
    explain.sentence := format('job %s: collected with others of task %s until %s, in %s s, for one call', the_id, j.task,
      to_char(j.run_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'), ceil(extract(epoch FROM j.run_at - moment)));
    explain.command := 'pgqueue jobs run-now ' || the_id;
  ELSIF j.state = 'held' AND j.hold_reason <> 'window' THEN
    explain.reason := j.hold_reason;
    explain.sentence := format('job %s: held, %s', the_id, CASE j.hold_reason
      WHEN 'unknown_task' THEN format('no worker of queue %s knows task %s; a worker that does frees it by itself', j.queue, j.task)
      WHEN 'suspect' THEN 'its last worker died while it had it; it runs alone, one such job at a time'
      ELSE j.hold_reason END);
    explain.command := CASE j.hold_reason WHEN 'unknown_task' THEN 'pgqueue worker -A … -q ' || j.queue ELSE 'pgqueue jobs run-now ' || the_id END;
  ELSIF j.state = 'scheduled' AND j.run_at > moment THEN
    explain.reason := CASE WHEN j.attempt > 0 THEN 'retry' ELSE 'scheduled' END;
    explain.sentence := format('job %s: scheduled until %s, in %s s', the_id, to_char(j.run_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'),
        ceil(extract(epoch FROM j.run_at - moment)))
      || CASE WHEN j.attempt > 0 THEN format(', after attempt %s of %s%s', j.attempt, j.max_attempts, ' failed with ' || (j.errors -> -1 ->> 'type')) ELSE '' END;
    explain.command := 'pgqueue jobs run-now ' || the_id;
  ELSIF p.paused_at IS NOT NULL THEN
    explain.reason := 'paused';
    explain.sentence := format('job %s: queue %s is paused since %s by %s%s', the_id, j.queue,
      to_char(p.paused_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'), p.paused_by, ': ' || p.pause_reason);
    explain.command := 'pgqueue queues resume ' || j.queue;
  ELSIF NOT EXISTS (SELECT FROM pgqueue.workers x WHERE x.status = 'live' AND j.queue = ANY (x.queues)
      AND x.beat_at + make_interval(secs => x.lease_s) > moment) THEN
    explain.reason := 'no_worker';
    explain.sentence := format('job %s: no living worker serves queue %s', the_id, j.queue);
    explain.command := 'pgqueue worker -A … -q ' || j.queue;
  ELSIF j.hold_reason = 'window' THEN
    explain.reason := 'window_ended';
    explain.sentence := format('job %s: its window ended %s s ago; it goes along in the window''s next call', the_id,
      round(extract(epoch FROM moment - j.run_at)));
  ELSIF j.state = 'scheduled' THEN
    explain.reason := 'due';
    explain.sentence := format('job %s: due since %s s; the next round of promotion makes it ready', the_id, round(extract(epoch FROM moment - j.run_at)));
  ELSIF j.expires_at <= moment THEN
    explain.reason := 'expired';
    explain.sentence := format('job %s: it was not worth starting after %s; the worker that claims it lets it die as expired', the_id,
      to_char(j.expires_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'));
  ELSE
    SELECT count(*) INTO ahead FROM (SELECT FROM pgqueue.jobs x WHERE x.ready_seq IS NOT NULL AND x.queue = j.queue
      AND (x.priority, x.ready_seq) < (j.priority, j.ready_seq) AND x.state = 'ready' ORDER BY x.priority, x.ready_seq LIMIT 10001) c;
    explain.reason := CASE ahead WHEN 0 THEN 'next' ELSE 'behind' END;
    explain.sentence := CASE ahead WHEN 0 THEN format('job %s: first in queue %s; it starts when a slot is free', the_id, j.queue)
      ELSE format('job %s: behind %s jobs of queue %s', the_id, CASE WHEN ahead > 10000 THEN 'more than 10000' ELSE ahead::text END, j.queue) END;
    explain.command := CASE WHEN ahead > 0 THEN format('pgqueue worker -A … -q %s', j.queue) END;
  END IF;
  RETURN NEXT;
END $$;
COMMENT ON FUNCTION pgqueue.explain IS 'The one reason why a job is not running, and the command that lifts it; shows no arguments';
