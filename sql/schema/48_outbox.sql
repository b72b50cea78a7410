-- The outbox: messages written in the transaction of what they tell about, and how far each has come with whom.
-- Three steps, each one statement: emit (the producer's transaction), route (messages become jobs, or stand in line
-- before a sink), deliver (a relay takes the head of a line, sends, and says so). Nothing here looks for "ids after
-- the last one": ids are given before they commit, and a late one would be skipped.

-- CACHE 1 is needed: a session that held numbers back would use a low one after another session's high one.
CREATE SEQUENCE pgqueue.outbox_seq AS bigint CACHE 1;
COMMENT ON SEQUENCE pgqueue.outbox_seq IS 'Message ids; of one key they are in commit order, gaps are normal';

CREATE TABLE pgqueue.outbox (
  id bigint PRIMARY KEY,
  uid uuid NOT NULL DEFAULT gen_random_uuid(),
  emitted_at timestamptz NOT NULL,
  job_id bigint,
  pending smallint NOT NULL DEFAULT 0,
  state text NOT NULL DEFAULT 'new',
  topic text NOT NULL,
  key text,
  payload jsonb NOT NULL,
  headers jsonb,
  CONSTRAINT outbox_state_check CHECK (state IN ('new', 'routed', 'parked') AND (state = 'routed') = (pending > 0)),
  CONSTRAINT outbox_topic_check CHECK (length(topic) BETWEEN 1 AND 200),
  CONSTRAINT outbox_key_check CHECK (octet_length(key) BETWEEN 1 AND 200),
  CONSTRAINT outbox_payload_check CHECK (jsonb_typeof(payload) = 'object' AND pg_column_size(payload) <= 8388608),
  CONSTRAINT outbox_headers_check CHECK (jsonb_typeof(headers) = 'object')
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 5000);
CREATE INDEX outbox_new_idx ON pgqueue.outbox (id) WHERE state = 'new';
-- For the timeline of one job; handlers emit, and most messages are gone within a second.
CREATE INDEX outbox_job_id_idx ON pgqueue.outbox (job_id) WHERE job_id IS NOT NULL;
CREATE INDEX outbox_parked_idx ON pgqueue.outbox (emitted_at, id) WHERE state = 'parked';
COMMENT ON TABLE pgqueue.outbox IS 'Messages that somebody has still to get; a message leaves when the last one has it';
COMMENT ON COLUMN pgqueue.outbox.id IS 'Message id; of one key in commit order';
COMMENT ON COLUMN pgqueue.outbox.uid IS 'The same message wherever and however often it arrives: what receivers tell repetitions by';
COMMENT ON COLUMN pgqueue.outbox.emitted_at IS 'When it was emitted, by the database''s clock; its transaction may have committed later';
COMMENT ON COLUMN pgqueue.outbox.job_id IS 'The job whose handler emitted it; NULL = no job did';
COMMENT ON COLUMN pgqueue.outbox.pending IS 'Sinks that have still to get it';
COMMENT ON COLUMN pgqueue.outbox.state IS 'new (no relay has seen it), routed (stands in line before pending sinks), parked (nobody subscribes to its topic)';
COMMENT ON COLUMN pgqueue.outbox.topic IS 'What it is about, as in ride.completed';
COMMENT ON COLUMN pgqueue.outbox.key IS 'Messages of one key are delivered in commit order; NULL = no order';
COMMENT ON COLUMN pgqueue.outbox.payload IS 'A JSON object; the arguments of the jobs it becomes';
COMMENT ON COLUMN pgqueue.outbox.headers IS 'String map carried along: trace context, correlation id';

CREATE TABLE pgqueue.outbox_subscriptions (
  pattern text NOT NULL,
  sink text NOT NULL,
  defined_in text NOT NULL DEFAULT '',
  task text,
  created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (sink, pattern, defined_in),
  CONSTRAINT outbox_subscriptions_pattern_check CHECK (length(pattern) <= 200
    AND pattern ~ '^(?:\*|[A-Za-z_][A-Za-z0-9_-]*(?:\.[A-Za-z_][A-Za-z0-9_-]*)*(?:\.\*)?)$'),
  CONSTRAINT outbox_subscriptions_sink_check CHECK (CASE WHEN task IS NULL THEN sink ~ '^[a-z][a-z0-9_.-]{0,62}$'
    ELSE sink = 'task:' || task AND length(task) <= 200 AND task ~ '^[A-Za-z_][A-Za-z0-9_-]*(?:\.[A-Za-z_][A-Za-z0-9_-]*)*$' END)
);
COMMENT ON TABLE pgqueue.outbox_subscriptions IS 'Who wants which topics; relays write what their application''s code says';
COMMENT ON COLUMN pgqueue.outbox_subscriptions.pattern IS 'A topic; ride.* = all below ride; * = every topic';
COMMENT ON COLUMN pgqueue.outbox_subscriptions.sink IS 'Who: task:NAME, or a sink by the name its application gave it';
COMMENT ON COLUMN pgqueue.outbox_subscriptions.defined_in IS 'The application whose code says so; empty = a person did';
COMMENT ON COLUMN pgqueue.outbox_subscriptions.task IS 'The task whose jobs its messages become; NULL = a sink outside';
COMMENT ON COLUMN pgqueue.outbox_subscriptions.created_at IS 'When it was first said';

-- A line of messages before one sink: all of one key, or a single message without one. Whoever holds the line
-- delivers from it, so its order needs no more than this row.
CREATE TABLE pgqueue.outbox_lanes (
  sink text NOT NULL,
  lane text NOT NULL,
  due_at timestamptz NOT NULL,
  claim_id uuid,
  relay_id uuid,
  attempts smallint NOT NULL DEFAULT 0,
  failing_id bigint,
  first_failed_at timestamptz,
  failed_at timestamptz,
  blocked_at timestamptz,
  error_type text,
  error_message text,
  PRIMARY KEY (sink, lane),
  CONSTRAINT outbox_lanes_claim_check CHECK ((claim_id IS NULL) = (relay_id IS NULL)),
  CONSTRAINT outbox_lanes_failing_check CHECK (failing_id IS NOT NULL OR (attempts = 0 AND failed_at IS NULL))
) WITH (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000);
CREATE INDEX outbox_lanes_due_idx ON pgqueue.outbox_lanes (sink, due_at) WHERE blocked_at IS NULL;
CREATE INDEX outbox_lanes_failing_idx ON pgqueue.outbox_lanes (failing_id) WHERE failing_id IS NOT NULL;
COMMENT ON TABLE pgqueue.outbox_lanes IS 'Lines of messages before sinks; a line goes when its last message is delivered';
COMMENT ON COLUMN pgqueue.outbox_lanes.sink IS 'Before whom';
COMMENT ON COLUMN pgqueue.outbox_lanes.lane IS '=KEY for the messages of a key, #ID for a message without one';
COMMENT ON COLUMN pgqueue.outbox_lanes.due_at IS 'From here on a relay may take it; a claim and a failure put it off';
COMMENT ON COLUMN pgqueue.outbox_lanes.claim_id IS 'The newest claim, which alone may say what was delivered; NULL = nobody is at it';
COMMENT ON COLUMN pgqueue.outbox_lanes.relay_id IS 'The relay that made it (outbox_relays.id)';
COMMENT ON COLUMN pgqueue.outbox_lanes.attempts IS 'Failed tries of failing_id that count; a sink that cannot be reached at all costs none';
COMMENT ON COLUMN pgqueue.outbox_lanes.failing_id IS 'The message that failed last; NULL = its head has not failed';
COMMENT ON COLUMN pgqueue.outbox_lanes.first_failed_at IS 'When failing_id failed first';
COMMENT ON COLUMN pgqueue.outbox_lanes.failed_at IS 'When it failed last';
COMMENT ON COLUMN pgqueue.outbox_lanes.blocked_at IS 'Since when nothing is delivered because failing_id lies in outbox_dead_letters; NULL = not blocked';
COMMENT ON COLUMN pgqueue.outbox_lanes.error_type IS 'Class of the last error';
COMMENT ON COLUMN pgqueue.outbox_lanes.error_message IS 'Its text, cleaned, cut and redacted';

CREATE TABLE pgqueue.outbox_deliveries (
  sink text NOT NULL,
  lane text NOT NULL,
  message_id bigint NOT NULL,
  PRIMARY KEY (sink, lane, message_id)
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 5000);
CREATE INDEX outbox_deliveries_message_id_idx ON pgqueue.outbox_deliveries (message_id);
COMMENT ON TABLE pgqueue.outbox_deliveries IS 'Which messages stand in which line; a row goes when its sink has the message';
COMMENT ON COLUMN pgqueue.outbox_deliveries.sink IS 'outbox_lanes.sink';
COMMENT ON COLUMN pgqueue.outbox_deliveries.lane IS 'outbox_lanes.lane';
COMMENT ON COLUMN pgqueue.outbox_deliveries.message_id IS 'outbox.id, and its place in the line';

CREATE TABLE pgqueue.outbox_dead_letters (
  message_id bigint NOT NULL,
  sink text NOT NULL,
  uid uuid NOT NULL,
  topic text NOT NULL,
  key text,
  payload jsonb NOT NULL,
  headers jsonb,
  emitted_at timestamptz NOT NULL,
  job_id bigint,
  reason text NOT NULL,
  blocks boolean NOT NULL,
  attempts smallint NOT NULL,
  error_type text,
  error_message text,
  first_failed_at timestamptz NOT NULL,
  created_at timestamptz NOT NULL,
  PRIMARY KEY (message_id, sink)
);
CREATE INDEX outbox_dead_letters_job_id_idx ON pgqueue.outbox_dead_letters (job_id) WHERE job_id IS NOT NULL;
CREATE INDEX outbox_dead_letters_created_at_idx ON pgqueue.outbox_dead_letters (created_at, message_id);
COMMENT ON TABLE pgqueue.outbox_dead_letters IS 'Messages that a sink did not get in all its tries; kept until replayed or skipped';
COMMENT ON COLUMN pgqueue.outbox_dead_letters.message_id IS 'outbox.id';
COMMENT ON COLUMN pgqueue.outbox_dead_letters.sink IS 'Who did not get it';
COMMENT ON COLUMN pgqueue.outbox_dead_letters.uid IS 'outbox.uid';
COMMENT ON COLUMN pgqueue.outbox_dead_letters.topic IS 'Topic';
COMMENT ON COLUMN pgqueue.outbox_dead_letters.key IS 'Key; NULL = none';
COMMENT ON COLUMN pgqueue.outbox_dead_letters.payload IS 'A JSON object';
COMMENT ON COLUMN pgqueue.outbox_dead_letters.headers IS 'String map carried along';
COMMENT ON COLUMN pgqueue.outbox_dead_letters.emitted_at IS 'When it was emitted';
COMMENT ON COLUMN pgqueue.outbox_dead_letters.job_id IS 'The job whose handler emitted it';
COMMENT ON COLUMN pgqueue.outbox_dead_letters.reason IS 'max_retries, gave_up, rejected, or unroutable (no job could be made of it)';
COMMENT ON COLUMN pgqueue.outbox_dead_letters.blocks IS 'Whether later messages of its key wait for a decision about this one';
COMMENT ON COLUMN pgqueue.outbox_dead_letters.attempts IS 'Tries it had';
COMMENT ON COLUMN pgqueue.outbox_dead_letters.error_type IS 'Class of the last error';
COMMENT ON COLUMN pgqueue.outbox_dead_letters.error_message IS 'Its text, cleaned, cut and redacted';
COMMENT ON COLUMN pgqueue.outbox_dead_letters.first_failed_at IS 'When it failed first';
COMMENT ON COLUMN pgqueue.outbox_dead_letters.created_at IS 'When it was given up';

CREATE TABLE pgqueue.outbox_relays (
  id uuid PRIMARY KEY,
  host text NOT NULL,
  pid integer NOT NULL,
  version text NOT NULL,
  sinks text[] NOT NULL,
  started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  beat_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  asleep_until timestamptz
) WITH (fillfactor = 50, autovacuum_vacuum_threshold = 200, autovacuum_vacuum_scale_factor = 0.0);
COMMENT ON TABLE pgqueue.outbox_relays IS 'Relay processes; a row goes when its relay stops, or has been silent for an hour';
COMMENT ON COLUMN pgqueue.outbox_relays.id IS 'New for every start';
COMMENT ON COLUMN pgqueue.outbox_relays.host IS 'Host name';
COMMENT ON COLUMN pgqueue.outbox_relays.pid IS 'Process id on its host';
COMMENT ON COLUMN pgqueue.outbox_relays.version IS 'Version of pgqueue it runs';
COMMENT ON COLUMN pgqueue.outbox_relays.sinks IS 'Sinks it delivers to; jobs are made by every relay';
COMMENT ON COLUMN pgqueue.outbox_relays.started_at IS 'When it started';
COMMENT ON COLUMN pgqueue.outbox_relays.beat_at IS 'Last sign of life';
COMMENT ON COLUMN pgqueue.outbox_relays.asleep_until IS 'Until then emits notify it; NULL = it is awake and looks by itself';

CREATE FUNCTION pgqueue.outbox_lane(key text, id bigint) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
  RETURN coalesce('=' || key, '#' || id);
COMMENT ON FUNCTION pgqueue.outbox_lane IS 'The line a message stands in';

CREATE FUNCTION pgqueue.topic_matches(topic text, pattern text) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE
  RETURN topic = pattern OR pattern = '*' OR (right(pattern, 2) = '.*' AND starts_with(topic, left(pattern, -1)));
COMMENT ON FUNCTION pgqueue.topic_matches IS 'Whether a subscription means a topic: the topic itself, ride.* for all below ride, * for every one';

CREATE FUNCTION pgqueue.check_message(topic text, payload jsonb, key text, headers jsonb)
RETURNS void LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
BEGIN
  IF topic IS NULL OR length(topic) > 200 OR topic !~ '^[A-Za-z_][A-Za-z0-9_-]*(?:\.[A-Za-z_][A-Za-z0-9_-]*)*$' THEN
    RAISE EXCEPTION 'topic: must be identifiers joined by dots, each of ASCII letters, digits, _ and - and not starting with a digit (limit: 1-200 characters)'
      USING ERRCODE = '22023';
  END IF;
  PERFORM pgqueue.check_args('payload', payload);
  IF key IS NOT NULL THEN
    PERFORM pgqueue.check_key('key', key);
  END IF;
  IF headers IS NOT NULL THEN
    PERFORM pgqueue.check_headers(headers);
  END IF;
END $$;
COMMENT ON FUNCTION pgqueue.check_message IS 'Raises 22023 with one clear line if a message may not be emitted like this';

-- The lock is what makes ids of one key follow the order of commits: it is held until the transaction has ended, and
-- the number is taken under it.
CREATE FUNCTION pgqueue.put_message(topic text, payload jsonb, key text DEFAULT NULL, headers jsonb DEFAULT NULL,
                                    job_id bigint DEFAULT NULL, wake boolean DEFAULT true, checked boolean DEFAULT false,
                                    uid uuid DEFAULT NULL)
RETURNS bigint LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  message_id bigint;
BEGIN
  IF NOT put_message.checked THEN
    PERFORM pgqueue.check_message(put_message.topic, put_message.payload, put_message.key, put_message.headers);
  END IF;
  IF put_message.key IS NOT NULL THEN
    PERFORM pg_advisory_xact_lock(hashtextextended('pgqueue outbox ' || put_message.key, 0));
  END IF;
  message_id := nextval('pgqueue.outbox_seq');
  INSERT INTO pgqueue.outbox (id, uid, emitted_at, job_id, topic, key, payload, headers)
    VALUES (message_id, coalesce(put_message.uid, gen_random_uuid()), clock_timestamp(), put_message.job_id, put_message.topic,
      put_message.key, put_message.payload, put_message.headers);
  -- A notifying commit serialises all notifying commits of the cluster, so only a relay that sleeps is notified.
  IF put_message.wake AND EXISTS (SELECT FROM pgqueue.outbox_relays r WHERE r.asleep_until > clock_timestamp()) THEN
    PERFORM pg_notify('pgqueue_outbox', '');
  END IF;
  RETURN message_id;
END $$;
COMMENT ON FUNCTION pgqueue.put_message IS 'As emit, with what only pgqueue itself says of a message';

CREATE FUNCTION pgqueue.emit(topic text, payload jsonb DEFAULT '{}', key text DEFAULT NULL, headers jsonb DEFAULT NULL)
RETURNS bigint LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN pgqueue.put_message(topic, payload, key, headers);
END $$;
COMMENT ON FUNCTION pgqueue.emit IS 'Puts a message into the outbox in the caller''s transaction and returns its id; producers of one key wait for each other until commit';

-- For messages that come from another database's outbox. dedup_keys remembers them under a task of its own; the job id
-- there names no job.
CREATE FUNCTION pgqueue.accept_message(uid uuid, topic text, payload jsonb, key text DEFAULT NULL, headers jsonb DEFAULT NULL)
RETURNS bigint LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  first record;
BEGIN
  PERFORM pgqueue.check_message(topic, payload, key, headers);
  first := pgqueue.take_key('pgqueue.outbox', accept_message.uid::text, interval '30 days');
  IF NOT first.taken THEN
    RETURN NULL;
  END IF;
  RETURN pgqueue.put_message(topic, payload, key, headers, checked => true, uid => accept_message.uid);
END $$;
COMMENT ON FUNCTION pgqueue.accept_message IS 'Emits a message that another database''s relay hands over, once within 30 days; NULL when it was here before';

-- Which life of the server this is: transaction numbers that were never flushed are handed out again after a crash,
-- and a crash sets both of these anew.
CREATE FUNCTION pgqueue.server_life() RETURNS text LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
  RETURN (SELECT concat_ws('/', extract(epoch FROM pg_postmaster_start_time()), extract(epoch FROM a.stats_reset)) FROM pg_stat_archiver a);
COMMENT ON FUNCTION pgqueue.server_life IS 'Another text after each restart or crash of the server';

CREATE FUNCTION pgqueue.emit_receipt(message_id bigint) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN (SELECT concat_ws(' ', 'message', pg_current_xact_id_if_assigned(), o.id, o.uid, pgqueue.server_life()) FROM pgqueue.outbox o
          WHERE o.id = emit_receipt.message_id);
END $$;
COMMENT ON FUNCTION pgqueue.emit_receipt IS 'What emit_outcome finds a message by that was emitted in this transaction';

-- A relay may have delivered the message already, and then no row is left of it: the transaction's number tells.
CREATE FUNCTION pgqueue.emit_outcome(receipt text) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  parts text[] := string_to_array(receipt, ' ');
  fate text;
BEGIN
  IF EXISTS (SELECT FROM pgqueue.outbox o WHERE o.id = parts[3]::bigint AND o.uid = parts[4]::uuid) THEN
    RETURN 'committed';
  ELSIF parts[5] IS DISTINCT FROM pgqueue.server_life() THEN
    RETURN 'unknown: the server was restarted meanwhile';
  END IF;
  fate := pg_xact_status(parts[2]::xid8);
  RETURN CASE fate WHEN 'in progress' THEN 'running' WHEN 'committed' THEN 'committed' WHEN 'aborted' THEN 'absent'
    ELSE 'unknown: it is too long ago' END;
END $$;
COMMENT ON FUNCTION pgqueue.emit_outcome IS 'Whether the transaction of a receipt committed its message: running, committed, absent or unknown';

-- One relay routes at a time: so a key's messages come into their lines in order. The lock is the transaction's, which
-- is this one statement: a relay that is stopped or cut in the middle holds nothing.
CREATE FUNCTION pgqueue.route_messages(batch integer, careful boolean DEFAULT false)
RETURNS TABLE (topic text, messages bigint, jobs bigint, deliveries bigint, parked bigint, unroutable bigint, oldest_s double precision)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  ids bigint[];
  bad bigint[] := '{}';
  job record;
BEGIN
  IF NOT pg_try_advisory_xact_lock(hashtextextended('pgqueue outbox router', 0)) THEN
    RETURN;
  END IF;
  ids := ARRAY(SELECT o.id FROM pgqueue.outbox o WHERE o.state = 'new' ORDER BY o.id LIMIT route_messages.batch FOR UPDATE);
  IF cardinality(ids) = 0 THEN
    RETURN;
  END IF;
  -- In the order of the messages: a lane of jobs grows at its tail.
  FOR job IN
    SELECT w.id, w.task, w.payload, w.headers, w.job_id FROM (
      SELECT DISTINCT ON (o.id, s.task) o.id, s.task, o.payload, o.job_id,
        coalesce(o.headers, '{}') || jsonb_strip_nulls(jsonb_build_object('pgqueue.message_id', o.id::text, 'pgqueue.message_uid', o.uid,
          'pgqueue.topic', o.topic, 'pgqueue.message_key', o.key)) AS headers
      FROM pgqueue.outbox o JOIN pgqueue.outbox_subscriptions s ON s.task IS NOT NULL AND pgqueue.topic_matches(o.topic, s.pattern)
      WHERE o.id = ANY (ids)) w
    ORDER BY w.id, w.task
  LOOP
    IF NOT route_messages.careful THEN
      PERFORM pgqueue.put_job(task => job.task, args => job.payload, headers => job.headers, parent_id => job.job_id, checked => true);
    ELSE
      BEGIN
        PERFORM pgqueue.put_job(task => job.task, args => job.payload, headers => job.headers, parent_id => job.job_id, checked => true);
      EXCEPTION WHEN data_exception OR integrity_constraint_violation OR program_limit_exceeded THEN
        INSERT INTO pgqueue.outbox_dead_letters (message_id, sink, uid, topic, key, payload, headers, emitted_at, job_id, reason, blocks,
            attempts, error_type, error_message, first_failed_at, created_at)
          SELECT o.id, 'task:' || job.task, o.uid, o.topic, o.key, o.payload, o.headers, o.emitted_at, o.job_id, 'unroutable', false, 1,
            'SQLSTATE ' || SQLSTATE, 'no job can be made of it', clock_timestamp(), clock_timestamp()
          FROM pgqueue.outbox o WHERE o.id = job.id
          ON CONFLICT (message_id, sink) DO NOTHING;
        bad := bad || job.id;
      END;
    END IF;
  END LOOP;
  -- A line that exists is locked too, though nothing of it changes: else its relay could find it empty and drop it
  -- before it sees the rows that follow. All in one order, as everybody who locks several.
  INSERT INTO pgqueue.outbox_lanes AS l (sink, lane, due_at)
    SELECT w.sink, w.lane, clock_timestamp() FROM (
      SELECT DISTINCT s.sink, pgqueue.outbox_lane(o.key, o.id) AS lane
      FROM pgqueue.outbox o JOIN pgqueue.outbox_subscriptions s ON s.task IS NULL AND pgqueue.topic_matches(o.topic, s.pattern)
      WHERE o.id = ANY (ids)) w ORDER BY w.sink, w.lane
    ON CONFLICT (sink, lane) DO UPDATE SET due_at = l.due_at WHERE false;
  INSERT INTO pgqueue.outbox_deliveries (sink, lane, message_id)
    SELECT DISTINCT s.sink, pgqueue.outbox_lane(o.key, o.id), o.id
    FROM pgqueue.outbox o JOIN pgqueue.outbox_subscriptions s ON s.task IS NULL AND pgqueue.topic_matches(o.topic, s.pattern)
    WHERE o.id = ANY (ids);
  RETURN QUERY
  WITH told AS MATERIALIZED (
    SELECT o.id, o.topic, o.emitted_at,
      (SELECT count(DISTINCT s.sink) FROM pgqueue.outbox_subscriptions s WHERE s.task IS NOT NULL AND pgqueue.topic_matches(o.topic, s.pattern)) AS tasks,
      (SELECT count(DISTINCT s.sink) FROM pgqueue.outbox_subscriptions s WHERE s.task IS NULL AND pgqueue.topic_matches(o.topic, s.pattern)) AS sinks
    FROM pgqueue.outbox o WHERE o.id = ANY (ids)
  ), gone AS (
    DELETE FROM pgqueue.outbox o USING told t WHERE o.id = t.id AND t.tasks > 0 AND t.sinks = 0
  ), stay AS (
    UPDATE pgqueue.outbox o SET state = CASE WHEN t.sinks > 0 THEN 'routed' ELSE 'parked' END, pending = t.sinks
    FROM told t WHERE o.id = t.id AND (t.sinks > 0 OR t.tasks = 0)
  )
  SELECT t.topic, count(*), (sum(t.tasks) - count(*) FILTER (WHERE t.id = ANY (bad)))::bigint, sum(t.sinks)::bigint,
    count(*) FILTER (WHERE t.tasks + t.sinks = 0), count(*) FILTER (WHERE t.id = ANY (bad)),
    greatest(0, extract(epoch FROM clock_timestamp() - min(t.emitted_at)))::double precision
  FROM told t GROUP BY t.topic;
END $$;
COMMENT ON FUNCTION pgqueue.route_messages IS 'Makes jobs of the next new messages and puts them in line before their sinks; nothing while another relay does. careful: one that no job can be made of becomes a dead letter';

-- In two statements: what stands in a line is read after the line was taken, or the rows might be those that another
-- relay has delivered in between.
CREATE FUNCTION pgqueue.claim_lanes(sinks text[], wants integer[], run integer, lease_s double precision, claim_id uuid, relay_id uuid)
RETURNS TABLE (sink text, lane text, attempts integer, failing_id bigint, message_id bigint, uid uuid, topic text, key text,
               payload text, headers text, emitted_at timestamptz, age_s double precision)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  taken_sinks text[];
  taken_lanes text[];
BEGIN
  SELECT array_agg(d.sink), array_agg(d.lane) INTO taken_sinks, taken_lanes
    FROM unnest(claim_lanes.sinks, claim_lanes.wants) AS w (sink, want)
    CROSS JOIN LATERAL (
      SELECT l.sink, l.lane FROM pgqueue.outbox_lanes l
      WHERE l.sink = w.sink AND l.blocked_at IS NULL AND l.due_at <= statement_timestamp()
      ORDER BY l.due_at LIMIT w.want FOR UPDATE SKIP LOCKED) d;
  IF taken_sinks IS NULL THEN
    RETURN;
  END IF;
  -- By arrays, of which a plan expects few: joined with the lines above it would read the whole table.
  UPDATE pgqueue.outbox_lanes l SET claim_id = claim_lanes.claim_id, relay_id = claim_lanes.relay_id,
      due_at = clock_timestamp() + make_interval(secs => claim_lanes.lease_s)
    FROM unnest(taken_sinks, taken_lanes) AS t (sink, lane) WHERE l.sink = t.sink AND l.lane = t.lane;
  DELETE FROM pgqueue.outbox_lanes l USING unnest(taken_sinks, taken_lanes) AS t (sink, lane)
    WHERE l.sink = t.sink AND l.lane = t.lane AND l.blocked_at IS NULL
      AND NOT EXISTS (SELECT FROM pgqueue.outbox_deliveries d WHERE d.sink = l.sink AND d.lane = l.lane);
  RETURN QUERY
  SELECT l.sink, l.lane, l.attempts::integer, l.failing_id, o.id, o.uid, o.topic, o.key, o.payload::text, o.headers::text, o.emitted_at,
    greatest(0, extract(epoch FROM clock_timestamp() - o.emitted_at))::double precision
  FROM unnest(taken_sinks, taken_lanes) AS t (sink, lane)
  JOIN pgqueue.outbox_lanes l ON l.sink = t.sink AND l.lane = t.lane
  CROSS JOIN LATERAL (SELECT d.message_id FROM pgqueue.outbox_deliveries d WHERE d.sink = l.sink AND d.lane = l.lane
                      ORDER BY d.message_id LIMIT claim_lanes.run) d
  JOIN pgqueue.outbox o ON o.id = d.message_id
  ORDER BY l.sink, l.lane, o.id;
END $$;
COMMENT ON FUNCTION pgqueue.claim_lanes IS 'Takes lines that are due, as many per sink as wanted, and returns the first messages of each';

-- Counts down who has still to get a message; it leaves with the last. Both rows of a message may be locked by several
-- lines at once, so in the order of the ids.
CREATE FUNCTION pgqueue.forget_deliveries(sink text, lane text, ids bigint[]) RETURNS void
LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
  gone bigint[];
BEGIN
  WITH done AS (
    DELETE FROM pgqueue.outbox_deliveries d WHERE d.sink = forget_deliveries.sink AND d.lane = forget_deliveries.lane
      AND d.message_id = ANY (forget_deliveries.ids) RETURNING d.message_id
  )
  SELECT array_agg(d.message_id) INTO gone FROM done d;
  PERFORM FROM pgqueue.outbox o WHERE o.id = ANY (gone) ORDER BY o.id FOR UPDATE;
  DELETE FROM pgqueue.outbox o WHERE o.id = ANY (gone) AND o.pending <= 1;
  UPDATE pgqueue.outbox o SET pending = o.pending - 1 WHERE o.id = ANY (gone);
END $$;
COMMENT ON FUNCTION pgqueue.forget_deliveries IS 'A sink has these messages, or gave them up';

-- keep_s: the relay goes on with this line and has so long again. fate of the failed message: retry, block, skip.
CREATE FUNCTION pgqueue.settle_lane(sink text, lane text, claim_id uuid, delivered bigint[], failed bigint DEFAULT NULL,
                                    fate text DEFAULT NULL, counts boolean DEFAULT true, reason text DEFAULT NULL,
                                    delay_s double precision DEFAULT 0, error_type text DEFAULT NULL, error_message text DEFAULT NULL,
                                    keep_s double precision DEFAULT NULL)
RETURNS boolean LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  held pgqueue.outbox_lanes;
  moment timestamptz := clock_timestamp();
  tries integer;
  buried bigint;
BEGIN
  SELECT * INTO held FROM pgqueue.outbox_lanes l
    WHERE l.sink = settle_lane.sink AND l.lane = settle_lane.lane AND l.claim_id = settle_lane.claim_id FOR UPDATE;
  IF NOT FOUND THEN
    RETURN false;
  END IF;
  IF held.failing_id = ANY (settle_lane.delivered) OR held.failing_id IS DISTINCT FROM coalesce(settle_lane.failed, held.failing_id) THEN
    held.failing_id := NULL; held.attempts := 0; held.first_failed_at := NULL; held.failed_at := NULL;
    held.error_type := NULL; held.error_message := NULL;
  END IF;
  PERFORM pgqueue.forget_deliveries(settle_lane.sink, settle_lane.lane, settle_lane.delivered);
  IF settle_lane.failed IS NOT NULL THEN
    tries := held.attempts + settle_lane.counts::integer;
    IF settle_lane.fate IN ('block', 'skip') THEN
      INSERT INTO pgqueue.outbox_dead_letters (message_id, sink, uid, topic, key, payload, headers, emitted_at, job_id, reason, blocks,
          attempts, error_type, error_message, first_failed_at, created_at)
        SELECT o.id, settle_lane.sink, o.uid, o.topic, o.key, o.payload, o.headers, o.emitted_at, o.job_id, settle_lane.reason,
          settle_lane.fate = 'block' AND o.key IS NOT NULL, tries, settle_lane.error_type, settle_lane.error_message,
          coalesce(held.first_failed_at, moment), moment
        FROM pgqueue.outbox o JOIN pgqueue.outbox_deliveries d ON d.sink = settle_lane.sink AND d.lane = settle_lane.lane AND d.message_id = o.id
        WHERE o.id = settle_lane.failed
        ON CONFLICT (message_id, sink) DO UPDATE SET reason = excluded.reason, blocks = excluded.blocks, attempts = excluded.attempts,
          error_type = excluded.error_type, error_message = excluded.error_message, created_at = excluded.created_at
        RETURNING CASE WHEN blocks THEN message_id END INTO buried;
      PERFORM pgqueue.forget_deliveries(settle_lane.sink, settle_lane.lane, ARRAY[settle_lane.failed]);
      held.failing_id := buried; held.attempts := 0; held.first_failed_at := NULL; held.failed_at := NULL;
      held.blocked_at := CASE WHEN buried IS NOT NULL THEN moment END;
      held.error_type := settle_lane.error_type; held.error_message := settle_lane.error_message;
    ELSE
      held.failing_id := settle_lane.failed; held.attempts := tries; held.first_failed_at := coalesce(held.first_failed_at, moment);
      held.failed_at := moment; held.error_type := settle_lane.error_type; held.error_message := settle_lane.error_message;
    END IF;
  END IF;
  IF held.blocked_at IS NULL AND NOT EXISTS (SELECT FROM pgqueue.outbox_deliveries d WHERE d.sink = held.sink AND d.lane = held.lane) THEN
    DELETE FROM pgqueue.outbox_lanes l WHERE l.sink = held.sink AND l.lane = held.lane;
    RETURN true;
  END IF;
  UPDATE pgqueue.outbox_lanes l SET failing_id = held.failing_id, attempts = held.attempts, first_failed_at = held.first_failed_at,
      failed_at = held.failed_at, blocked_at = held.blocked_at, error_type = held.error_type, error_message = held.error_message,
      claim_id = CASE WHEN settle_lane.keep_s IS NOT NULL THEN l.claim_id END, relay_id = CASE WHEN settle_lane.keep_s IS NOT NULL THEN l.relay_id END,
      due_at = moment + make_interval(secs => coalesce(settle_lane.keep_s, CASE settle_lane.fate WHEN 'retry' THEN settle_lane.delay_s ELSE 0 END))
    WHERE l.sink = held.sink AND l.lane = held.lane;
  RETURN true;
END $$;
COMMENT ON FUNCTION pgqueue.settle_lane IS 'What became of the messages that a relay took from a line; false if the line is no longer its own';

-- Under the router's lock: a message is either routed by the old subscriptions, or parked before this looks.
CREATE FUNCTION pgqueue.put_subscriptions(defined_in text, wanted jsonb, prune boolean DEFAULT true)
RETURNS TABLE (pattern text, sink text, change text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
  IF NOT EXISTS (
      SELECT w.sink, w.pattern FROM jsonb_to_recordset(wanted) AS w (pattern text, sink text, task text)
      EXCEPT SELECT s.sink, s.pattern FROM pgqueue.outbox_subscriptions s WHERE s.defined_in = put_subscriptions.defined_in)
    AND NOT EXISTS (
      SELECT s.sink, s.pattern FROM pgqueue.outbox_subscriptions s WHERE s.defined_in = put_subscriptions.defined_in AND put_subscriptions.prune
      EXCEPT SELECT w.sink, w.pattern FROM jsonb_to_recordset(wanted) AS w (pattern text, sink text, task text)) THEN
    RETURN;
  END IF;
  PERFORM pg_advisory_xact_lock(hashtextextended('pgqueue outbox router', 0));
  RETURN QUERY
  WITH made AS (
    INSERT INTO pgqueue.outbox_subscriptions AS s (pattern, sink, task, defined_in)
      SELECT DISTINCT w.pattern, w.sink, w.task, put_subscriptions.defined_in
      FROM jsonb_to_recordset(wanted) AS w (pattern text, sink text, task text) ORDER BY 1, 2
      ON CONFLICT DO NOTHING RETURNING s.pattern, s.sink
  ), gone AS (
    DELETE FROM pgqueue.outbox_subscriptions s WHERE s.defined_in = put_subscriptions.defined_in AND put_subscriptions.prune
      AND NOT EXISTS (SELECT FROM jsonb_to_recordset(wanted) AS w (pattern text, sink text) WHERE w.pattern = s.pattern AND w.sink = s.sink)
      RETURNING s.pattern, s.sink
  )
  SELECT m.pattern, m.sink, 'subscribed' FROM made m UNION ALL SELECT g.pattern, g.sink, 'unsubscribed' FROM gone g;
  UPDATE pgqueue.outbox o SET state = 'new' WHERE o.state = 'parked'
    AND EXISTS (SELECT FROM pgqueue.outbox_subscriptions s WHERE pgqueue.topic_matches(o.topic, s.pattern));
END $$;
COMMENT ON FUNCTION pgqueue.put_subscriptions IS 'Makes the subscriptions of one application what its code says, and brings parked messages back that somebody wants now';

CREATE FUNCTION pgqueue.subscribe(pattern text, task text, reason text DEFAULT NULL, actor text DEFAULT NULL, via text DEFAULT NULL)
RETURNS boolean LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  made boolean;
BEGIN
  SELECT bool_or(true) INTO made FROM pgqueue.put_subscriptions('',
    jsonb_build_array(jsonb_build_object('pattern', subscribe.pattern, 'sink', 'task:' || subscribe.task, 'task', subscribe.task)), false);
  IF made THEN
    PERFORM pgqueue.note_operation(subscribe.actor, subscribe.via, 'subscribe', 'topic ' || subscribe.pattern, subscribe.reason,
      detail => jsonb_build_object('task', subscribe.task));
  END IF;
  RETURN coalesce(made, false);
END $$;
COMMENT ON FUNCTION pgqueue.subscribe IS 'Lets messages of a topic, or of ride.*, become jobs of a task; false if they did already';

CREATE FUNCTION pgqueue.unsubscribe(pattern text, task text, reason text DEFAULT NULL, actor text DEFAULT NULL, via text DEFAULT NULL)
RETURNS boolean LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
  DELETE FROM pgqueue.outbox_subscriptions s WHERE s.pattern = unsubscribe.pattern AND s.sink = 'task:' || unsubscribe.task AND s.defined_in = '';
  IF NOT FOUND THEN
    RETURN false;
  END IF;
  PERFORM pgqueue.note_operation(unsubscribe.actor, unsubscribe.via, 'unsubscribe', 'topic ' || unsubscribe.pattern, unsubscribe.reason,
    detail => jsonb_build_object('task', unsubscribe.task));
  RETURN true;
END $$;
COMMENT ON FUNCTION pgqueue.unsubscribe IS 'Takes back what subscribe said; false if it said no such thing';

CREATE FUNCTION pgqueue.replay_message(message_id bigint, sink text DEFAULT NULL, reason text DEFAULT NULL, actor text DEFAULT NULL, via text DEFAULT NULL)
RETURNS text LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  letter pgqueue.outbox_dead_letters;
  line text;
  verdict text := 'unknown';
BEGIN
  FOR letter IN SELECT * FROM pgqueue.outbox_dead_letters d WHERE d.message_id = replay_message.message_id
      AND (replay_message.sink IS NULL OR d.sink = replay_message.sink) ORDER BY d.sink FOR UPDATE LOOP
    line := pgqueue.outbox_lane(letter.key, letter.message_id);
    IF starts_with(letter.sink, 'task:') THEN
      PERFORM pgqueue.put_job(task => substr(letter.sink, 6), args => letter.payload, parent_id => letter.job_id, checked => true,
        headers => coalesce(letter.headers, '{}') || jsonb_strip_nulls(jsonb_build_object('pgqueue.message_id', letter.message_id::text,
          'pgqueue.message_uid', letter.uid, 'pgqueue.topic', letter.topic, 'pgqueue.message_key', letter.key)));
    ELSE
      -- The line first, as everybody; then the message, which may have left.
      INSERT INTO pgqueue.outbox_lanes AS l (sink, lane, due_at) VALUES (letter.sink, line, clock_timestamp())
        ON CONFLICT (sink, lane) DO UPDATE SET
          due_at = CASE WHEN l.claim_id IS NULL THEN clock_timestamp() ELSE l.due_at END,
          blocked_at = CASE WHEN l.failing_id IS DISTINCT FROM letter.message_id THEN l.blocked_at END,
          failing_id = nullif(l.failing_id, letter.message_id);
      INSERT INTO pgqueue.outbox AS o (id, uid, emitted_at, job_id, pending, state, topic, key, payload, headers)
        VALUES (letter.message_id, letter.uid, letter.emitted_at, letter.job_id, 1, 'routed', letter.topic, letter.key, letter.payload, letter.headers)
        ON CONFLICT (id) DO UPDATE SET pending = o.pending + 1;
      INSERT INTO pgqueue.outbox_deliveries (sink, lane, message_id) VALUES (letter.sink, line, letter.message_id);
    END IF;
    DELETE FROM pgqueue.outbox_dead_letters d WHERE d.message_id = letter.message_id AND d.sink = letter.sink;
    PERFORM pgqueue.note_operation(replay_message.actor, replay_message.via, 'replay', 'message ' || letter.message_id, replay_message.reason,
      detail => jsonb_build_object('sink', letter.sink, 'topic', letter.topic, 'was', 'dead', 'attempts', letter.attempts));
    verdict := 'replayed';
  END LOOP;
  UPDATE pgqueue.outbox_lanes l SET due_at = clock_timestamp()
    WHERE l.failing_id = replay_message.message_id AND l.blocked_at IS NULL AND l.claim_id IS NULL
      AND (replay_message.sink IS NULL OR l.sink = replay_message.sink);
  IF FOUND THEN
    PERFORM pgqueue.note_operation(replay_message.actor, replay_message.via, 'replay', 'message ' || replay_message.message_id,
      replay_message.reason, detail => '{"was": "failing"}');
    verdict := 'replayed';
  END IF;
  IF verdict = 'unknown' AND EXISTS (SELECT FROM pgqueue.outbox o WHERE o.id = replay_message.message_id) THEN
    RETURN 'waiting';
  END IF;
  RETURN verdict;
END $$;
COMMENT ON FUNCTION pgqueue.replay_message IS 'Lets a message be delivered again that is a dead letter, or at once if it waits for its next try (replayed); or says waiting or unknown. Without a sink: to all of them';

CREATE FUNCTION pgqueue.skip_message(message_id bigint, sink text DEFAULT NULL, reason text DEFAULT NULL, actor text DEFAULT NULL, via text DEFAULT NULL)
RETURNS text LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  stands record;
  what jsonb;
  skipped jsonb := '[]';
BEGIN
  FOR stands IN DELETE FROM pgqueue.outbox_dead_letters d WHERE d.message_id = skip_message.message_id
      AND (skip_message.sink IS NULL OR d.sink = skip_message.sink) RETURNING d.sink, d.topic, d.key LOOP
    UPDATE pgqueue.outbox_lanes l SET blocked_at = NULL, failing_id = NULL, due_at = clock_timestamp(), error_type = NULL, error_message = NULL
      WHERE l.sink = stands.sink AND l.lane = pgqueue.outbox_lane(stands.key, skip_message.message_id) AND l.failing_id = skip_message.message_id
        AND l.blocked_at IS NOT NULL;
    skipped := skipped || jsonb_build_object('sink', stands.sink, 'topic', stands.topic, 'was', 'dead');
  END LOOP;
  FOR stands IN SELECT l.sink, l.lane, l.claim_id FROM pgqueue.outbox_lanes l WHERE (l.sink, l.lane) IN (
        SELECT d.sink, d.lane FROM pgqueue.outbox_deliveries d WHERE d.message_id = skip_message.message_id
          AND (skip_message.sink IS NULL OR d.sink = skip_message.sink))
      ORDER BY l.sink, l.lane FOR UPDATE LOOP
    PERFORM pgqueue.forget_deliveries(stands.sink, stands.lane, ARRAY[skip_message.message_id]);
    -- A relay that is at it goes on; its word about this message finds no row.
    UPDATE pgqueue.outbox_lanes l SET failing_id = NULL, attempts = 0, first_failed_at = NULL, failed_at = NULL, error_type = NULL,
        error_message = NULL, due_at = CASE WHEN l.claim_id IS NULL THEN clock_timestamp() ELSE l.due_at END
      WHERE l.sink = stands.sink AND l.lane = stands.lane AND l.failing_id = skip_message.message_id;
    skipped := skipped || jsonb_build_object('sink', stands.sink, 'was', 'waiting');
  END LOOP;
  IF skip_message.sink IS NULL THEN
    DELETE FROM pgqueue.outbox o WHERE o.id = skip_message.message_id AND o.state <> 'routed'
      RETURNING jsonb_build_object('topic', o.topic, 'was', o.state) INTO what;
    skipped := skipped || coalesce(what, '[]');
  END IF;
  IF skipped = '[]' THEN
    RETURN 'unknown';
  END IF;
  PERFORM pgqueue.note_operation(skip_message.actor, skip_message.via, 'skip', 'message ' || skip_message.message_id, skip_message.reason,
    detail => jsonb_build_object('from', skipped));
  RETURN 'skipped';
END $$;
COMMENT ON FUNCTION pgqueue.skip_message IS 'Gives a message up, as a dead letter or in its line, and lets its key go on: skipped, or unknown. Without a sink: for all of them';

CREATE VIEW pgqueue.outbox_status AS
WITH looked AS (
  SELECT o.id, o.topic, o.state, o.emitted_at FROM pgqueue.outbox o ORDER BY o.id LIMIT 100001
), waiting AS (
  SELECT l.topic, count(*) AS pending, count(*) FILTER (WHERE l.state = 'new') AS unrouted, count(*) FILTER (WHERE l.state = 'parked') AS parked,
    min(l.emitted_at) FILTER (WHERE l.state <> 'parked') AS oldest_at
  FROM looked l GROUP BY l.topic
), failing AS (
  SELECT o.topic, count(*) AS failing FROM pgqueue.outbox_lanes l JOIN pgqueue.outbox o ON o.id = l.failing_id
  WHERE l.blocked_at IS NULL AND l.failing_id IS NOT NULL GROUP BY o.topic
), dead AS (
  SELECT d.topic, count(*) AS dead, count(DISTINCT d.key) FILTER (WHERE d.blocks) AS blocked_keys
  FROM (SELECT d.topic, d.key, d.blocks FROM pgqueue.outbox_dead_letters d ORDER BY d.message_id, d.sink LIMIT 100001) d GROUP BY d.topic
)
SELECT t.topic, coalesce(w.pending, 0) AS pending, coalesce(w.unrouted, 0) AS unrouted, coalesce(w.parked, 0) AS parked,
  coalesce(f.failing, 0) AS failing, coalesce(d.blocked_keys, 0) AS blocked_keys, coalesce(d.dead, 0) AS dead, w.oldest_at,
  coalesce(greatest(0, extract(epoch FROM clock_timestamp() - w.oldest_at)), 0)::double precision AS oldest_age_s,
  (SELECT count(DISTINCT s.sink) FROM pgqueue.outbox_subscriptions s WHERE pgqueue.topic_matches(t.topic, s.pattern)) AS subscribers
FROM (SELECT w.topic FROM waiting w UNION SELECT d.topic FROM dead d UNION SELECT f.topic FROM failing f
      UNION SELECT s.pattern FROM pgqueue.outbox_subscriptions s WHERE right(s.pattern, 1) <> '*') t (topic)
LEFT JOIN waiting w ON w.topic = t.topic LEFT JOIN failing f ON f.topic = t.topic LEFT JOIN dead d ON d.topic = t.topic;
COMMENT ON VIEW pgqueue.outbox_status IS 'One row per topic: what waits, since when, what fails; looks at the oldest 100,001 messages. Parked ones, which nobody subscribes to, do not count as late';
