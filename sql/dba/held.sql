-- Jobs that wait for something to be lifted, and for what.
SELECT hold_reason, queue, task, count(*) AS jobs, min(created_at) AS oldest FROM pgqueue.jobs WHERE hold_reason IS NOT NULL GROUP BY 1, 2, 3 ORDER BY 4 DESC;
