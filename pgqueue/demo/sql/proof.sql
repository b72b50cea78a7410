-- PROOF: four counts that must be zero at every moment, read in one statement and so in one snapshot.
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
     AND NOT EXISTS (SELECT FROM pgqueue.dead_letter_jobs d WHERE d.job_id = r.capture_job_id))
