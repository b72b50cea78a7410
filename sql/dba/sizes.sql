-- Size and dead rows of each table.
SELECT relname, pg_size_pretty(pg_total_relation_size(relid)) AS size, n_live_tup, n_dead_tup, last_autovacuum
FROM pg_stat_user_tables WHERE schemaname = 'pgqueue' ORDER BY pg_total_relation_size(relid) DESC LIMIT 20;
