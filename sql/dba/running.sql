-- What runs now, where, and for how long; with the database session of the job's worker, if it has one open.
-- A worker whose beat is older than its lease is gone: its jobs are taken back by the others.
SELECT r.job_id, r.queue, r.task, r.attempt, r.max_attempts, round(r.age_s::numeric, 1) AS age_s, r.host, r.pid AS worker_pid, w.status,
  round(extract(epoch FROM clock_timestamp() - w.beat_at)::numeric, 1) AS beat_age_s,
  w.beat_at + make_interval(secs => w.lease_s) < clock_timestamp() AS worker_is_gone, r.cancel_requested_at,
  r.progress -> 'done' AS done, r.progress -> 'total' AS of_total, r.progress ->> 'note' AS note,
  (SELECT count(*) FROM pg_catalog.pg_stat_activity a WHERE a.application_name LIKE 'pgqueue/%/' || left(r.worker_id::text, 8)) AS sessions
FROM pgqueue.running_jobs r
LEFT JOIN pgqueue.workers w ON w.id = r.worker_id
ORDER BY r.age_s DESC;
