-- Dead letters that nobody has redriven or discarded yet, by cause, the most frequent first; with how many are new
-- since yesterday. The same cause at other ids and numbers has the same fingerprint.
--   pgqueue dlq redrive --fingerprint … --reason …      tries a group again once its cause is mended
SELECT d.error_fingerprint, d.queue, d.task, d.reason, d.error_type, count(*) AS dead,
  count(*) FILTER (WHERE d.created_at > now() - interval '24 hours') AS last_day,
  min(d.created_at) AS first_at, max(d.created_at) AS last_at, (array_agg(d.error_message ORDER BY d.created_at DESC))[1] AS latest_message
FROM pgqueue.dead_letter_jobs d
WHERE d.redriven_as IS NULL
GROUP BY d.error_fingerprint, d.queue, d.task, d.reason, d.error_type
ORDER BY dead DESC, last_at DESC;
