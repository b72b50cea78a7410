-- The outbox: emitting runs on the caller's own connection, as the producer's statements do; the rest is the relays'
-- and the operators'.

-- name: emit_one
-- purpose:   one message in the caller's transaction
-- called by: producer/emit.py
-- guard:     none
-- locks:     its new row; its key until the transaction ends: only producers of the same key wait for each other
-- index:     none
-- returns:   the message's id
SELECT pgqueue.put_message(
  topic => CAST(%(topic)s AS pg_catalog.text),
  payload => CAST(CAST(%(payload)s AS pg_catalog.text) AS pg_catalog.jsonb),
  key => CAST(%(key)s AS pg_catalog.text),
  headers => CAST(CAST(%(headers)s AS pg_catalog.text) AS pg_catalog.jsonb),
  job_id => CAST(%(job_id)s AS bigint),
  wake => CAST(%(wake)s AS boolean),
  checked => true)

-- name: emit_one_own
-- purpose:   one message in a transaction of our own, with what it can be found by, should the answer to COMMIT be lost
-- called by: storage/own_pool.py
-- guard:     none
-- locks:     its new row; its key until the transaction ends
-- index:     outbox' primary key
-- returns:   the message's id, the receipt
SELECT e.id, pgqueue.emit_receipt(e.id)
FROM (
  SELECT pgqueue.put_message(
    topic => CAST(%(topic)s AS pg_catalog.text),
    payload => CAST(CAST(%(payload)s AS pg_catalog.text) AS pg_catalog.jsonb),
    key => CAST(%(key)s AS pg_catalog.text),
    headers => CAST(CAST(%(headers)s AS pg_catalog.text) AS pg_catalog.jsonb),
    job_id => CAST(%(job_id)s AS bigint),
    wake => CAST(%(wake)s AS boolean),
    checked => true) AS id
  OFFSET 0
) AS e

-- name: emit_outcome
-- purpose:   the truth about a transaction whose answer to COMMIT was lost
-- called by: storage/own_call.py
-- guard:     the receipt: transaction, message and the server's life
-- locks:     none; a transaction still at work is reported, not waited for
-- index:     outbox' primary key
-- returns:   running, committed, absent, or why it is unknown
SELECT pgqueue.emit_outcome(CAST(%(receipt)s AS pg_catalog.text))

-- name: accept_message
-- purpose:   hand a message over to another database's outbox
-- called by: storage/forward.py, on a connection to that database
-- guard:     the message's uid, for 30 days
-- locks:     its new row, its key
-- index:     dedup_keys' primary key
-- returns:   the id it has there; NULL when it was there before
SELECT pgqueue.accept_message(CAST(%(uid)s AS uuid), CAST(%(topic)s AS text), CAST(CAST(%(payload)s AS text) AS jsonb),
  CAST(%(key)s AS text), CAST(CAST(%(headers)s AS text) AS jsonb))

-- name: put_subscriptions
-- purpose:   make an application's subscriptions what its code says
-- called by: outbox/register.py, at a relay's start
-- guard:     only rows of this application; nothing is locked when nothing changes
-- locks:     the router, until it has committed
-- index:     none; the table is small
-- returns:   (pattern text, sink text, change text: subscribed or unsubscribed)
SELECT p.pattern, p.sink, p.change FROM pgqueue.put_subscriptions(%(defined_in)s, %(wanted)s::jsonb, %(prune)s) p

-- name: register_relay
-- purpose:   a relay says that it is there; those that left without a word for an hour are forgotten
-- called by: outbox/runtime.py, at its start
-- guard:     none
-- locks:     the rows
-- index:     none; the table is small
-- returns:   nothing
WITH gone AS (
  DELETE FROM pgqueue.outbox_relays r WHERE r.beat_at < clock_timestamp() - interval '1 hour'
)
INSERT INTO pgqueue.outbox_relays (id, host, pid, version, sinks) VALUES (%(id)s, %(host)s, %(pid)s, %(version)s, %(sinks)s::text[])

-- name: relay_beat
-- purpose:   a relay's sign of life, and whether emits shall notify it
-- called by: outbox/runtime.py
-- guard:     none; a row that was forgotten comes back
-- locks:     the row
-- index:     the primary key
-- returns:   nothing
INSERT INTO pgqueue.outbox_relays AS r (id, host, pid, version, sinks, asleep_until)
VALUES (%(id)s, %(host)s, %(pid)s, %(version)s, %(sinks)s::text[], clock_timestamp() + make_interval(secs => %(asleep_s)s::double precision))
ON CONFLICT (id) DO UPDATE SET beat_at = clock_timestamp(), asleep_until = excluded.asleep_until

-- name: forget_relay
-- purpose:   a relay leaves, and gives the lines back that it still holds
-- called by: outbox/runtime.py, at its end
-- guard:     only its own
-- locks:     the rows
-- index:     none; once per relay
-- returns:   nothing
WITH lines AS (
  UPDATE pgqueue.outbox_lanes l SET claim_id = NULL, relay_id = NULL, due_at = clock_timestamp()
  WHERE l.relay_id = %(id)s AND l.claim_id IS NOT NULL
)
DELETE FROM pgqueue.outbox_relays r WHERE r.id = %(id)s

-- name: route_messages
-- purpose:   the next new messages become jobs or stand in line before their sinks; exactly once, for it is one transaction
-- called by: outbox/desk.py, at each round
-- guard:     one router at a time, by the transaction's advisory lock
-- locks:     the messages, the lines before their sinks in the order of (sink, lane)
-- index:     outbox_new_idx
-- returns:   a row per topic; none when nothing is new or another relay is at it
SELECT r.topic, r.messages, r.jobs, r.deliveries, r.parked, r.unroutable, r.oldest_s
FROM pgqueue.route_messages(%(batch)s::integer, %(careful)s::boolean) r

-- name: claim_lanes
-- purpose:   take lines that are due, and see the first messages of each
-- called by: outbox/desk.py, at each round
-- guard:     due_at, which a claim puts off by its lease
-- locks:     the lines, SKIP LOCKED
-- index:     outbox_lanes_due_idx, outbox_deliveries' and outbox' primary keys
-- returns:   a row per message, in the order of (sink, lane, message_id)
SELECT c.sink, c.lane, c.attempts, c.failing_id, c.message_id, c.uid::text, c.topic, c.key, c.payload, c.headers, c.emitted_at, c.age_s
FROM pgqueue.claim_lanes(%(sinks)s::text[], %(wants)s::integer[], %(run)s, %(lease_s)s, %(claim_id)s, %(relay_id)s) c

-- name: settle_lane
-- purpose:   what became of the messages taken from a line
-- called by: outbox/desk.py
-- guard:     the claim: a relay that lost the line changes nothing
-- locks:     the line, then its messages in the order of their ids
-- index:     primary keys
-- returns:   (settled boolean)
SELECT pgqueue.settle_lane(%(sink)s, %(lane)s, %(claim_id)s, %(delivered)s::bigint[], %(failed)s::bigint, %(fate)s, %(counts)s,
  %(reason)s, %(delay_s)s, %(error_type)s, %(error_message)s, %(keep_s)s::double precision)

-- name: renew_lanes
-- purpose:   a relay is still at these lines
-- called by: outbox/desk.py, at each beat
-- guard:     the claims
-- locks:     the lines in the order of (sink, lane)
-- index:     the primary key
-- returns:   (sink text, lane text) of those that are still its own
WITH mine AS MATERIALIZED (
  SELECT l.sink, l.lane FROM pgqueue.outbox_lanes l
  JOIN unnest(%(sinks)s::text[], %(lanes)s::text[], %(claims)s::uuid[]) AS h (sink, lane, claim_id)
    ON l.sink = h.sink AND l.lane = h.lane AND l.claim_id = h.claim_id
  ORDER BY l.sink, l.lane FOR UPDATE OF l
)
UPDATE pgqueue.outbox_lanes l SET due_at = clock_timestamp() + make_interval(secs => %(lease_s)s)
FROM mine m WHERE l.sink = m.sink AND l.lane = m.lane
RETURNING l.sink, l.lane

-- name: release_lanes
-- purpose:   give lines back that a relay took without hearing of it
-- called by: outbox/desk.py, on a new connection
-- guard:     only its own, and none that it knows of
-- locks:     the rows
-- index:     none; once per lost connection
-- returns:   nothing
UPDATE pgqueue.outbox_lanes l SET claim_id = NULL, relay_id = NULL, due_at = clock_timestamp()
WHERE l.relay_id = %(relay_id)s AND l.claim_id <> ALL (%(known)s::uuid[])

-- name: outbox_drained
-- purpose:   whether nothing is left that would be delivered by itself
-- called by: outbox/desk.py, with --drain
-- guard:     none
-- locks:     none
-- index:     outbox_new_idx, outbox_lanes_due_idx
-- returns:   (drained boolean)
SELECT NOT EXISTS (SELECT FROM pgqueue.outbox o WHERE o.state = 'new')
  AND NOT EXISTS (SELECT FROM pgqueue.outbox_lanes l WHERE l.sink = ANY (%(sinks)s::text[]) AND l.blocked_at IS NULL)

-- name: prune_parked
-- purpose:   drop messages that nobody subscribed to for so long
-- called by: outbox/desk.py, until it returns less than the limit
-- guard:     age; a parked message has no line
-- locks:     the deleted rows, SKIP LOCKED
-- index:     outbox_parked_idx
-- returns:   (deleted bigint)
WITH gone AS (
  DELETE FROM pgqueue.outbox o WHERE o.id = ANY (ARRAY(
    SELECT p.id FROM pgqueue.outbox p
    WHERE p.state = 'parked' AND p.emitted_at < (SELECT clock_timestamp()) - make_interval(days => %(keep_days)s)
    ORDER BY p.emitted_at, p.id LIMIT %(batch)s FOR UPDATE SKIP LOCKED))
  RETURNING 1
)
SELECT count(*) FROM gone

-- name: outbox_status
-- purpose:   what waits and fails, by topic
-- called by: control/outbox.py
-- guard:     none
-- locks:     none
-- index:     the primary keys, over at most 100,001 messages
-- returns:   the view's rows
SELECT v.topic, v.pending, v.unrouted, v.parked, v.failing, v.blocked_keys, v.dead, v.oldest_at, v.oldest_age_s, v.subscribers
FROM pgqueue.outbox_status v ORDER BY v.oldest_age_s DESC, v.topic

-- name: list_subscriptions
-- purpose:   who wants what
-- called by: control/outbox.py
-- guard:     none
-- locks:     none
-- index:     none; the table is small
-- returns:   subscriptions
SELECT s.pattern, s.sink, nullif(s.defined_in, '') AS defined_in, s.created_at FROM pgqueue.outbox_subscriptions s ORDER BY s.pattern, s.sink, s.defined_in

-- name: messages_window
-- purpose:   where the next window of the listing ends
-- called by: control/outbox.py
-- guard:     none
-- locks:     none
-- index:     outbox' primary key forwards over at most 5,000 messages
-- returns:   (last_id bigint), NULL when there is nothing more
SELECT max(w.id) FROM (SELECT o.id FROM pgqueue.outbox o WHERE o.id > %(after)s ORDER BY o.id LIMIT 5000) w

-- name: list_messages
-- purpose:   messages of a window that somebody has still to get, a row for each of those
-- called by: control/outbox.py, window after window
-- guard:     none
-- locks:     none
-- index:     outbox' primary key, outbox_deliveries_message_id_idx
-- returns:   rows in the order of (message_id, sink); a message that is not routed has one without a sink
WITH looked AS MATERIALIZED (
  SELECT o.id, o.uid, o.topic, o.key, o.state, o.emitted_at, o.job_id FROM pgqueue.outbox o
  WHERE o.id > %(after)s AND o.id <= %(upto)s AND (%(topic)s::text IS NULL OR pgqueue.topic_matches(o.topic, %(topic)s::text))
), shown AS (
  SELECT w.id AS message_id, w.uid::text AS uid, d.sink, w.topic, w.key,
    CASE WHEN d.sink IS NULL THEN w.state WHEN l.blocked_at IS NOT NULL THEN 'blocked'
      WHEN l.failing_id = w.id THEN 'failing'
      WHEN l.claim_id IS NOT NULL AND l.due_at > clock_timestamp()
        AND NOT EXISTS (SELECT FROM pgqueue.outbox_deliveries b WHERE b.sink = d.sink AND b.lane = d.lane AND b.message_id < w.id) THEN 'delivering'
      ELSE 'waiting' END AS state,
    CASE WHEN l.failing_id = w.id THEN l.attempts ELSE 0 END::integer AS attempts,
    CASE WHEN l.failing_id = w.id THEN l.error_type END AS error_type, CASE WHEN l.failing_id = w.id THEN l.error_message END AS error_message,
    CASE WHEN l.failing_id = w.id AND l.blocked_at IS NULL THEN l.due_at END AS next_at,
    w.emitted_at, greatest(0, extract(epoch FROM clock_timestamp() - w.emitted_at))::double precision AS age_s, w.job_id
  FROM looked w
  -- OFFSET 0: row by row through the indexes; a join of the whole tables looks cheaper to a plan without numbers.
  LEFT JOIN LATERAL (SELECT e.sink, e.lane FROM pgqueue.outbox_deliveries e WHERE e.message_id = w.id OFFSET 0) d ON true
  LEFT JOIN LATERAL (SELECT m.blocked_at, m.failing_id, m.claim_id, m.due_at, m.attempts, m.error_type, m.error_message
    FROM pgqueue.outbox_lanes m WHERE m.sink = d.sink AND m.lane = d.lane OFFSET 0) l ON true
)
SELECT s.message_id, s.uid, s.sink, s.topic, s.key, s.state, s.attempts, s.error_type, s.error_message, s.next_at, s.emitted_at, s.age_s, s.job_id
FROM shown s
WHERE (%(state)s::text IS NULL OR s.state = %(state)s::text) AND (%(sink)s::text IS NULL OR s.sink = %(sink)s::text)
ORDER BY s.message_id, s.sink

-- name: list_dead_messages
-- purpose:   messages that a sink did not get
-- called by: control/outbox.py
-- guard:     none
-- locks:     none
-- index:     outbox_dead_letters' primary key, forwards
-- returns:   rows in the order of (message_id, sink)
SELECT d.message_id, d.uid::text AS uid, d.sink, d.topic, d.key, 'dead' AS state, d.attempts::integer AS attempts, d.error_type, d.error_message,
  NULL::timestamptz AS next_at, d.emitted_at, greatest(0, extract(epoch FROM clock_timestamp() - d.emitted_at))::double precision AS age_s,
  d.job_id, d.reason, d.blocks, d.created_at AS dead_at
FROM pgqueue.outbox_dead_letters d
WHERE (d.message_id, d.sink) > (%(after)s::bigint, %(after_sink)s::text)
  AND (%(sink)s::text IS NULL OR d.sink = %(sink)s::text)
  AND (%(topic)s::text IS NULL OR pgqueue.topic_matches(d.topic, %(topic)s::text))
ORDER BY d.message_id, d.sink LIMIT %(limit)s

-- name: replay_messages
-- purpose:   let messages be delivered again
-- called by: control/outbox.py
-- guard:     the function's
-- locks:     the dead letters and lines, in the order of the ids
-- index:     primary keys
-- returns:   (id bigint, verdict text)
SELECT u.id, pgqueue.replay_message(u.id, %(sink)s::text, %(reason)s, %(actor)s, %(via)s)
FROM (SELECT i.id FROM unnest(%(ids)s::bigint[]) AS i (id) ORDER BY i.id) u

-- name: skip_messages
-- purpose:   give messages up
-- called by: control/outbox.py
-- guard:     the function's
-- locks:     the dead letters and lines, in the order of the ids
-- index:     primary keys
-- returns:   (id bigint, verdict text)
SELECT u.id, pgqueue.skip_message(u.id, %(sink)s::text, %(reason)s, %(actor)s, %(via)s)
FROM (SELECT i.id FROM unnest(%(ids)s::bigint[]) AS i (id) ORDER BY i.id) u
