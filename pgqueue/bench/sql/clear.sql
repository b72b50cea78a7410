TRUNCATE pgqueue.jobs, pgqueue.claims, pgqueue.job_history, pgqueue.job_transitions, pgqueue.dead_letter_jobs, pgqueue.dedup_keys,
  pgqueue_bench.effects
