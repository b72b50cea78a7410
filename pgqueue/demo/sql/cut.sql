-- Ends one connection of a worker or of the API, and notes it.
WITH victim AS MATERIALIZED (
  SELECT a.pid, a.application_name FROM pg_stat_activity a
  WHERE a.datname = current_database() AND (a.application_name LIKE 'pgqueue/%%' OR a.application_name = 'rides-api')
  ORDER BY random() LIMIT 1
), cut AS MATERIALIZED (
  SELECT v.application_name, pg_terminate_backend(v.pid) AS done FROM victim v
)
INSERT INTO rides_demo.incidents (kind, target) SELECT 'cut', c.application_name FROM cut c WHERE c.done
