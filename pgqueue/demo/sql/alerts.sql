-- What operators would set: objectives of the queues, and how long an alert waits; a minute of the story is a second.
INSERT INTO pgqueue.queues (name, sla_s, sla_target, tier, owner) VALUES
  ('critical', 1, 0.99, 'critical', 'payments'), ('default', 5, 0.99, 'standard', 'rides'),
  ('mail', 10, 0.95, 'standard', 'rides'), ('batch', 30, 0.95, 'standard', 'drivers');
UPDATE pgqueue.alert_rules SET for_s = 0, resolve_s = 2 WHERE kind IN ('queue_lag', 'no_workers', 'no_leader', 'outbox_stuck');
