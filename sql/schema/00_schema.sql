-- The schema itself, and the one sequence that numbers jobs.
-- Public gets nothing; 90_privileges.sql says who gets what.
CREATE SCHEMA IF NOT EXISTS pgqueue;
COMMENT ON SCHEMA pgqueue IS 'pgqueue: jobs, dead letters, dedup keys and their audit; made by `pgqueue db upgrade`';
REVOKE ALL ON SCHEMA pgqueue FROM PUBLIC;

-- One sequence gives both job ids and places in a lane: a job that is ready at once stands in its
-- lane by its own id, and a promoted, released or rescued one takes a later number.
CREATE SEQUENCE pgqueue.job_seq AS bigint CACHE 1;
COMMENT ON SEQUENCE pgqueue.job_seq IS 'job ids and lane places (jobs.ready_seq); gaps are normal';
