SELECT 1000 * wait_s::float8 FROM pgqueue.job_history ORDER BY 1
