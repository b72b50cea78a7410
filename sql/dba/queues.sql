-- How late each queue is: the age of the job that could have started longest ago, and who works on it. Retries and
-- deferred jobs are late only once they are due. Counts end at 10,001.
SELECT h.queue, round(h.lag_s::numeric, 1) AS lag_s, h.due, h.running, h.scheduled, h.held, h.workers_live, h.slots, h.paused,
  CASE WHEN h.paused THEN 'paused' WHEN h.due = 0 THEN 'nothing is due' WHEN h.workers_live = 0 THEN 'no worker serves it'
    WHEN h.running >= h.slots THEN 'all slots are busy' ELSE 'it is being worked on' END AS verdict
FROM pgqueue.queue_health h
ORDER BY h.lag_s DESC, h.queue;
