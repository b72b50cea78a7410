-- What is due in each queue, how late the oldest job is, and who works on it.
SELECT queue, paused, due, lag_s, running, scheduled, held, workers_live, slots, dead_waiting FROM pgqueue.queue_health ORDER BY lag_s DESC;
