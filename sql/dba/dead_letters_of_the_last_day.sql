-- Dead letters of the last day. Run with: SET search_path = pgqueue;
SELECT job_id, error_message, failed_at FROM dead_letter_jobs WHERE created_at > NOW() - INTERVAL '24 HOURS';
