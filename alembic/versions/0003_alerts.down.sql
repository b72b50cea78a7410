-- squawk-ignore-file ban-drop-table, ban-drop-function, ban-drop-view
-- Takes alerts away again: rules that people changed, and the record of incidents, are lost; jobs are not touched.
DROP FUNCTION pgqueue.set_alert_rule;
DROP FUNCTION pgqueue.ack_alert;
DROP FUNCTION pgqueue.evaluate_alerts;
DROP FUNCTION pgqueue.alert_signals;
DROP FUNCTION pgqueue.late_starts;
DROP FUNCTION pgqueue.restore_alert_rules;
DROP VIEW pgqueue.shipped_alert_rules;
DROP TABLE pgqueue.alert_evaluations;
DROP TABLE pgqueue.alert_deliveries;
DROP TABLE pgqueue.alert_events;
DROP TABLE pgqueue.alert_rules;
