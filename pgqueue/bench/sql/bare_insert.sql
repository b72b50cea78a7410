INSERT INTO pgqueue.jobs (id, created_at, run_at, ready_seq, priority, max_attempts, state, queue, task, args)
SELECT i, clock_timestamp(), clock_timestamp(), i, 5, 6, 'ready', 'default', 'noop', %(args)s::jsonb FROM nextval('pgqueue.job_seq') i
