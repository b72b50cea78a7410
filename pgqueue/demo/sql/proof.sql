-- PROOF: counts that must be zero at every moment, read in one statement and so in one snapshot.
SELECT
  -- captured twice
  (SELECT count(*) FROM (SELECT c.ride_id FROM rides_demo.captures c GROUP BY c.ride_id HAVING count(*) > 1) twice),
  -- captured without ledger row
  (SELECT count(*) FROM rides_demo.captures c
   WHERE NOT EXISTS (SELECT FROM rides_demo.ledger l
     WHERE l.job_id = c.job_id AND l.ride_id = c.ride_id AND l.kind = 'capture' AND l.amount_cents = c.amount_cents)),
  -- ledger row whose job is not settled
  (SELECT count(*) FROM rides_demo.ledger l
   WHERE NOT EXISTS (SELECT FROM pgqueue.job_history h WHERE h.job_id = l.job_id AND h.state = 'succeeded')),
  -- rides lost: completed, and neither captured, nor waiting or running, nor in the dead letters
  (SELECT count(*) FROM rides_demo.rides r
   WHERE r.status = 'completed'
     AND NOT EXISTS (SELECT FROM rides_demo.captures c WHERE c.ride_id = r.id)
     AND NOT EXISTS (SELECT FROM pgqueue.jobs j WHERE j.id = r.capture_job_id)
     AND NOT EXISTS (SELECT FROM pgqueue.dead_letter_jobs d WHERE d.job_id = r.capture_job_id)),
  -- scheduled fires not exactly once: those that were due and are not in the log once, those served twice, those forgotten
  (SELECT coalesce(sum(abs(due.n - logged.n) + logged.twice + served.twice + late.n), 0)::bigint
   FROM pgqueue.schedules s
   -- Of an interval, all moments count that lie after the schedule was made and are decided.
   CROSS JOIN LATERAL (SELECT count(*) AS n FROM generate_series(0, greatest(-1, floor(
       (extract(epoch FROM s.last_fire_at - s.starts_at) + 0.001) / s.every_s)::bigint)) k
     WHERE s.starts_at + k * make_interval(secs => s.every_s) > s.created_at) due
   CROSS JOIN LATERAL (SELECT count(*) AS n, count(*) - count(DISTINCT r.fire_at) AS twice FROM pgqueue.schedule_runs r
     WHERE r.schedule = s.name AND r.outcome = 'enqueued') logged
   CROSS JOIN LATERAL (SELECT count(*) - count(DISTINCT f.fire_at) AS twice FROM rides_demo.fires f
     WHERE f.schedule = s.name) served
   CROSS JOIN LATERAL (SELECT (s.next_fire_at < clock_timestamp() - interval '30 seconds')::int AS n) late
   WHERE s.every_s IS NOT NULL AND s.next_fire_at IS NOT NULL),
  -- incentives paid twice for a week
  (SELECT count(*) FROM (SELECT i.driver_id FROM rides_demo.incentives i GROUP BY i.driver_id, i.week HAVING count(*) > 1) twice),
  -- charged twice at the gateway
  (SELECT count(*) FROM (SELECT c.ride_id FROM rides_demo.charges c GROUP BY c.ride_id HAVING count(*) > 1) twice),
  -- events lost: of a completed or captured ride, neither with the partner nor still in the outbox
  (SELECT count(*) FROM (
     SELECT r.id AS ride_id, 'ride.completed' AS topic FROM rides_demo.rides r WHERE r.status = 'completed'
     UNION ALL SELECT c.ride_id, 'ride.captured' FROM rides_demo.captures c
     EXCEPT SELECT e.ride_id, e.topic FROM rides_demo.events e
     EXCEPT SELECT (o.payload ->> 'ride_id')::bigint, o.topic FROM pgqueue.outbox o
     EXCEPT SELECT (d.payload ->> 'ride_id')::bigint, d.topic FROM pgqueue.outbox_dead_letters d) lost),
  -- events out of order per ride: that it was captured before that it was completed
  (SELECT count(*) FROM (
     SELECT min(e.id) FILTER (WHERE e.topic = 'ride.completed') AS completed, min(e.id) FILTER (WHERE e.topic = 'ride.captured') AS captured
     FROM rides_demo.events e GROUP BY e.ride_id) first
   WHERE first.captured < first.completed OR (first.captured IS NOT NULL AND first.completed IS NULL))
