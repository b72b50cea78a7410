-- Alerts: rules of typed kinds, one row per incident, and what was told to whom. All small. Evaluated by the scheduler
-- that leads, or by whoever notices that nobody does; a row lock lets one in, a unique index keeps an incident one row.

CREATE TABLE pgqueue.alert_rules (
  id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  name text NOT NULL UNIQUE,
  kind text NOT NULL,
  scope jsonb NOT NULL DEFAULT '{}',
  threshold double precision NOT NULL,
  for_s double precision NOT NULL DEFAULT 0,
  resolve_s double precision NOT NULL DEFAULT 60,
  severity text NOT NULL DEFAULT 'warn',
  sinks text[] NOT NULL DEFAULT '{log,notify,webhook}',
  enabled boolean NOT NULL DEFAULT true,
  silenced_until timestamptz,
  silenced_by text,
  reason text,
  runbook_url text,
  last_error text,
  updated_by text,
  updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  CONSTRAINT alert_rules_name_check CHECK (name ~ '^[A-Za-z][A-Za-z0-9_.-]{0,62}$'),
  CONSTRAINT alert_rules_kind_check CHECK (kind IN ('queue_lag', 'limited_lag', 'dead_letter_growth', 'dead_letters_waiting', 'no_workers',
    'jobs_held', 'no_leader', 'schedule_missed', 'schedule_failed', 'old_transaction', 'connections', 'table_bloat', 'partitions', 'schema',
    'version_skew', 'lag_growing', 'error_rate', 'retry_storm', 'throughput_drop', 'rescues', 'rollups_stale', 'retention', 'outbox_stuck',
    'claims_lost', 'heartbeat_late', 'sla_burn', 'sla_burn_slow')),
  CONSTRAINT alert_rules_scope_check CHECK (jsonb_typeof(scope) = 'object' AND scope - ARRAY['key', 'queue', 'tier'] = '{}'),
  CONSTRAINT alert_rules_numbers_check CHECK (threshold >= 0 AND for_s BETWEEN 0 AND 604800 AND resolve_s BETWEEN 0 AND 604800),
  CONSTRAINT alert_rules_severity_check CHECK (severity IN ('page', 'warn', 'info', 'tier')),
  CONSTRAINT alert_rules_sinks_check CHECK (sinks <@ ARRAY['log', 'notify', 'webhook'])
);
COMMENT ON TABLE pgqueue.alert_rules IS 'When to alert: a kind, which pgqueue knows how to measure, and its numbers';
COMMENT ON COLUMN pgqueue.alert_rules.id IS 'Row id';
COMMENT ON COLUMN pgqueue.alert_rules.name IS 'Its name for people; the same as in the rules for Prometheus';
COMMENT ON COLUMN pgqueue.alert_rules.kind IS 'What is measured (docs/guides/alerts.md)';
COMMENT ON COLUMN pgqueue.alert_rules.scope IS 'Only these: {"queue": …}, {"tier": …}, {"key": …}; {} = everything';
COMMENT ON COLUMN pgqueue.alert_rules.threshold IS 'The number to be exceeded, in the unit of the kind';
COMMENT ON COLUMN pgqueue.alert_rules.for_s IS 'Seconds for which it must be exceeded before the alert fires';
COMMENT ON COLUMN pgqueue.alert_rules.resolve_s IS 'Seconds of calm before it is resolved';
COMMENT ON COLUMN pgqueue.alert_rules.severity IS 'page, warn, info, or tier: page for queues of tier critical, else warn';
COMMENT ON COLUMN pgqueue.alert_rules.sinks IS 'Who is told: log, notify (channel pgqueue_alerts), webhook (alert_webhook_url of the settings)';
COMMENT ON COLUMN pgqueue.alert_rules.enabled IS 'Off: never fires, and is not made anew by an upgrade';
COMMENT ON COLUMN pgqueue.alert_rules.silenced_until IS 'Until then incidents are noted and nobody but the log is told';
COMMENT ON COLUMN pgqueue.alert_rules.silenced_by IS 'Who silenced it';
COMMENT ON COLUMN pgqueue.alert_rules.reason IS 'Why it was silenced or changed';
COMMENT ON COLUMN pgqueue.alert_rules.runbook_url IS 'What to do';
COMMENT ON COLUMN pgqueue.alert_rules.last_error IS 'Why it could not be evaluated at the last try; NULL = it could';
COMMENT ON COLUMN pgqueue.alert_rules.updated_by IS 'Who changed it last; NULL = it is as shipped';
COMMENT ON COLUMN pgqueue.alert_rules.updated_at IS 'When';

CREATE TABLE pgqueue.alert_events (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  rule_id integer NOT NULL REFERENCES pgqueue.alert_rules (id) ON DELETE CASCADE,
  key text NOT NULL,
  state text NOT NULL DEFAULT 'pending',
  severity text NOT NULL,
  value double precision NOT NULL,
  threshold double precision NOT NULL,
  pending_since timestamptz NOT NULL,
  fired_at timestamptz,
  calm_since timestamptz,
  resolved_at timestamptz,
  acked_at timestamptz,
  acked_by text,
  note text,
  evaluator text NOT NULL,
  CONSTRAINT alert_events_state_check CHECK (state IN ('pending', 'firing', 'resolved') AND (state = 'resolved') = (resolved_at IS NOT NULL)
    AND (state = 'pending') = (fired_at IS NULL))
);
CREATE UNIQUE INDEX alert_events_open_idx ON pgqueue.alert_events (rule_id, key) WHERE resolved_at IS NULL;
CREATE INDEX alert_events_fired_at_idx ON pgqueue.alert_events (fired_at);
COMMENT ON TABLE pgqueue.alert_events IS 'One row per incident, kept 90 days; at most one of a rule and key is open';
COMMENT ON COLUMN pgqueue.alert_events.id IS 'Row id';
COMMENT ON COLUMN pgqueue.alert_events.rule_id IS 'alert_rules.id';
COMMENT ON COLUMN pgqueue.alert_events.key IS 'What it is about: a queue, a schedule, a table; empty = the whole database';
COMMENT ON COLUMN pgqueue.alert_events.state IS 'pending (not exceeded for long enough yet), firing, resolved';
COMMENT ON COLUMN pgqueue.alert_events.severity IS 'page, warn or info';
COMMENT ON COLUMN pgqueue.alert_events.value IS 'What was measured last while it was exceeded';
COMMENT ON COLUMN pgqueue.alert_events.threshold IS 'What it exceeded';
COMMENT ON COLUMN pgqueue.alert_events.pending_since IS 'When it was first exceeded';
COMMENT ON COLUMN pgqueue.alert_events.fired_at IS 'When it fired';
COMMENT ON COLUMN pgqueue.alert_events.calm_since IS 'Since when it is not exceeded any more';
COMMENT ON COLUMN pgqueue.alert_events.resolved_at IS 'When it was resolved';
COMMENT ON COLUMN pgqueue.alert_events.acked_at IS 'When somebody said that they see to it';
COMMENT ON COLUMN pgqueue.alert_events.acked_by IS 'Who';
COMMENT ON COLUMN pgqueue.alert_events.note IS 'Their words';
COMMENT ON COLUMN pgqueue.alert_events.evaluator IS 'The process that noticed it';

CREATE TABLE pgqueue.alert_deliveries (
  event_id bigint NOT NULL REFERENCES pgqueue.alert_events (id) ON DELETE CASCADE,
  transition text NOT NULL,
  sink text NOT NULL,
  tries smallint NOT NULL DEFAULT 0,
  next_at timestamptz,
  sent_at timestamptz,
  last_error text,
  PRIMARY KEY (event_id, transition, sink),
  CONSTRAINT alert_deliveries_transition_check CHECK (transition IN ('firing', 'resolved'))
);
CREATE INDEX alert_deliveries_next_at_idx ON pgqueue.alert_deliveries (next_at) WHERE next_at IS NOT NULL;
COMMENT ON TABLE pgqueue.alert_deliveries IS 'Who is to be told of an incident, and whether that worked';
COMMENT ON COLUMN pgqueue.alert_deliveries.event_id IS 'alert_events.id';
COMMENT ON COLUMN pgqueue.alert_deliveries.transition IS 'That it fired, or that it was resolved';
COMMENT ON COLUMN pgqueue.alert_deliveries.sink IS 'log, notify or webhook';
COMMENT ON COLUMN pgqueue.alert_deliveries.tries IS 'Tries so far';
COMMENT ON COLUMN pgqueue.alert_deliveries.next_at IS 'When to try; NULL = done or given up';
COMMENT ON COLUMN pgqueue.alert_deliveries.sent_at IS 'When it worked';
COMMENT ON COLUMN pgqueue.alert_deliveries.last_error IS 'Why the last try did not';

CREATE TABLE pgqueue.alert_evaluations (
  one boolean PRIMARY KEY DEFAULT true,
  evaluated_at timestamptz,
  evaluator text,
  mode text,
  seconds double precision,
  CONSTRAINT alert_evaluations_one_check CHECK (one)
);
COMMENT ON TABLE pgqueue.alert_evaluations IS 'One row: the last evaluation. Who evaluates holds its lock';
COMMENT ON COLUMN pgqueue.alert_evaluations.one IS 'There is one row';
COMMENT ON COLUMN pgqueue.alert_evaluations.evaluated_at IS 'When';
COMMENT ON COLUMN pgqueue.alert_evaluations.evaluator IS 'Which process';
COMMENT ON COLUMN pgqueue.alert_evaluations.mode IS 'leader, standin (a worker, since no leader did), check (a person)';
COMMENT ON COLUMN pgqueue.alert_evaluations.seconds IS 'How long it took';
INSERT INTO pgqueue.alert_evaluations DEFAULT VALUES;

CREATE VIEW pgqueue.shipped_alert_rules AS
SELECT v.name, v.kind, v.threshold::double precision AS threshold, v.for_s::double precision AS for_s, v.severity,
  'docs/runbooks/' || v.runbook || '.md' AS runbook_url
FROM (VALUES
  ('QueueLagAboveSLA', 'queue_lag', 1, 120, 'tier', 'queue-lag'),
  ('LimitedJobsWaiting', 'limited_lag', 10, 600, 'warn', 'limits'),
  ('DeadLettersGrowing', 'dead_letter_growth', 1, 0, 'tier', 'dead-letters'),
  ('DeadLettersWaiting', 'dead_letters_waiting', 0, 900, 'warn', 'dead-letters'),
  ('NoWorkers', 'no_workers', 0, 120, 'page', 'no-workers'),
  ('JobsHeld', 'jobs_held', 0, 300, 'warn', 'jobs-held'),
  ('NoSchedulerLeader', 'no_leader', 0, 60, 'page', 'scheduler'),
  ('ScheduleMissed', 'schedule_missed', 120, 60, 'page', 'schedule'),
  ('ScheduleRunFailed', 'schedule_failed', 0, 0, 'warn', 'schedule'),
  ('OldTransaction', 'old_transaction', 900, 300, 'warn', 'old-transaction'),
  ('ConnectionsNearLimit', 'connections', 0.85, 300, 'warn', 'connections'),
  ('TableBloat', 'table_bloat', 5, 1800, 'info', 'bloat'),
  ('PartitionsRunningOut', 'partitions', 2, 600, 'page', 'partitions'),
  ('SchemaNotAtHead', 'schema', 0, 600, 'warn', 'upgrade'),
  ('WorkerVersionSkew', 'version_skew', 1, 3600, 'info', 'upgrade'),
  ('QueueLagGrowing', 'lag_growing', 0.5, 600, 'warn', 'queue-lag'),
  ('ErrorRateHigh', 'error_rate', 0.05, 300, 'warn', 'error-rate'),
  ('RetryStorm', 'retry_storm', 3, 600, 'warn', 'retry-storm'),
  ('ThroughputCollapsed', 'throughput_drop', 0.1, 600, 'warn', 'throughput'),
  ('RescuesSpiking', 'rescues', 1, 300, 'warn', 'rescues'),
  ('RollupsStale', 'rollups_stale', 300, 600, 'info', 'monitoring'),
  ('RetentionBehind', 'retention', 86400, 600, 'warn', 'partitions'),
  ('OutboxStuck', 'outbox_stuck', 60, 120, 'page', 'outbox'),
  ('ClaimsLost', 'claims_lost', 0, 0, 'warn', 'claims-lost'),
  ('HeartbeatLate', 'heartbeat_late', 0, 600, 'warn', 'heartbeat'),
  ('SLABudgetFastBurn', 'sla_burn', 14.4, 120, 'page', 'sla-burn'),
  ('SLABudgetSlowBurn', 'sla_burn_slow', 6, 900, 'warn', 'sla-burn')
) AS v (name, kind, threshold, for_s, severity, runbook);
COMMENT ON VIEW pgqueue.shipped_alert_rules IS 'The rules as they are shipped';

CREATE FUNCTION pgqueue.restore_alert_rules()
RETURNS integer LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  made integer := 0;
BEGIN
  -- Where nothing is missing nothing is written, and nobody waited for.
  IF EXISTS (SELECT FROM pgqueue.shipped_alert_rules s WHERE NOT EXISTS (SELECT FROM pgqueue.alert_rules a WHERE a.name = s.name)) THEN
    INSERT INTO pgqueue.alert_rules (name, kind, threshold, for_s, severity, runbook_url)
      SELECT s.name, s.kind, s.threshold, s.for_s, s.severity, s.runbook_url FROM pgqueue.shipped_alert_rules s
      ON CONFLICT (name) DO NOTHING;
    GET DIAGNOSTICS made = ROW_COUNT;
  END IF;
  RETURN made;
END $$;
COMMENT ON FUNCTION pgqueue.restore_alert_rules IS 'Makes the shipped rules that are not there; returns how many. One that was changed or disabled stays as it is';
SELECT pgqueue.restore_alert_rules();

-- The share of attempts that began later than promised, by queue. Cancelled and released ones may never have begun.
CREATE FUNCTION pgqueue.late_starts(grain_s integer, since timestamptz, upto timestamptz)
RETURNS TABLE (queue text, ratio double precision)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT s.queue, 1 - sum(s.wait_met)::double precision / sum(s.n)::double precision
  FROM pgqueue.stats_minutely s
  WHERE s.grain_s = late_starts.grain_s AND s.bucket_at >= late_starts.since AND s.bucket_at < late_starts.upto
    AND s.series = 'work' AND s.outcome IN ('succeeded', 'retry') AND s.wait_met IS NOT NULL AND s.n > 0
  GROUP BY s.queue
$$;
COMMENT ON FUNCTION pgqueue.late_starts IS 'The share of starts that came later than promised, by queue, from the rollups of one grain';

-- What a kind sees at this moment: a row for each thing that exceeds the threshold. Bounded as its sources are.
CREATE FUNCTION pgqueue.alert_signals(kind text, threshold double precision, health pgqueue.queue_health[], expected_revision text)
RETURNS TABLE (key text, queue text, tier text, value double precision, bound double precision)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  -- Rates are those of the last five minutes that rollups have counted, beside the hour that ended five minutes before them.
  upto timestamptz;
BEGIN
  IF kind IN ('error_rate', 'retry_storm', 'throughput_drop', 'rescues', 'sla_burn', 'sla_burn_slow') THEN
    SELECT p.done_upto INTO upto FROM pgqueue.stats_progress p
      WHERE p.what = 'rollups' AND p.done_upto > clock_timestamp() - interval '5 minutes';
    IF upto IS NULL THEN
      -- Old rates say nothing about now; rollups_stale says that they are old.
      RETURN;
    END IF;
  END IF;
  CASE kind
  WHEN 'lag_growing' THEN
    RETURN QUERY SELECT h.queue, h.queue, h.tier, h.lag_s, threshold * h.sla_s
      FROM unnest(health) h CROSS JOIN LATERAL (
        SELECT avg(s.lag_s) FILTER (WHERE s.bucket_at >= clock_timestamp() - interval '5 minutes') AS late,
          avg(s.lag_s) FILTER (WHERE s.bucket_at < clock_timestamp() - interval '5 minutes') AS early
        FROM pgqueue.stats_minutely s
        WHERE s.grain_s = 60 AND s.series = 'queue' AND s.queue = h.queue AND s.bucket_at >= clock_timestamp() - interval '11 minutes') w
      WHERE NOT h.paused AND h.lag_s > threshold * h.sla_s AND w.late > w.early AND h.lag_s > w.early;
  WHEN 'error_rate' THEN
    RETURN QUERY SELECT w.queue, w.queue, h.tier, w.bad / w.ended, threshold
      FROM (SELECT s.queue, (sum(s.n) FILTER (WHERE s.outcome IN ('retry', 'dead')))::double precision AS bad, sum(s.n)::double precision AS ended
            FROM pgqueue.stats_minutely s
            WHERE s.grain_s = 60 AND s.series = 'work' AND s.bucket_at >= upto - interval '5 minutes' AND s.bucket_at < upto
              AND s.outcome IN ('succeeded', 'retry', 'dead') GROUP BY s.queue) w
      LEFT JOIN unnest(health) h ON h.queue = w.queue
      WHERE w.bad > threshold * w.ended AND w.bad / 300 > 0.05;
  WHEN 'retry_storm' THEN
    RETURN QUERY SELECT w.task, NULL::text, NULL::text, w.now_s, threshold * w.before_s
      FROM (SELECT s.task, coalesce(sum(s.n) FILTER (WHERE s.bucket_at >= upto - interval '5 minutes'), 0) / 300.0::double precision AS now_s,
              coalesce(sum(s.n) FILTER (WHERE s.bucket_at < upto - interval '10 minutes'), 0) / 3600.0::double precision AS before_s
            FROM pgqueue.stats_minutely s
            WHERE s.grain_s = 60 AND s.series = 'work' AND s.bucket_at >= upto - interval '70 minutes' AND s.bucket_at < upto AND s.outcome = 'retry'
            GROUP BY s.task) w
      WHERE w.now_s > threshold * w.before_s AND w.now_s > 0.2;
  WHEN 'throughput_drop' THEN
    RETURN QUERY SELECT h.queue, h.queue, h.tier, w.now_s, threshold * w.before_s
      FROM unnest(health) h CROSS JOIN LATERAL (
        SELECT coalesce(sum(s.n) FILTER (WHERE s.bucket_at >= upto - interval '5 minutes'), 0) / 300.0::double precision AS now_s,
          coalesce(sum(s.n) FILTER (WHERE s.bucket_at < upto - interval '10 minutes'), 0) / 3600.0::double precision AS before_s
        FROM pgqueue.stats_minutely s
        WHERE s.grain_s = 60 AND s.series = 'work' AND s.queue = h.queue AND s.outcome = 'succeeded'
          AND s.bucket_at >= upto - interval '70 minutes' AND s.bucket_at < upto) w
      WHERE NOT h.paused AND h.due > 0 AND w.now_s < threshold * w.before_s;
  WHEN 'rescues' THEN
    RETURN QUERY SELECT '', NULL::text, NULL::text, w.now_s, threshold
      FROM (SELECT coalesce(sum(s.n), 0) / 300.0::double precision AS now_s FROM pgqueue.stats_minutely s
            WHERE s.grain_s = 60 AND s.series = 'work' AND s.bucket_at >= upto - interval '5 minutes' AND s.bucket_at < upto
              AND s.outcome = 'rescued') w
      WHERE w.now_s > threshold;
  WHEN 'sla_burn' THEN
    -- Both windows: the long one says that it matters, the short one that it still goes on.
    RETURN QUERY SELECT h.queue, h.queue, h.tier, long.ratio, threshold * (1 - h.sla_target)
      FROM unnest(health) h
      JOIN pgqueue.late_starts(60, upto - interval '1 hour', upto) long ON long.queue = h.queue
      JOIN pgqueue.late_starts(60, upto - interval '5 minutes', upto) short ON short.queue = h.queue
      WHERE h.sla_s IS NOT NULL AND long.ratio > threshold * (1 - h.sla_target) AND short.ratio > threshold * (1 - h.sla_target);
  WHEN 'sla_burn_slow' THEN
    -- Whole hours: six hours of minutes would be read every quarter of a minute.
    RETURN QUERY SELECT h.queue, h.queue, h.tier, long.ratio, threshold * (1 - h.sla_target)
      FROM unnest(health) h
      JOIN pgqueue.late_starts(3600, upto - interval '6 hours', upto) long ON long.queue = h.queue
      JOIN pgqueue.late_starts(60, upto - interval '30 minutes', upto) short ON short.queue = h.queue
      WHERE h.sla_s IS NOT NULL AND long.ratio > threshold * (1 - h.sla_target) AND short.ratio > threshold * (1 - h.sla_target);
  WHEN 'claims_lost' THEN
    RETURN QUERY SELECT '', NULL::text, NULL::text, w.n::double precision, threshold
      FROM (SELECT count(*) AS n FROM pgqueue.workers w WHERE w.claim_lost_at > clock_timestamp() - interval '15 minutes') w
      WHERE w.n > threshold;
  WHEN 'heartbeat_late' THEN
    RETURN QUERY SELECT '', NULL::text, NULL::text, w.n::double precision, threshold
      FROM (SELECT count(*) AS n FROM pgqueue.workers w WHERE w.beat_late_at > clock_timestamp() - interval '10 minutes') w
      WHERE w.n > threshold;
  WHEN 'rollups_stale' THEN
    -- Before the first count nobody has missed anything yet.
    RETURN QUERY SELECT '', NULL::text, NULL::text, date_part('epoch', clock_timestamp() - p.done_upto), threshold
      FROM pgqueue.stats_progress p WHERE p.what = 'rollups' AND p.done_upto < clock_timestamp() - make_interval(secs => threshold);
  WHEN 'retention' THEN
    RETURN QUERY SELECT u.duty, NULL::text, NULL::text, u.overdue_s, threshold FROM pgqueue.upkeep_status u
      WHERE u.duty IN ('retention', 'queue_retention', 'dead_letters') AND u.overdue_s > threshold;
  WHEN 'outbox_stuck' THEN
    RETURN QUERY SELECT o.topic, NULL::text, NULL::text, o.oldest_age_s, threshold FROM pgqueue.outbox_status o
      WHERE o.oldest_age_s > threshold;
  WHEN 'queue_lag' THEN
    RETURN QUERY SELECT h.queue, h.queue, h.tier, h.lag_s, threshold * h.sla_s FROM unnest(health) h
      WHERE NOT h.paused AND h.lag_s > threshold * h.sla_s;
  WHEN 'limited_lag' THEN
    RETURN QUERY SELECT h.queue, h.queue, h.tier, h.limited_lag_s, threshold * h.sla_s FROM unnest(health) h
      WHERE NOT h.paused AND h.limited_lag_s > threshold * h.sla_s;
  WHEN 'dead_letter_growth' THEN
    RETURN QUERY SELECT h.queue, h.queue, h.tier, h.dead_recent::double precision, threshold * h.dead_letter_limit FROM unnest(health) h
      WHERE h.dead_recent > threshold * h.dead_letter_limit;
  WHEN 'dead_letters_waiting' THEN
    RETURN QUERY SELECT h.queue, h.queue, h.tier, h.dead_waiting::double precision, threshold FROM unnest(health) h
      WHERE h.tier = 'critical' AND h.dead_waiting > threshold;
  WHEN 'no_workers' THEN
    RETURN QUERY SELECT h.queue, h.queue, h.tier, h.due::double precision, threshold FROM unnest(health) h
      WHERE NOT h.paused AND h.workers_live = 0 AND h.due > threshold;
  WHEN 'jobs_held' THEN
    RETURN QUERY SELECT h.queue || ' ' || r.reason, h.queue, h.tier, c.n::double precision, threshold
      FROM unnest(health) h CROSS JOIN (VALUES ('unknown_task'), ('fuse')) AS r (reason)
      CROSS JOIN LATERAL (SELECT count(*) AS n FROM (SELECT FROM pgqueue.jobs j
        WHERE j.hold_reason = r.reason AND j.queue = h.queue ORDER BY j.id LIMIT 10001) w) c
      WHERE h.held > 0 AND c.n > threshold;
  WHEN 'no_leader' THEN
    RETURN QUERY SELECT '', NULL::text, NULL::text, s.n::double precision, threshold
      FROM (SELECT count(*) AS n FROM pgqueue.schedules s WHERE s.paused_at IS NULL AND s.orphaned_at IS NULL) s
      WHERE s.n > threshold AND NOT EXISTS (SELECT FROM pg_locks l WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
        AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
        AND (l.classid::bigint << 32) + l.objid::bigint = hashtextextended('pgqueue scheduler', 0));
  WHEN 'schedule_missed' THEN
    RETURN QUERY SELECT s.name, s.queue, NULL::text, date_part('epoch', clock_timestamp() - s.next_fire_at), threshold
      FROM pgqueue.schedules s
      WHERE s.paused_at IS NULL AND s.orphaned_at IS NULL AND s.next_fire_at < clock_timestamp() - make_interval(secs => threshold);
  WHEN 'schedule_failed' THEN
    RETURN QUERY SELECT v.schedule, v.queue, NULL::text, 1::double precision, threshold FROM pgqueue.schedule_status v
      WHERE v.state = 'enabled' AND (v.last_outcome IN ('dead', 'missed') OR v.last_error IS NOT NULL);
  WHEN 'old_transaction' THEN
    RETURN QUERY SELECT '', NULL::text, NULL::text, o.age_s, threshold
      FROM (SELECT greatest(
          (SELECT max(date_part('epoch', clock_timestamp() - a.xact_start)) FROM pg_stat_activity a
            WHERE a.backend_type = 'client backend' AND a.datname = current_database() AND a.pid <> pg_backend_pid()),
          (SELECT max(date_part('epoch', clock_timestamp() - p.prepared)) FROM pg_prepared_xacts p WHERE p.database = current_database())) AS age_s) o
      WHERE o.age_s > threshold;
  WHEN 'connections' THEN
    RETURN QUERY SELECT '', NULL::text, NULL::text, c.taken, threshold * c.most
      FROM (SELECT count(*)::double precision AS taken, current_setting('max_connections')::double precision AS most
            FROM pg_stat_activity a WHERE a.backend_type = 'client backend') c
      WHERE c.taken > threshold * c.most;
  WHEN 'table_bloat' THEN
    RETURN QUERY SELECT t.relname::text, NULL::text, NULL::text, t.n_dead_tup::double precision, greatest(1e6, threshold * t.n_live_tup)
      FROM pg_stat_all_tables t WHERE t.schemaname = 'pgqueue' AND t.n_dead_tup > greatest(1e6, threshold * t.n_live_tup);
  WHEN 'partitions' THEN
    RETURN QUERY SELECT p.parent, NULL::text, NULL::text, p.ahead::double precision, threshold
      FROM (SELECT t.name AS parent, (SELECT coalesce(min(d.day) - 1, 60) FROM generate_series(1, 60) AS d (day)
              WHERE to_regclass(format('pgqueue.%I', t.name || to_char((clock_timestamp() AT TIME ZONE 'UTC')::date + d.day, '"_"YYYYMMDD'))) IS NULL) AS ahead
            FROM (VALUES ('job_history'), ('job_transitions')) AS t (name)) p
      WHERE p.ahead < threshold;
  WHEN 'schema' THEN
    RETURN QUERY SELECT '', NULL::text, NULL::text, 1::double precision, threshold
      FROM pgqueue.alembic_version v WHERE v.version_num <> expected_revision;
  WHEN 'version_skew' THEN
    RETURN QUERY SELECT '', NULL::text, NULL::text, v.n::double precision, threshold
      FROM (SELECT count(DISTINCT w.version) AS n FROM pgqueue.workers w
            WHERE w.status = 'live' AND w.beat_at > clock_timestamp() - make_interval(secs => w.lease_s)) v
      WHERE v.n > threshold;
  END CASE;
END $$;
COMMENT ON FUNCTION pgqueue.alert_signals IS 'What exceeds the threshold of a kind at this moment: key, queue and tier if it is about one, value, bound';

-- One evaluation of all rules, all of it or nothing; in its own small transaction. A rule that cannot be evaluated says
-- so in its row and hinders no other. Rows: what changed.
CREATE FUNCTION pgqueue.evaluate_alerts(evaluator text, mode text, expected_revision text, sinks text[], pause_s double precision DEFAULT 0)
RETURNS TABLE (event_id bigint, rule text, key text, transition text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  moment timestamptz := clock_timestamp();
  last_at timestamptz;
  health pgqueue.queue_health[];
  r pgqueue.alert_rules;
  seen text[];
  told text[];
  why text;
BEGIN
  IF mode = 'check' THEN
    SELECT e.evaluated_at INTO last_at FROM pgqueue.alert_evaluations e FOR UPDATE;
  ELSE
    -- A look without a lock first. A moment in the future is a clock that was set back: it stops nobody.
    SELECT e.evaluated_at INTO last_at FROM pgqueue.alert_evaluations e;
    IF last_at > moment - make_interval(secs => pause_s) AND last_at <= moment THEN
      RETURN;
    END IF;
    SELECT e.evaluated_at INTO last_at FROM pgqueue.alert_evaluations e FOR UPDATE SKIP LOCKED;
    IF NOT FOUND OR (last_at > moment - make_interval(secs => pause_s) AND last_at <= clock_timestamp()) THEN
      RETURN;
    END IF;
  END IF;
  moment := clock_timestamp();
  health := ARRAY(SELECT h FROM pgqueue.queue_health h);
  FOR r IN SELECT * FROM pgqueue.alert_rules a ORDER BY a.id LOOP
    seen := '{}';
    why := NULL;
    BEGIN
      IF r.enabled THEN
        WITH signals AS (
          SELECT s.key, s.value, s.bound,
            CASE WHEN r.severity <> 'tier' THEN r.severity WHEN s.tier = 'critical' THEN 'page' ELSE 'warn' END AS severity
          FROM pgqueue.alert_signals(r.kind, r.threshold, health, evaluate_alerts.expected_revision) s
          WHERE (r.scope ->> 'key' IS NULL OR s.key = r.scope ->> 'key') AND (r.scope ->> 'queue' IS NULL OR s.queue = r.scope ->> 'queue')
            AND (r.scope ->> 'tier' IS NULL OR s.tier = r.scope ->> 'tier')
        ), noted AS (
          INSERT INTO pgqueue.alert_events AS e (rule_id, key, severity, value, threshold, pending_since, evaluator)
          SELECT r.id, s.key, s.severity, s.value, s.bound, moment, evaluate_alerts.evaluator FROM signals s
          ON CONFLICT (rule_id, key) WHERE resolved_at IS NULL DO UPDATE SET value = excluded.value, threshold = excluded.threshold,
            severity = excluded.severity, calm_since = NULL
          RETURNING e.key
        )
        SELECT coalesce(array_agg(n.key), '{}') INTO seen FROM noted n;
      END IF;
    EXCEPTION WHEN OTHERS THEN
      why := left(SQLERRM, 500);
    END;
    IF r.last_error IS DISTINCT FROM why THEN
      UPDATE pgqueue.alert_rules a SET last_error = why WHERE a.id = r.id;
    END IF;
    CONTINUE WHEN why IS NOT NULL;
    -- Who sees that it is over need not have seen it begin: a leader goes on where another stopped.
    DELETE FROM pgqueue.alert_events e WHERE e.rule_id = r.id AND e.state = 'pending' AND e.key <> ALL (seen);
    UPDATE pgqueue.alert_events e SET calm_since = moment
      WHERE e.rule_id = r.id AND e.state = 'firing' AND e.calm_since IS NULL AND e.key <> ALL (seen);
    told := ARRAY(SELECT s.sink FROM unnest(r.sinks) AS s (sink) WHERE s.sink = ANY (evaluate_alerts.sinks)
      AND (s.sink = 'log' OR r.silenced_until IS NULL OR r.silenced_until <= moment));
    RETURN QUERY
      WITH fired AS (
        UPDATE pgqueue.alert_events e SET state = 'firing', fired_at = moment
        WHERE e.rule_id = r.id AND e.state = 'pending' AND e.pending_since <= moment - make_interval(secs => r.for_s)
        RETURNING e.id, e.key
      ), resolved AS (
        UPDATE pgqueue.alert_events e SET state = 'resolved', resolved_at = moment
        WHERE e.rule_id = r.id AND e.state = 'firing'
          AND (NOT r.enabled OR e.calm_since <= moment - make_interval(secs => r.resolve_s))
        RETURNING e.id, e.key
      ), changed AS (
        SELECT f.id, f.key, 'firing' AS transition FROM fired f UNION ALL SELECT d.id, d.key, 'resolved' FROM resolved d
      ), queued AS (
        INSERT INTO pgqueue.alert_deliveries (event_id, transition, sink, next_at)
        SELECT c.id, c.transition, s.sink, moment FROM changed c CROSS JOIN unnest(told) AS s (sink)
      )
      SELECT c.id, r.name, c.key, c.transition FROM changed c ORDER BY c.key;
  END LOOP;
  DELETE FROM pgqueue.alert_events e WHERE e.id IN (SELECT o.id FROM pgqueue.alert_events o
    WHERE o.fired_at < moment - interval '90 days' AND o.resolved_at IS NOT NULL ORDER BY o.fired_at LIMIT 100);
  UPDATE pgqueue.alert_evaluations e SET evaluated_at = moment, evaluator = evaluate_alerts.evaluator, mode = evaluate_alerts.mode,
    seconds = date_part('epoch', clock_timestamp() - moment);
END $$;
COMMENT ON FUNCTION pgqueue.evaluate_alerts IS 'Evaluates all rules unless somebody does or did so within pause_s: fires, resolves, notes whom to tell. Returns what fired or was resolved';

CREATE FUNCTION pgqueue.ack_alert(event_id bigint, note text, actor text DEFAULT NULL, via text DEFAULT NULL)
RETURNS boolean LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
  UPDATE pgqueue.alert_events e SET acked_at = clock_timestamp(), acked_by = coalesce(ack_alert.actor, session_user), note = ack_alert.note
    WHERE e.id = ack_alert.event_id AND e.resolved_at IS NULL;
  IF NOT FOUND THEN
    RETURN false;
  END IF;
  PERFORM pgqueue.note_operation(ack_alert.actor, ack_alert.via, 'ack', 'alert ' || ack_alert.event_id, ack_alert.note);
  RETURN true;
END $$;
COMMENT ON FUNCTION pgqueue.ack_alert IS 'Says that somebody sees to an open incident; false if there is no such one';

CREATE FUNCTION pgqueue.set_alert_rule(rule text, attributes jsonb, reason text, actor text DEFAULT NULL, via text DEFAULT NULL)
RETURNS text LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  known text[] := ARRAY['threshold', 'for_s', 'resolve_s', 'severity', 'sinks', 'enabled', 'silenced_until', 'scope'];
  old pgqueue.alert_rules;
  new pgqueue.alert_rules;
BEGIN
  IF attributes = '{}' OR EXISTS (SELECT FROM jsonb_object_keys(attributes) AS k (name) WHERE k.name <> ALL (known)) THEN
    RAISE EXCEPTION 'attributes: must name one or more of %', array_to_string(known, ', ') USING ERRCODE = '22023';
  END IF;
  SELECT * INTO old FROM pgqueue.alert_rules a WHERE a.name = set_alert_rule.rule FOR UPDATE;
  IF NOT FOUND THEN
    RETURN NULL;
  END IF;
  new := jsonb_populate_record(old, attributes);
  IF new IS NOT DISTINCT FROM old THEN
    RETURN 'same';
  END IF;
  UPDATE pgqueue.alert_rules a SET threshold = new.threshold, for_s = new.for_s, resolve_s = new.resolve_s, severity = new.severity,
      sinks = new.sinks, enabled = new.enabled, scope = new.scope, silenced_until = new.silenced_until,
      silenced_by = CASE WHEN new.silenced_until IS NOT NULL THEN coalesce(set_alert_rule.actor, session_user) END,
      reason = set_alert_rule.reason, updated_by = coalesce(set_alert_rule.actor, session_user), updated_at = clock_timestamp()
    WHERE a.id = old.id;
  PERFORM pgqueue.note_operation(set_alert_rule.actor, set_alert_rule.via,
    CASE WHEN attributes ? 'silenced_until' THEN 'silence' ELSE 'set' END, 'alert rule ' || old.name, set_alert_rule.reason,
    detail => jsonb_build_object('to', attributes, 'was',
      (SELECT jsonb_object_agg(k.name, to_jsonb(old) -> k.name) FROM jsonb_object_keys(attributes) AS k (name))));
  RETURN 'changed';
END $$;
COMMENT ON FUNCTION pgqueue.set_alert_rule IS 'Changes a rule''s numbers, sinks or switches, or silences it: changed or same; NULL if there is no such rule';
