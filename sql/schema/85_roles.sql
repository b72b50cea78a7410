-- Who may do what. The four roles are groups without login; their members are the logins of applications, workers,
-- people and dashboards. Roles belong to the whole cluster, rights to this database.

-- Letters: S select, s select without what is hidden below, I insert, U update, D delete, X execute, - nothing.
-- A worker holds claims and ends them, so it writes the tables of its work. Everybody else writes through functions,
-- which check, and note what people do. A name without an object here is one that another revision brings.
CREATE FUNCTION pgqueue.role_rights()
RETURNS TABLE (kind text, object text, role text, privilege text, columns text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  WITH matrix (name, producer, worker, operator, reader) AS (VALUES
    ('jobs', '-', 'SUD', 'S', '-'),
    ('claims', '-', 'SIUD', 'S', 'S'),
    ('job_history', '-', 'SI', 'S', 's'),
    ('job_transitions', '-', 'SI', 'S', 'S'),
    ('job_history_default', '-', '-', 'S', '-'),
    ('job_transitions_default', '-', '-', 'S', '-'),
    ('dead_letter_jobs', '-', 'SI', 'S', 's'),
    ('dedup_keys', '-', 'SIUD', 'S', '-'),
    ('job_steps', '-', 'SID', 'S', 's'),
    ('queues', '-', 'SI', 'S', 'S'),
    ('tasks', '-', 'SIU', 'S', 'S'),
    ('workers', '-', 'SIUD', 'S', 'S'),
    ('sleepers', '-', 'SIUD', 'S', 'S'),
    ('operator_audit', '-', '-', 'S', 'S'),
    ('stats_minutely', '-', 'SIUD', 'S', 'S'),
    ('stats_progress', '-', 'S', 'S', 'S'),
    ('history_sweeps', '-', '-', 'S', 'S'),
    ('upkeep_duties', '-', 'SIU', 'S', 'S'),
    ('held_summary', '-', 'S', 'S', 'S'),
    ('upkeep_status', '-', 'S', 'S', 'S'),
    ('schedules', '-', 'SIU', 'S', 'S'),
    ('schedule_runs', '-', 'SIUD', 'S', 'S'),
    ('outbox', '-', 'SIUD', 'S', '-'),
    ('outbox_lanes', '-', 'SIUD', 'S', '-'),
    ('outbox_deliveries', '-', 'SIUD', 'S', '-'),
    ('outbox_dead_letters', '-', 'SIUD', 'S', '-'),
    ('outbox_subscriptions', '-', 'SIUD', 'S', '-'),
    ('outbox_relays', '-', 'SIUD', 'S', 'S'),
    ('outbox_status', '-', 'S', 'S', 'S'),
    ('alert_rules', '-', 'S', 'S', 'S'),
    ('alert_events', '-', 'S', 'S', 'S'),
    ('alert_deliveries', '-', 'SU', 'S', 'S'),
    ('alert_evaluations', '-', 'S', 'S', 'S'),
    ('shipped_alert_rules', '-', 'S', 'S', 'S'),
    ('alembic_version', 'S', 'S', 'S', 'S'),
    ('queue_health', '-', 'S', 'S', 'S'),
    ('running_jobs', '-', 'S', 'S', 'S'),
    ('dead_letter_summary', '-', 'S', 'S', 'S'),
    ('schedule_status', '-', 'S', 'S', 'S'),
    ('job_seq', '-', 'u', '-', '-'),
    ('outbox_seq', '-', 'u', '-', '-'),
    ('enqueue', 'X', 'X', 'X', '-'),
    ('enqueue_many', 'X', 'X', 'X', '-'),
    ('enqueue_job', 'X', 'X', 'X', '-'),
    ('enqueue_jobs', 'X', 'X', 'X', '-'),
    ('put_job', 'X', 'X', 'X', '-'),
    ('put_jobs', 'X', 'X', 'X', '-'),
    ('enqueue_receipt', 'X', 'X', 'X', '-'),
    ('enqueue_outcome', 'X', 'X', 'X', '-'),
    ('emit', 'X', 'X', 'X', '-'),
    ('put_message', 'X', 'X', 'X', '-'),
    ('emit_receipt', 'X', 'X', 'X', '-'),
    ('emit_outcome', 'X', 'X', 'X', '-'),
    ('accept_message', 'X', 'X', '-', '-'),
    ('cancel', 'X', 'X', 'X', '-'),
    ('run_now', '-', '-', 'X', '-'),
    ('reschedule', 'X', 'X', 'X', '-'),
    ('redrive', '-', '-', 'X', '-'),
    ('discard', '-', '-', 'X', '-'),
    ('pause', '-', '-', 'X', '-'),
    ('resume', '-', '-', 'X', '-'),
    ('note_operation', '-', '-', 'X', '-'),
    ('pause_schedule', '-', '-', 'X', '-'),
    ('resume_schedule', '-', '-', 'X', '-'),
    ('run_schedule', '-', '-', 'X', '-'),
    ('delete_schedule', '-', '-', 'X', '-'),
    ('put_schedule', '-', 'X', 'X', '-'),
    ('tick_schedule', '-', 'X', '-', '-'),
    ('prune_orphans', '-', 'X', '-', '-'),
    ('drain_worker', '-', '-', 'X', '-'),
    ('set_queue', '-', '-', 'X', '-'),
    ('register_queues', '-', 'X', '-', '-'),
    ('claim_lanes', '-', 'X', '-', '-'),
    ('settle_lane', '-', 'X', '-', '-'),
    ('route_messages', '-', 'X', '-', '-'),
    ('put_subscriptions', '-', 'X', '-', '-'),
    ('subscribe', '-', '-', 'X', '-'),
    ('unsubscribe', '-', '-', 'X', '-'),
    ('replay_message', '-', '-', 'X', '-'),
    ('skip_message', '-', '-', 'X', '-'),
    ('topic_matches', '-', 'X', 'X', 'X'),
    ('paused_queues', '-', 'X', '-', '-'),
    ('evaluate_alerts', '-', 'X', 'X', '-'),
    ('ack_alert', '-', '-', 'X', '-'),
    ('set_alert_rule', '-', '-', 'X', '-'),
    ('restore_alert_rules', '-', '-', 'X', '-'),
    ('wake', '-', 'X', '-', '-'),
    ('take_once', '-', 'X', '-', '-'),
    ('keep_once', '-', 'X', '-', '-'),
    ('keep_results', '-', 'X', '-', '-'),
    ('note_moves', '-', 'X', '-', '-'),
    ('key_result', 'X', 'X', 'X', '-'),
    ('assert_settled', '-', 'X', '-', '-'),
    ('ensure_partitions', '-', 'X', '-', '-'),
    ('drop_partition', '-', 'X', '-', '-'),
    ('prune_default_partitions', '-', 'X', '-', '-'),
    ('sweep_history', '-', 'X', '-', '-'),
    ('prune_redriven', '-', 'X', '-', '-'),
    ('discard_old_letters', '-', 'X', '-', '-'),
    ('summarize_days', '-', 'X', '-', '-'),
    ('roll_up', '-', 'X', '-', '-'),
    ('recount', '-', 'X', '-', '-'),
    ('bucket_bounds', '-', 'X', 'X', 'X'),
    ('bucket_percentile', '-', 'X', 'X', 'X'),
    ('work_stats', '-', 'X', 'X', 'X'),
    ('keep_history', '-', '-', 'X', '-'),
    ('explain', '-', 'X', 'X', 'X'),
    ('job_timeline', '-', 'X', 'X', 'X'),
    ('role_rights', '-', '-', 'X', 'X')
  ), wanted AS (
    SELECT m.name, g.role, CASE l.letter WHEN 'S' THEN 'SELECT' WHEN 's' THEN 'SELECT' WHEN 'I' THEN 'INSERT' WHEN 'U' THEN 'UPDATE'
      WHEN 'D' THEN 'DELETE' WHEN 'X' THEN 'EXECUTE' WHEN 'u' THEN 'USAGE' END AS privilege, l.letter = 's' AS partly
    FROM matrix m
    CROSS JOIN LATERAL (VALUES ('pgqueue_producer', m.producer), ('pgqueue_worker', m.worker), ('pgqueue_operator', m.operator),
      ('pgqueue_reader', m.reader)) AS g (role, letters)
    CROSS JOIN LATERAL regexp_split_to_table(g.letters, '') AS l (letter)
    WHERE l.letter <> '-'
  )
  SELECT 'SCHEMA', 'pgqueue', r.role, 'USAGE', NULL
  FROM unnest(ARRAY['pgqueue_producer', 'pgqueue_worker', 'pgqueue_operator', 'pgqueue_reader']) AS r (role)
  UNION ALL
  SELECT CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, c.oid::regclass::text, w.role, w.privilege,
    CASE WHEN w.partly THEN (SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum) FROM pg_attribute a
      WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        AND a.attname NOT IN ('args', 'headers', 'result', 'traceback', 'payload')) END
  FROM wanted w JOIN pg_class c ON c.relname = w.name AND c.relnamespace = 'pgqueue'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'S')
  UNION ALL
  SELECT 'FUNCTION', p.oid::regprocedure::text, w.role, w.privilege, NULL
  FROM wanted w JOIN pg_proc p ON p.proname = w.name AND p.pronamespace = 'pgqueue'::regnamespace
  WHERE w.privilege = 'EXECUTE'
$$;
COMMENT ON FUNCTION pgqueue.role_rights IS 'What each of the four roles is granted in this database, as grant_roles() grants it';

-- Does the same whenever it runs. Not with its owner's rights: who may not grant is told so by the server.
CREATE FUNCTION pgqueue.grant_roles() RETURNS SETOF text
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  the_role text;
  line record;
BEGIN
  FOREACH the_role IN ARRAY ARRAY['pgqueue_producer', 'pgqueue_worker', 'pgqueue_operator', 'pgqueue_reader'] LOOP
    IF to_regrole(the_role) IS NULL AND (SELECT r.rolsuper OR r.rolcreaterole FROM pg_roles r WHERE r.rolname = current_user) THEN
      BEGIN
        EXECUTE format('CREATE ROLE %I NOLOGIN', the_role);
      EXCEPTION
        -- A migration of another database of this cluster was faster.
        WHEN duplicate_object OR unique_violation THEN NULL;
      END;
    END IF;
    IF to_regrole(the_role) IS NULL THEN
      RETURN NEXT the_role;
      CONTINUE;
    END IF;
    EXECUTE format('REVOKE ALL ON ALL TABLES IN SCHEMA pgqueue FROM %I', the_role);
    EXECUTE format('REVOKE ALL ON ALL SEQUENCES IN SCHEMA pgqueue FROM %I', the_role);
    EXECUTE format('REVOKE ALL ON ALL FUNCTIONS IN SCHEMA pgqueue FROM %I', the_role);
    FOR line IN SELECT * FROM pgqueue.role_rights() w WHERE w.role = the_role LOOP
      EXECUTE format('GRANT %s%s ON %s %s TO %I', line.privilege, ' (' || line.columns || ')', line.kind, line.object, the_role);
    END LOOP;
  END LOOP;
END $$;
COMMENT ON FUNCTION pgqueue.grant_roles IS 'Makes the four roles, if the caller may, and grants each exactly its rights here; returns the roles that are missing';
