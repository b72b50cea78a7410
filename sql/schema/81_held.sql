-- What held jobs wait for, counted per queue: for metrics and DBAs who may not read the jobs themselves.
-- The groups are found by one probe of jobs_held_idx each, however many jobs a group has.
CREATE VIEW pgqueue.held_summary AS
WITH RECURSIVE groups AS (
  (SELECT j.hold_reason, j.queue FROM pgqueue.jobs j WHERE j.hold_reason IS NOT NULL ORDER BY j.hold_reason, j.queue LIMIT 1)
  UNION ALL
  SELECT f.hold_reason, f.queue FROM groups g CROSS JOIN LATERAL (
    SELECT j.hold_reason, j.queue FROM pgqueue.jobs j
    WHERE j.hold_reason IS NOT NULL AND (j.hold_reason, j.queue) > (g.hold_reason, g.queue)
    ORDER BY j.hold_reason, j.queue LIMIT 1) f
)
SELECT g.queue, g.hold_reason,
  (SELECT count(*) FROM (SELECT FROM pgqueue.jobs j WHERE j.hold_reason = g.hold_reason AND j.queue = g.queue LIMIT 10001) c) AS held
FROM groups g;
COMMENT ON VIEW pgqueue.held_summary IS 'Held jobs by queue and by what they wait for; counts are capped at 10,001';
