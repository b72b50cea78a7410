-- What DBAs and dashboards read. No arguments, headers, results or tracebacks in any of them.

CREATE VIEW pgqueue.queue_health AS
SELECT q.name AS queue, q.paused_at IS NOT NULL AS paused,
  due.n AS due, due.n > 10000 AS due_capped,
  (SELECT count(*) FROM (SELECT FROM pgqueue.jobs j WHERE j.ready_seq IS NULL AND j.hold_reason IS NULL AND j.queue = q.name LIMIT 10001) c) AS scheduled,
  (SELECT count(*) FROM (SELECT FROM pgqueue.jobs j WHERE j.hold_reason IS NOT NULL AND j.queue = q.name LIMIT 10001) c) AS held,
  coalesce(r.running, 0) AS running,
  coalesce((SELECT greatest(0, extract(epoch FROM max(clock_timestamp() - head.run_at)))
    FROM generate_series(0, 9) AS p (priority)
    CROSS JOIN LATERAL (SELECT j.run_at FROM pgqueue.jobs j
      WHERE j.ready_seq IS NOT NULL AND j.state = 'ready' AND j.queue = q.name AND j.priority = p.priority ORDER BY j.ready_seq LIMIT 1) head), 0)::double precision AS lag_s,
  (SELECT count(*) FROM pgqueue.workers w WHERE w.status = 'live' AND q.name = ANY (w.queues)
    AND w.beat_at > clock_timestamp() - make_interval(secs => w.lease_s)) AS workers_live,
  (SELECT coalesce(sum(w.slots), 0) FROM pgqueue.workers w WHERE w.status = 'live' AND q.name = ANY (w.queues)
    AND w.beat_at > clock_timestamp() - make_interval(secs => w.lease_s)) AS slots,
  (SELECT count(*) FROM (SELECT FROM pgqueue.dead_letter_jobs d WHERE d.queue = q.name AND d.redriven_as IS NULL LIMIT 10001) c) AS dead_waiting,
  (SELECT count(*) FROM (SELECT FROM pgqueue.dead_letter_jobs d WHERE d.queue = q.name AND d.redriven_as IS NULL
    AND d.created_at > clock_timestamp() - interval '15 minutes' LIMIT 10001) c) AS dead_recent
FROM pgqueue.queues q
LEFT JOIN (SELECT j.queue, count(*) AS running FROM pgqueue.claims c CROSS JOIN LATERAL unnest(c.job_ids) AS m (id)
  JOIN pgqueue.jobs j ON j.id = m.id AND j.claim_id = c.claim_id GROUP BY j.queue) r ON r.queue = q.name
CROSS JOIN LATERAL (SELECT count(*) AS n FROM (SELECT FROM pgqueue.jobs j
  WHERE j.ready_seq IS NOT NULL AND j.state = 'ready' AND j.queue = q.name LIMIT 10001) c) due;
COMMENT ON VIEW pgqueue.queue_health IS 'One row per queue: what is due, how late the oldest is, who works on it; counts are capped at 10,001';

CREATE VIEW pgqueue.running_jobs AS
SELECT j.id AS job_id, j.queue, j.task, j.attempt, j.max_attempts, j.started_at,
  extract(epoch FROM clock_timestamp() - j.started_at)::double precision AS age_s,
  j.worker_id, w.host, w.pid, w.status AS worker_status, j.cancel_requested_at
FROM pgqueue.claims c CROSS JOIN LATERAL unnest(c.job_ids) AS m (id)
JOIN pgqueue.jobs j ON j.id = m.id AND j.claim_id = c.claim_id
LEFT JOIN pgqueue.workers w ON w.id = j.worker_id;
COMMENT ON VIEW pgqueue.running_jobs IS 'Claimed jobs and where they run';

CREATE VIEW pgqueue.dead_letter_summary AS
SELECT d.queue, d.task, d.reason, d.error_type, d.error_fingerprint, count(*) AS dead, min(d.created_at) AS first_at, max(d.created_at) AS last_at,
  (array_agg(d.error_message ORDER BY d.created_at DESC))[1] AS sample_message
FROM pgqueue.dead_letter_jobs d
WHERE d.redriven_as IS NULL
GROUP BY d.queue, d.task, d.reason, d.error_type, d.error_fingerprint;
COMMENT ON VIEW pgqueue.dead_letter_summary IS 'Dead letters that wait for a decision, grouped by cause';

CREATE FUNCTION pgqueue.job_timeline(job_id bigint)
RETURNS TABLE (at timestamptz, event text, from_state text, to_state text, reason text, actor text, attempt integer, detail text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  WITH whole AS (
    SELECT j.created_at, j.run_at, j.started_at, j.state, j.attempt::integer AS attempt, j.worker_id, NULL::timestamptz AS finished_at, j.redrive_of, j.parent_id
      FROM pgqueue.jobs j WHERE j.id = job_timeline.job_id
    UNION ALL
    SELECT h.enqueued_at, h.due_at, h.started_at, h.state, h.attempts, h.worker_id, h.finished_at, h.redrive_of, h.parent_id
      FROM pgqueue.job_history h WHERE h.job_id = job_timeline.job_id
    UNION ALL
    SELECT d.job_created_at, NULL, NULL, 'dead', d.attempts, d.worker_id, d.created_at, d.redrive_of, d.parent_id
      FROM pgqueue.dead_letter_jobs d WHERE d.job_id = job_timeline.job_id
  )
  SELECT w.created_at, 'enqueued', NULL, NULL, NULL, NULL, NULL::integer,
      concat_ws(', ', 'repeats dead letter ' || w.redrive_of, 'enqueued by job ' || w.parent_id) FROM whole w
  UNION ALL
  SELECT w.started_at, 'claimed', 'ready', 'running', 'claimed', 'worker:' || w.worker_id, w.attempt, NULL FROM whole w WHERE w.started_at IS NOT NULL
  UNION ALL
  SELECT t.at, 'transition', t.from_state, t.to_state, t.reason, t.actor, t.attempt::integer,
      concat_ws(', ', t.error_type, 'ran ' || round(t.run_s::numeric, 3) || ' s', 'next ' || t.next_run_at, t.note)
    FROM pgqueue.job_transitions t WHERE t.job_id = job_timeline.job_id
  UNION ALL
  SELECT w.finished_at, 'ended', 'running', w.state, w.state, 'worker:' || w.worker_id, w.attempt, NULL FROM whole w WHERE w.state = 'succeeded'
  UNION ALL
  SELECT a.at, 'operator', NULL, NULL, a.action, a.actor, NULL, a.reason FROM pgqueue.operator_audit a
    WHERE a.target IN ('job ' || job_timeline.job_id, 'dead letter ' || job_timeline.job_id)
  ORDER BY 1;
$$;
COMMENT ON FUNCTION pgqueue.job_timeline IS 'One job''s life from its enqueue to its end, in order';
