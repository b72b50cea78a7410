-- How large our tables are, and how much in them waits for vacuum. `jobs` should be about as large as the backlog: many
-- dead rows there that do not go away mean that an old transaction holds them (old_transactions.sql).
-- Day partitions are summed under their table.
SELECT coalesce(p.relname, c.relname) AS table_name, count(*) AS parts, pg_size_pretty(sum(pg_total_relation_size(c.oid))) AS total,
  pg_size_pretty(sum(pg_relation_size(c.oid))) AS heap, pg_size_pretty(sum(pg_indexes_size(c.oid))) AS indexes,
  sum(s.n_live_tup) AS live_rows, sum(s.n_dead_tup) AS dead_rows,
  round(100.0 * sum(s.n_dead_tup) / nullif(sum(s.n_live_tup + s.n_dead_tup), 0), 1) AS dead_percent,
  max(greatest(s.last_vacuum, s.last_autovacuum)) AS last_vacuum, max(greatest(s.last_analyze, s.last_autoanalyze)) AS last_analyze
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_inherits i ON i.inhrelid = c.oid
LEFT JOIN pg_catalog.pg_class p ON p.oid = i.inhparent
LEFT JOIN pg_catalog.pg_stat_user_tables s ON s.relid = c.oid
WHERE n.nspname = 'pgqueue' AND c.relkind = 'r'
GROUP BY coalesce(p.relname, c.relname)
ORDER BY sum(pg_total_relation_size(c.oid)) DESC;
