UPDATE pgqueue.jobs SET state = 'running', claim_id = '00000000-0000-0000-0000-000000000001',
  worker_id = '00000000-0000-0000-0000-000000000001', attempt = 1, started_at = clock_timestamp()
