-- Open transactions, oldest first: while they last, nothing they could still see is cleaned up.
SELECT pid, application_name, state, clock_timestamp() - xact_start AS age, left(query, 60) AS query
FROM pg_stat_activity WHERE xact_start IS NOT NULL AND pid <> pg_backend_pid() ORDER BY xact_start LIMIT 10;
