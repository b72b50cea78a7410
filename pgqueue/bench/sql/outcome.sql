SELECT (SELECT count(*) FROM pgqueue.job_history WHERE state = 'succeeded' AND queue <> 'history'),
  (SELECT count(DISTINCT job_id) FROM pgqueue.job_history WHERE state = 'succeeded' AND queue <> 'history'),
  (SELECT count(*) FROM pgqueue.jobs), (SELECT count(*) FROM pgqueue.dead_letter_jobs),
  (SELECT count(*) FROM pgqueue_bench.effects), (SELECT count(DISTINCT job_id) FROM pgqueue_bench.effects)
