-- Jobs that wait for something to be lifted: unknown_task (no worker that claimed them knows the task; deploy one that does),
-- suspect (their last process died; they are run alone), window (they are collected until run_at, then go to one call), and others.
SELECT hold_reason, queue, task, count(*) AS jobs, min(created_at) AS oldest, min(id) AS first_job_id
FROM pgqueue.jobs
WHERE hold_reason IS NOT NULL
GROUP BY hold_reason, queue, task
ORDER BY jobs DESC;
