-- Alerts: what the evaluator does, and what people look at and do.

-- name: evaluate_alerts
-- purpose:   evaluate all rules: fire, resolve, note whom to tell
-- called by: upkeep/alerts.py, by turns; control/alerts
-- guard:     the lock of alert_evaluations' row; one open incident per rule and key; silence until pause_s have passed
-- locks:     that row and open incidents, for one statement
-- index:     those of queue_health; alert_events_open_idx
-- returns:   what fired or was resolved: (event_id bigint, rule text, key text, transition text)
SELECT e.event_id, e.rule, e.key, e.transition
FROM pgqueue.evaluate_alerts(%(evaluator)s, %(mode)s, %(revision)s, %(sinks)s::text[], %(pause_s)s) e

-- name: claim_alert_deliveries
-- purpose:   what is to be told now, for one process at a time: who does not report back is taken for dead after lease_s
-- called by: upkeep/alerts.py, by turns
-- guard:     next_at, looked at again under the row's lock
-- locks:     the rows, SKIP LOCKED
-- index:     alert_deliveries_next_at_idx
-- returns:   one row per sink and incident, the oldest first
WITH due AS MATERIALIZED (
  SELECT d.event_id, d.transition, d.sink FROM pgqueue.alert_deliveries d
  WHERE d.next_at <= (SELECT clock_timestamp()) AND d.sink = ANY (%(sinks)s::text[])
  ORDER BY d.next_at LIMIT 100 FOR UPDATE SKIP LOCKED
), taken AS (
  UPDATE pgqueue.alert_deliveries d SET tries = d.tries + 1, next_at = clock_timestamp() + make_interval(secs => %(lease_s)s)
  FROM due u WHERE d.event_id = u.event_id AND d.transition = u.transition AND d.sink = u.sink
  RETURNING d.event_id, d.transition, d.sink, d.tries
)
SELECT t.event_id, t.transition, t.sink, t.tries, a.name AS rule, a.kind, e.key, e.severity, e.value, e.threshold, e.pending_since,
  e.fired_at, e.resolved_at, a.runbook_url, a.silenced_until > clock_timestamp() AS silenced
FROM taken t JOIN pgqueue.alert_events e ON e.id = t.event_id JOIN pgqueue.alert_rules a ON a.id = e.rule_id
ORDER BY t.event_id, t.transition

-- name: record_alert_deliveries
-- purpose:   how telling went: done (again_in_s NULL, no error), to be tried again, or given up
-- called by: upkeep/alerts.py
-- guard:     none: a second sender would record the same
-- locks:     the rows
-- index:     the primary key
-- returns:   nothing
UPDATE pgqueue.alert_deliveries d SET
  sent_at = CASE WHEN o.error IS NULL THEN clock_timestamp() END, last_error = o.error,
  next_at = clock_timestamp() + make_interval(secs => o.again_in_s)
FROM jsonb_to_recordset(%(outcomes)s::jsonb) AS o (event_id bigint, transition text, sink text, error text, again_in_s double precision)
WHERE d.event_id = o.event_id AND d.transition = o.transition AND d.sink = o.sink

-- name: notify_alerts
-- purpose:   tell listeners of channel pgqueue_alerts: ids and numbers only, one notification per incident
-- called by: upkeep/alerts.py, in a transaction of its own
-- guard:     none
-- locks:     the database-wide lock of NOTIFY, at commit
-- index:     none
-- returns:   nothing of use
SELECT pg_notify('pgqueue_alerts', u.text) FROM unnest(%(texts)s::text[]) AS u (text)

-- name: restore_alert_rules
-- purpose:   shipped rules that somebody deleted come back with an upgrade; disabled ones stay disabled
-- called by: storage/migrate
-- guard:     ON CONFLICT
-- locks:     new rows
-- index:     the unique key of the name
-- returns:   how many
SELECT pgqueue.restore_alert_rules()

-- name: list_alerts
-- purpose:   incidents, the open ones first, then the newest
-- called by: control/alerts
-- guard:     none
-- locks:     none
-- index:     alert_events_open_idx, alert_events_fired_at_idx; the table is small
-- returns:   one row per incident
SELECT e.id, a.name AS rule, a.kind, e.key, e.state, e.severity, e.value, e.threshold, e.pending_since, e.fired_at, e.resolved_at, e.acked_at,
  e.acked_by, e.note, coalesce(a.silenced_until > clock_timestamp(), false) AS silenced, a.runbook_url,
  (SELECT coalesce(jsonb_object_agg(d.transition || '/' || d.sink, jsonb_build_object('tries', d.tries, 'sent_at', d.sent_at, 'next_at', d.next_at,
    'error', d.last_error)), '{}') FROM pgqueue.alert_deliveries d WHERE d.event_id = e.id) AS deliveries
FROM pgqueue.alert_events e JOIN pgqueue.alert_rules a ON a.id = e.rule_id
WHERE %(history)s::boolean OR e.resolved_at IS NULL
ORDER BY e.resolved_at IS NOT NULL, e.state = 'pending', coalesce(e.fired_at, e.pending_since) DESC, e.id DESC
LIMIT %(limit)s

-- name: list_alert_rules
-- purpose:   rules, by name
-- called by: control/alerts
-- guard:     none
-- locks:     none
-- index:     none; the table is small
-- returns:   one row per rule
SELECT a.name, a.kind, a.scope, a.threshold, a.for_s, a.resolve_s, a.severity, a.sinks, a.enabled,
  CASE WHEN a.silenced_until > clock_timestamp() THEN a.silenced_until END AS silenced_until, a.silenced_by, a.reason, a.runbook_url, a.last_error,
  a.updated_by, a.updated_at,
  (SELECT count(*) FROM pgqueue.alert_events e WHERE e.rule_id = a.id AND e.state = 'firing') AS firing
FROM pgqueue.alert_rules a WHERE %(name)s::text IS NULL OR a.name = %(name)s::text ORDER BY a.name

-- name: alert_evaluation
-- purpose:   how old the last evaluation is, and who made it
-- called by: control/alerts, control/doctor
-- guard:     none
-- locks:     none
-- index:     none; one row
-- returns:   one row
SELECT e.evaluated_at, e.evaluator, e.mode, e.seconds, date_part('epoch', clock_timestamp() - e.evaluated_at) AS age_s
FROM pgqueue.alert_evaluations e

-- name: ack_alert
-- purpose:   say that somebody sees to an incident
-- called by: control/alerts
-- guard:     only an open one
-- locks:     its row
-- index:     the primary key
-- returns:   (acked boolean)
SELECT pgqueue.ack_alert(%(id)s, %(reason)s, %(actor)s, %(via)s)

-- name: set_alert_rule
-- purpose:   change a rule or silence it; silence_s counts from now by the database's clock
-- called by: control/alerts
-- guard:     the function's: only known attributes
-- locks:     the rule's row
-- index:     the unique key of the name
-- returns:   (change text): changed or same; NULL if there is no such rule
SELECT pgqueue.set_alert_rule(%(rule)s, %(attributes)s::jsonb || CASE WHEN %(silence_s)s::double precision IS NULL THEN '{}'
  ELSE jsonb_build_object('silenced_until', clock_timestamp() + make_interval(secs => %(silence_s)s::double precision)) END,
  %(reason)s, %(actor)s, %(via)s)
