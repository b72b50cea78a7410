-- PUBLIC gets nothing. New functions are open to everybody until this is said, and default privileges within a schema
-- can only add to that, never take away: so every revision ends with these lines.
REVOKE ALL ON ALL TABLES IN SCHEMA pgqueue FROM PUBLIC;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA pgqueue FROM PUBLIC;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA pgqueue FROM PUBLIC;
SELECT pgqueue.grant_roles();
