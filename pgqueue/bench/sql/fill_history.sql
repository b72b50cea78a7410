INSERT INTO pgqueue.job_history (job_id, enqueued_at, due_at, started_at, finished_at, claim_id, worker_id, ready_seq, wait_s, run_s,
  priority, attempts, max_attempts, state, queue, task, args)
SELECT -i, m.at, m.at, m.at, m.at, gen_random_uuid(), gen_random_uuid(), i, 0.001, 0.001, 5, 1, 6, 'succeeded', 'history', 'noop',
  jsonb_build_object('n', i, 'note', %(note)s::text)
FROM generate_series(%(first)s::bigint, %(last)s::bigint) i, (SELECT clock_timestamp() AS at) m
