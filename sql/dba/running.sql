-- What runs, where, and for how long.
SELECT job_id, queue, task, attempt, age_s, host, pid, worker_status FROM pgqueue.running_jobs ORDER BY age_s DESC;
