CREATE SCHEMA IF NOT EXISTS pgqueue_bench;
CREATE TABLE IF NOT EXISTS pgqueue_bench.effects (job_id bigint);
