SELECT floor(extract(epoch FROM finished_at - (SELECT min(started_at) FROM pgqueue.job_history)))::integer AS second, count(*)
FROM pgqueue.job_history GROUP BY 1 ORDER BY 1
