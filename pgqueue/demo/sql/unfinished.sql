-- How many jobs a drain still has to wait for: all but those that are due later than the drain may last; and messages.
SELECT (SELECT count(*) FROM pgqueue.jobs j
    WHERE NOT (j.ready_seq IS NULL AND j.hold_reason IS NULL AND j.attempt = 0
      AND j.run_at > clock_timestamp() + make_interval(secs => %(within_s)s)))
  + (SELECT count(*) FROM pgqueue.outbox)
