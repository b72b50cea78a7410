-- Jobs that failed for good in the last 24 hours. Needs a search_path that holds pgqueue:
--   SET search_path = pgqueue, public;
SELECT job_id, error_message, failed_at FROM dead_letter_jobs WHERE created_at > NOW() - INTERVAL '24 HOURS';
