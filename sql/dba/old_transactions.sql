-- Who keeps dead rows from being cleaned up: the oldest open transactions, prepared transactions and replication slots.
-- End a session with SELECT pg_terminate_backend(pid). Seeing other roles' sessions needs pg_read_all_stats.
SELECT 'session' AS kind, a.pid::text AS which, a.usename::text AS owner, a.application_name AS application, a.state,
  clock_timestamp() - a.xact_start AS age, age(a.backend_xmin) AS holds_back_transactions
FROM pg_catalog.pg_stat_activity a
WHERE a.xact_start IS NOT NULL AND a.pid <> pg_backend_pid()
UNION ALL
SELECT 'prepared transaction', p.gid, p.owner::text, NULL, NULL, clock_timestamp() - p.prepared, age(p.transaction)
FROM pg_catalog.pg_prepared_xacts p
UNION ALL
SELECT 'replication slot', s.slot_name::text, NULL, NULL, CASE WHEN s.active THEN 'in use' ELSE 'nobody reads it' END, NULL,
  greatest(age(s.xmin), age(s.catalog_xmin))
FROM pg_catalog.pg_replication_slots s
WHERE s.xmin IS NOT NULL OR s.catalog_xmin IS NOT NULL
ORDER BY holds_back_transactions DESC NULLS LAST, age DESC NULLS LAST;
