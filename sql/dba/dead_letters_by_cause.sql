-- Which faults killed most jobs, and since when.
SELECT queue, task, reason, error_type, dead, first_at, last_at, sample_message FROM pgqueue.dead_letter_summary ORDER BY dead DESC LIMIT 20;
