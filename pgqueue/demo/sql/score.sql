-- The numbers of one line. Lag is the time from the moment a payment or receipt was due to its handler's start.
SELECT
  (SELECT count(*) FROM rides_demo.rides),
  (SELECT count(*) FROM rides_demo.captures),
  (SELECT count(*) FROM rides_demo.receipts),
  (SELECT count(*) FROM rides_demo.fees),
  (SELECT count(*) FROM pgqueue.dead_letter_jobs d WHERE d.redriven_as IS NULL),
  (SELECT count(*) FROM pgqueue.job_transitions t WHERE t.reason = 'retry'),
  (SELECT count(*) FROM pgqueue.job_transitions t WHERE t.reason = 'rescued'),
  (SELECT count(*) FROM rides_demo.incidents i WHERE i.kind = 'kill'),
  (SELECT count(*) FROM rides_demo.incidents i WHERE i.kind = 'cut'),
  (SELECT count(*) FROM rides_demo.fires),
  (SELECT count(*) FROM rides_demo.incentives),
  (SELECT count(*) FROM rides_demo.events),
  (SELECT count(*) FROM pgqueue.alert_events e WHERE e.fired_at IS NOT NULL),
  (SELECT count(*) FROM pgqueue.alert_events e WHERE e.fired_at IS NOT NULL AND e.resolved_at IS NOT NULL),
  (SELECT percentile_cont(0.95) WITHIN GROUP (ORDER BY h.wait_s)::double precision FROM pgqueue.job_history h
   WHERE h.task IN ('capture_payment', 'send_receipt') AND h.state = 'succeeded'
     AND h.finished_at > clock_timestamp() - make_interval(secs => %(window_s)s)),
  (SELECT count(*) FROM pgqueue.jobs)
