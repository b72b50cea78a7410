-- What DBAs and dashboards read. No arguments, headers, results or tracebacks in any of them.

-- Bounded whatever lies in the tables: names are found by stepping from one queue to the next in an index, counts
-- stop at 10,001, what is scheduled and what died lately is looked at through one window each, lag at lane heads.
-- A lane's index holds what is ready and what runs. OFFSET 0 keeps a small table's join from reading all of jobs, and
-- an ORDER BY keeps a bitmap from reading a whole queue before the count stops.
CREATE VIEW pgqueue.queue_health AS
WITH RECURSIVE lanes AS (
  (SELECT j.queue FROM pgqueue.jobs j WHERE j.ready_seq IS NOT NULL ORDER BY j.queue LIMIT 1)
  UNION ALL
  SELECT (SELECT j.queue FROM pgqueue.jobs j WHERE j.ready_seq IS NOT NULL AND j.queue > l.queue ORDER BY j.queue LIMIT 1)
  FROM lanes l WHERE l.queue IS NOT NULL
), held_places AS (
  (SELECT j.hold_reason, j.queue FROM pgqueue.jobs j WHERE j.hold_reason IS NOT NULL ORDER BY j.hold_reason, j.queue LIMIT 1)
  UNION ALL
  SELECT n.hold_reason, n.queue FROM held_places p
  CROSS JOIN LATERAL (SELECT j.hold_reason, j.queue FROM pgqueue.jobs j
    WHERE j.hold_reason IS NOT NULL AND (j.hold_reason, j.queue) > (p.hold_reason, p.queue) ORDER BY j.hold_reason, j.queue LIMIT 1) n
), held AS (
  SELECT p.queue, sum(c.n)::bigint AS n, min(first.run_at) FILTER (WHERE p.hold_reason IN ('concurrency', 'rate')) AS limited_at
  FROM held_places p
  CROSS JOIN LATERAL (SELECT count(*) AS n FROM (SELECT FROM pgqueue.jobs j
    WHERE j.hold_reason = p.hold_reason AND j.queue = p.queue ORDER BY j.id LIMIT 10001) w) c
  LEFT JOIN LATERAL (SELECT j.run_at FROM pgqueue.jobs j
    WHERE j.hold_reason = p.hold_reason AND j.queue = p.queue ORDER BY j.id LIMIT 1) first ON true
  GROUP BY p.queue
), soonest AS MATERIALIZED (
  SELECT j.queue, j.run_at FROM pgqueue.jobs j WHERE j.ready_seq IS NULL AND j.hold_reason IS NULL ORDER BY j.run_at LIMIT 20001
), scheduled AS (
  SELECT s.queue, count(*) AS n, count(*) FILTER (WHERE s.run_at <= clock_timestamp()) AS overdue, min(s.run_at) AS first_at
  FROM soonest s GROUP BY s.queue
), died AS (
  SELECT w.queue, count(*) AS n FROM (SELECT d.queue FROM pgqueue.dead_letter_jobs d
    WHERE d.created_at > (SELECT clock_timestamp()) - interval '15 minutes' ORDER BY d.created_at DESC LIMIT 10001) w GROUP BY w.queue
), running AS (
  SELECT r.queue, count(*) AS n FROM pgqueue.claims c CROSS JOIN LATERAL unnest(c.job_ids) AS m (id)
  CROSS JOIN LATERAL (SELECT j.queue FROM pgqueue.jobs j WHERE j.id = m.id AND j.claim_id = c.claim_id OFFSET 0) r GROUP BY r.queue
), served AS (
  SELECT s.queue, count(*) AS workers, sum(w.slots) AS slots
  FROM pgqueue.workers w CROSS JOIN LATERAL unnest(w.queues) AS s (queue)
  WHERE w.status = 'live' AND w.beat_at > clock_timestamp() - make_interval(secs => w.lease_s) GROUP BY s.queue
), named AS (
  SELECT q.name AS queue FROM pgqueue.queues q
  UNION SELECT l.queue FROM lanes l WHERE l.queue IS NOT NULL
  UNION SELECT h.queue FROM held h
  UNION SELECT s.queue FROM scheduled s
)
SELECT n.queue, q.name IS NOT NULL AS known, coalesce(q.display_name, q.defaults ->> 'display_name') AS display_name,
  coalesce(q.tier, q.defaults ->> 'tier', 'standard') AS tier, coalesce(q.owner, q.defaults ->> 'owner') AS owner,
  coalesce(q.paused_at IS NOT NULL AND (q.paused_until IS NULL OR q.paused_until > clock_timestamp()), false) AS paused,
  least(10001, greatest(0, lane.n - coalesce(r.n, 0)) + coalesce(s.overdue, 0)) AS due, lane.n + coalesce(s.overdue, 0) > 10000 AS due_capped,
  coalesce(s.n, 0) AS scheduled, (SELECT count(*) > 20000 FROM soonest) AS scheduled_capped, least(10001, coalesce(h.n, 0)) AS held,
  coalesce(r.n, 0) AS running,
  greatest(0, extract(epoch FROM clock_timestamp() - least(head.due_at, s.first_at)))::double precision AS lag_s,
  greatest(0, extract(epoch FROM clock_timestamp() - h.limited_at))::double precision AS limited_lag_s,
  coalesce(q.sla_s, (q.defaults ->> 'sla_s')::double precision) AS sla_s,
  coalesce(q.sla_target, (q.defaults ->> 'sla_target')::double precision, 0.99) AS sla_target,
  coalesce(q.run_objective_s, (q.defaults ->> 'run_objective_s')::double precision) AS run_objective_s,
  coalesce(q.run_target, (q.defaults ->> 'run_target')::double precision, 0.995) AS run_target,
  coalesce(q.dead_letter_limit, (q.defaults ->> 'dead_letter_limit')::integer, 0) AS dead_letter_limit,
  coalesce(v.workers, 0) AS workers_live, coalesce(v.slots, 0) AS slots, coalesce(d.n, 0) AS dead_recent,
  (SELECT count(*) FROM (SELECT FROM pgqueue.dead_letter_jobs l WHERE l.queue = n.queue AND l.redriven_as IS NULL
    ORDER BY l.task, l.created_at LIMIT 10001) w) AS dead_waiting
FROM named n
LEFT JOIN pgqueue.queues q ON q.name = n.queue
LEFT JOIN held h ON h.queue = n.queue
LEFT JOIN scheduled s ON s.queue = n.queue
LEFT JOIN died d ON d.queue = n.queue
LEFT JOIN running r ON r.queue = n.queue
LEFT JOIN served v ON v.queue = n.queue
CROSS JOIN LATERAL (SELECT count(*) AS n FROM (SELECT FROM pgqueue.jobs j
  WHERE j.ready_seq IS NOT NULL AND j.queue = n.queue ORDER BY j.priority, j.ready_seq LIMIT 10001) w) lane
CROSS JOIN LATERAL (SELECT min(first.due_at) AS due_at FROM generate_series(0, 9) AS p (priority)
  CROSS JOIN LATERAL (SELECT j.run_at AS due_at FROM pgqueue.jobs j
    WHERE j.ready_seq IS NOT NULL AND j.state = 'ready' AND j.queue = n.queue AND j.priority = p.priority
    ORDER BY j.ready_seq LIMIT 1) first) head;
COMMENT ON VIEW pgqueue.queue_health IS 'One row per queue, also those that no worker ever served (known = false): what is due, how late the oldest is (lag_s, not that of deferred or limited jobs), who works on it, what was promised. Counts end at 10,001; scheduled ones at the 20,000 soonest of all queues';

CREATE VIEW pgqueue.running_jobs AS
SELECT j.id AS job_id, j.queue, j.task, j.attempt, j.max_attempts, j.started_at,
  extract(epoch FROM clock_timestamp() - j.started_at)::double precision AS age_s,
  j.worker_id, w.host, w.pid, w.status AS worker_status, j.cancel_requested_at, j.progress
FROM pgqueue.claims c CROSS JOIN LATERAL unnest(c.job_ids) AS m (id)
CROSS JOIN LATERAL (SELECT * FROM pgqueue.jobs r WHERE r.id = m.id AND r.claim_id = c.claim_id OFFSET 0) j
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
  WITH whole AS MATERIALIZED (
    SELECT j.created_at, j.run_at, j.started_at, j.state, j.attempt::integer AS attempt, j.worker_id, NULL::timestamptz AS finished_at, j.redrive_of, j.parent_id,
      j.headers, j.errors
      FROM pgqueue.jobs j WHERE j.id = job_timeline.job_id
    UNION ALL
    SELECT h.enqueued_at, h.due_at, h.started_at, h.state, h.attempts, h.worker_id, h.finished_at, h.redrive_of, h.parent_id, h.headers, h.errors
      FROM pgqueue.job_history h WHERE h.job_id = job_timeline.job_id
    UNION ALL
    SELECT d.job_created_at, NULL, NULL, 'dead', d.attempts, d.worker_id, d.created_at, d.redrive_of, d.parent_id, d.headers, d.errors
      FROM pgqueue.dead_letter_jobs d WHERE d.job_id = job_timeline.job_id
  ), moves AS MATERIALIZED (
    SELECT t.* FROM pgqueue.job_transitions t WHERE t.job_id = job_timeline.job_id
  ), failed AS MATERIALIZED (
    SELECT (e.value ->> 'attempt')::integer AS attempt, max(e.value ->> 'message') AS message
    FROM whole w CROSS JOIN LATERAL jsonb_array_elements(w.errors) AS e (value) GROUP BY 1
  ), told AS (
    SELECT w.created_at AS at, 0 AS place, 'enqueued' AS event, NULL AS from_state, NULL AS to_state, NULL AS reason, NULL AS actor,
        NULL::integer AS attempt,
        concat_ws(', ', 'repeats dead letter ' || w.redrive_of, 'enqueued by job ' || w.parent_id,
          'from message ' || (w.headers ->> 'pgqueue.message_id') || coalesce(', ' || (w.headers ->> 'pgqueue.topic'), ''),
          'fire of ' || (w.headers ->> 'pgqueue.schedule')) AS detail FROM whole w
    UNION ALL
    -- The newest claim. A suspect of its worker's death is claimed alone, from where it is held.
    SELECT w.started_at, 2, 'claimed',
        CASE (SELECT m.to_state FROM moves m WHERE m.at <= w.started_at ORDER BY m.at DESC, m.id DESC LIMIT 1) WHEN 'held' THEN 'held' ELSE 'ready' END,
        'running', 'claimed', 'worker:' || w.worker_id, w.attempt, NULL FROM whole w
      WHERE w.started_at IS NOT NULL AND NOT EXISTS (SELECT FROM moves m WHERE m.reason = 'claimed')
    UNION ALL
    SELECT m.at, 3, CASE m.reason WHEN 'claimed' THEN 'claimed' ELSE 'transition' END, m.from_state, m.to_state, m.reason, m.actor, m.attempt::integer,
        concat_ws(', ', m.error_type || coalesce(': ' || left(f.message, 200), ''), 'waited ' || round(m.wait_s::numeric, 3) || ' s',
          'ran ' || round(m.run_s::numeric, 3) || ' s', 'next ' || m.next_run_at, m.note)
      FROM moves m LEFT JOIN failed f ON f.attempt = m.attempt AND m.error_type IS NOT NULL
      -- Told above and below already, with more.
      WHERE m.reason NOT IN ('enqueued', 'succeeded')
    UNION ALL
    SELECT s.recorded_at, 3, 'step', NULL, NULL, s.name, 'worker:' || s.worker_id, s.attempt::integer,
        concat_ws(', ', 'took ' || round(s.run_s::numeric, 3) || ' s', s.refused)
      FROM pgqueue.job_steps s WHERE s.job_id = job_timeline.job_id
    UNION ALL
    SELECT o.emitted_at, 3, 'emitted', NULL, NULL, o.topic, NULL, NULL,
        concat_ws(', ', 'message ' || o.id, 'key ' || o.key,
          CASE o.state WHEN 'new' THEN 'no relay has seen it' WHEN 'parked' THEN 'nobody subscribes' ELSE 'waits for ' || o.pending || ' sinks' END)
      FROM pgqueue.outbox o WHERE o.job_id = job_timeline.job_id
    UNION ALL
    SELECT l.created_at, 3, 'undelivered', NULL, NULL, l.topic, NULL, NULL,
        concat_ws(', ', 'message ' || l.message_id || ' to ' || l.sink, l.reason, l.error_type, 'after ' || l.attempts || ' tries')
      FROM pgqueue.outbox_dead_letters l WHERE l.job_id = job_timeline.job_id
    UNION ALL
    SELECT w.finished_at, 4, 'ended', 'running', w.state, w.state, 'worker:' || w.worker_id, w.attempt, NULL FROM whole w WHERE w.state = 'succeeded'
    UNION ALL
    SELECT a.at, 5, 'operator', NULL, NULL, a.action, a.actor, NULL,
        concat_ws(', ', a.reason, 'via ' || a.via, 'as job ' || (a.detail ->> 'redriven_as')) FROM pgqueue.operator_audit a
      WHERE a.target IN ('job ' || job_timeline.job_id, 'dead letter ' || job_timeline.job_id)
  )
  SELECT t.at, t.event, t.from_state, t.to_state, t.reason, t.actor, t.attempt, t.detail FROM told t ORDER BY t.at, t.place;
$$;
COMMENT ON FUNCTION pgqueue.job_timeline IS 'One job''s life from its enqueue to its end, in order: moves with the errors of attempts, steps, messages that have not reached everybody, deeds of people';
