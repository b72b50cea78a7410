-- Upkeep: who last did which duty, the day partitions of job_history and job_transitions (UTC days), and what retention takes.

CREATE TABLE pgqueue.upkeep_duties (
  duty text PRIMARY KEY,
  next_at timestamptz,
  started_at timestamptz,
  took_s double precision,
  rounds bigint NOT NULL DEFAULT 0,
  changed bigint NOT NULL DEFAULT 0,
  failures bigint NOT NULL DEFAULT 0,
  failed_at timestamptz,
  error text,
  by_whom text
) WITH (fillfactor = 50, autovacuum_vacuum_threshold = 200, autovacuum_vacuum_scale_factor = 0.0);
COMMENT ON TABLE pgqueue.upkeep_duties IS 'One row per upkeep duty: its newest round, its newest failure, and when it is next due where one process does it for all';
COMMENT ON COLUMN pgqueue.upkeep_duties.duty IS 'promote, rescue, expiry, partitions, retention, rollups, …';
COMMENT ON COLUMN pgqueue.upkeep_duties.next_at IS 'From here on the first process that comes takes the next round; NULL where every process does it by itself';
COMMENT ON COLUMN pgqueue.upkeep_duties.started_at IS 'When the newest noted round began';
COMMENT ON COLUMN pgqueue.upkeep_duties.took_s IS 'Seconds it took; of several noted together, the longest';
COMMENT ON COLUMN pgqueue.upkeep_duties.rounds IS 'Rounds noted so far';
COMMENT ON COLUMN pgqueue.upkeep_duties.changed IS 'What they changed in all: jobs, keys, partitions, rows';
COMMENT ON COLUMN pgqueue.upkeep_duties.failures IS 'Rounds that failed';
COMMENT ON COLUMN pgqueue.upkeep_duties.failed_at IS 'When one last failed';
COMMENT ON COLUMN pgqueue.upkeep_duties.error IS 'Why, without values';
COMMENT ON COLUMN pgqueue.upkeep_duties.by_whom IS 'Who did the newest round: worker:<id>, scheduler:<id>';

CREATE TABLE pgqueue.history_sweeps (
  part text PRIMARY KEY,
  queues text[] NOT NULL,
  next_block bigint NOT NULL,
  swept_at timestamptz
);
COMMENT ON TABLE pgqueue.history_sweeps IS 'How far days were searched for rows of queues that keep their history shorter than the rest';
COMMENT ON COLUMN pgqueue.history_sweeps.part IS 'The day partition';
COMMENT ON COLUMN pgqueue.history_sweeps.queues IS 'The queues whose rows go from it';
COMMENT ON COLUMN pgqueue.history_sweeps.next_block IS 'The block of the table to go on from';
COMMENT ON COLUMN pgqueue.history_sweeps.swept_at IS 'When it was through; NULL = not yet';

-- Attached, not created in place: CREATE TABLE … PARTITION OF locks out everybody who settles a job, ATTACH does not.
-- What it does lock is the default partition, for as long as that takes to read; it is empty while days are made ahead.
CREATE FUNCTION pgqueue.ensure_partitions(ahead_days integer DEFAULT 7)
RETURNS integer LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '500ms' AS $$
DECLARE
  parent text;
  part text;
  day date;
  made integer := 0;
BEGIN
  IF ahead_days NOT BETWEEN 0 AND 60 THEN
    RAISE EXCEPTION 'ahead_days: out of range; 0 to 60' USING ERRCODE = '22023';
  END IF;
  FOREACH parent IN ARRAY ARRAY['job_history', 'job_transitions'] LOOP
    FOR i IN 0..ahead_days LOOP
      day := (clock_timestamp() AT TIME ZONE 'UTC')::date + i;
      part := parent || to_char(day, '"_"YYYYMMDD');
      CONTINUE WHEN to_regclass(format('pgqueue.%I', part)) IS NOT NULL;
      BEGIN
        EXECUTE format('CREATE TABLE pgqueue.%I (LIKE pgqueue.%I INCLUDING ALL EXCLUDING IDENTITY EXCLUDING COMMENTS)', part, parent);
        EXECUTE format('ALTER TABLE pgqueue.%I ATTACH PARTITION pgqueue.%I FOR VALUES FROM (%L) TO (%L)', parent, part,
          to_char(day, 'YYYY-MM-DD') || ' 00:00:00+00', to_char(day + 1, 'YYYY-MM-DD') || ' 00:00:00+00');
        made := made + 1;
      EXCEPTION
        -- Rows of that day already lie in the default partition, or another process was faster.
        WHEN check_violation OR duplicate_table THEN NULL;
      END;
    END LOOP;
  END LOOP;
  RETURN made;
END $$;
COMMENT ON FUNCTION pgqueue.ensure_partitions IS 'Makes the missing day partitions from today to ahead_days from now; returns how many';

-- A drop locks the whole table for a moment, and settlements queue behind it while it waits: so it waits shortly, one
-- day to a transaction. (DETACH … CONCURRENTLY does not go where a default partition is.)
CREATE FUNCTION pgqueue.drop_partition(keep_days integer)
RETURNS text LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '200ms' AS $$
DECLARE
  oldest text;
BEGIN
  IF keep_days NOT BETWEEN 1 AND 36500 THEN
    RAISE EXCEPTION 'keep_days: out of range; 1 to 36500' USING ERRCODE = '22023';
  END IF;
  SELECT c.relname INTO oldest FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    JOIN pg_class p ON p.oid = i.inhparent JOIN pg_namespace n ON n.oid = p.relnamespace
  WHERE n.nspname = 'pgqueue' AND p.relname IN ('job_history', 'job_transitions') AND c.relname ~ '_[0-9]{8}$'
    AND to_date(right(c.relname, 8), 'YYYYMMDD') < (clock_timestamp() AT TIME ZONE 'UTC')::date - keep_days
  ORDER BY right(c.relname, 8), c.relname
  LIMIT 1;
  IF oldest IS NOT NULL THEN
    EXECUTE format('DROP TABLE pgqueue.%I', oldest);
    DELETE FROM pgqueue.history_sweeps s WHERE s.part = oldest;
  END IF;
  RETURN oldest;
END $$;
COMMENT ON FUNCTION pgqueue.drop_partition IS 'Drops the oldest day partition older than keep_days and returns its name; NULL if there is none';

-- Rows by blocks of the table, since no index finds a queue's rows: one would cost every settlement. Days that are over
-- are written to no more, so one passage is enough for each set of queues.
CREATE FUNCTION pgqueue.sweep_history(blocks integer DEFAULT 2000, OUT deleted bigint, OUT looked boolean)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  today date := (clock_timestamp() AT TIME ZONE 'UTC')::date;
  day record;
  due text[];
  from_block bigint;
  pages bigint;
BEGIN
  deleted := 0;
  looked := false;
  FOR day IN
    SELECT c.oid, c.relname::text AS part, to_date(right(c.relname, 8), 'YYYYMMDD') AS date, s.queues, s.next_block, s.swept_at
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
      JOIN pg_class p ON p.oid = i.inhparent JOIN pg_namespace n ON n.oid = p.relnamespace
      LEFT JOIN pgqueue.history_sweeps s ON s.part = c.relname
    WHERE n.nspname = 'pgqueue' AND p.relname IN ('job_history', 'job_transitions') AND c.relname ~ '_[0-9]{8}$'
      AND to_date(right(c.relname, 8), 'YYYYMMDD') < today - 1
      -- What is not counted yet stays until it is.
      AND to_date(right(c.relname, 8), 'YYYYMMDD') + 1 <= (SELECT u.done_upto AT TIME ZONE 'UTC' FROM pgqueue.stats_progress u WHERE u.what = 'recount')
    ORDER BY 3, 2
  LOOP
    SELECT coalesce(array_agg(q.name ORDER BY q.name), '{}') INTO due FROM pgqueue.queues q WHERE q.history_days < today - day.date;
    CONTINUE WHEN due = '{}' OR (due <@ day.queues AND day.swept_at IS NOT NULL);
    from_block := CASE WHEN day.queues = due THEN day.next_block ELSE 0 END;
    EXECUTE format('DELETE FROM pgqueue.%I r WHERE r.ctid >= $1 AND r.ctid < $2 AND r.queue = ANY ($3)', day.part)
      USING format('(%s,0)', from_block)::tid, format('(%s,0)', from_block + sweep_history.blocks)::tid, due;
    GET DIAGNOSTICS deleted = ROW_COUNT;
    looked := true;
    pages := pg_relation_size(day.oid) / current_setting('block_size')::bigint;
    INSERT INTO pgqueue.history_sweeps AS s (part, queues, next_block, swept_at)
      VALUES (day.part, due, from_block + sweep_history.blocks, CASE WHEN from_block + sweep_history.blocks >= pages THEN clock_timestamp() END)
      ON CONFLICT (part) DO UPDATE SET queues = excluded.queues, next_block = excluded.next_block, swept_at = excluded.swept_at;
    RETURN;
  END LOOP;
END $$;
COMMENT ON FUNCTION pgqueue.sweep_history IS 'Deletes rows of queues that keep their history shorter (queues.history_days) from so many blocks of one day; looked = false when no day is left to search';

CREATE FUNCTION pgqueue.prune_default_partitions(keep_days integer, batch integer)
RETURNS bigint LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  oldest timestamptz := date_trunc('day', clock_timestamp(), 'UTC') - make_interval(days => keep_days);
  ended bigint;
  noted bigint;
BEGIN
  IF keep_days NOT BETWEEN 1 AND 36500 THEN
    RAISE EXCEPTION 'keep_days: out of range; 1 to 36500' USING ERRCODE = '22023';
  END IF;
  DELETE FROM pgqueue.job_history_default h
    WHERE h.ctid = ANY (ARRAY(SELECT o.ctid FROM pgqueue.job_history_default o WHERE o.finished_at < oldest LIMIT batch));
  GET DIAGNOSTICS ended = ROW_COUNT;
  DELETE FROM pgqueue.job_transitions_default t
    WHERE t.ctid = ANY (ARRAY(SELECT o.ctid FROM pgqueue.job_transitions_default o WHERE o.at < oldest LIMIT batch));
  GET DIAGNOSTICS noted = ROW_COUNT;
  RETURN ended + noted;
END $$;
COMMENT ON FUNCTION pgqueue.prune_default_partitions IS 'Deletes up to so many rows of each default partition, where those lie that found no day, when their time is over';

CREATE FUNCTION pgqueue.prune_redriven(keep_days integer, batch integer)
RETURNS bigint LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  pruned bigint;
BEGIN
  IF keep_days NOT BETWEEN 1 AND 36500 THEN
    RAISE EXCEPTION 'keep_days: out of range; 1 to 36500' USING ERRCODE = '22023';
  END IF;
  WITH old AS MATERIALIZED (
    SELECT d.job_id FROM pgqueue.dead_letter_jobs d
    WHERE d.redriven_at IS NOT NULL AND d.redriven_at < (SELECT clock_timestamp() - make_interval(days => keep_days))
    ORDER BY d.redriven_at
    LIMIT batch
    FOR UPDATE SKIP LOCKED
  )
  DELETE FROM pgqueue.dead_letter_jobs d USING old o WHERE d.job_id = o.job_id;
  GET DIAGNOSTICS pruned = ROW_COUNT;
  RETURN pruned;
END $$;
COMMENT ON FUNCTION pgqueue.prune_redriven IS 'Deletes up to so many dead letters that were redriven longer ago: another job went on with their work; returns how many';

CREATE FUNCTION pgqueue.discard_old_letters(keep_days integer, batch integer, actor text)
RETURNS bigint LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  discarded bigint;
BEGIN
  IF keep_days NOT BETWEEN 1 AND 36500 THEN
    RAISE EXCEPTION 'keep_days: out of range; 1 to 36500' USING ERRCODE = '22023';
  END IF;
  -- Decided under the row's lock: a letter that somebody redrives at this moment stays.
  WITH old AS MATERIALIZED (
    SELECT d.job_id FROM pgqueue.dead_letter_jobs d
    WHERE d.redriven_as IS NULL AND d.created_at < (SELECT clock_timestamp() - make_interval(days => keep_days))
    ORDER BY d.created_at
    LIMIT batch
    FOR UPDATE SKIP LOCKED
  )
  SELECT count(*) FILTER (WHERE pgqueue.discard(o.job_id, 'dead-letter retention', discard_old_letters.actor, 'upkeep')) INTO discarded FROM old o;
  RETURN discarded;
END $$;
COMMENT ON FUNCTION pgqueue.discard_old_letters IS 'Discards up to so many dead letters that nobody decided about for keep_days, each with its audit rows; returns how many';

-- What is not summarized is read whole. Waits for nobody: vacuum does the same, and what holds the lock may be it.
CREATE FUNCTION pgqueue.summarize_days()
RETURNS integer LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '50ms' AS $$
DECLARE
  part record;
  ranges integer := 0;
BEGIN
  FOR part IN
    SELECT x.oid FROM pg_inherits i JOIN pg_class x ON x.oid = i.inhrelid JOIN pg_index d ON d.indexrelid = x.oid
      JOIN pg_class c ON c.oid = d.indrelid
    WHERE i.inhparent IN ('pgqueue.job_history_finished_at_idx'::regclass, 'pgqueue.job_transitions_at_idx'::regclass)
      AND right(c.relname, 8) IN (to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYYMMDD'),
        to_char(clock_timestamp() AT TIME ZONE 'UTC' - interval '1 hour', 'YYYYMMDD'))
  LOOP
    BEGIN
      ranges := ranges + brin_summarize_new_values(part.oid::regclass);
    EXCEPTION
      WHEN lock_not_available THEN NULL;
    END;
  END LOOP;
  RETURN ranges;
END $$;
COMMENT ON FUNCTION pgqueue.summarize_days IS 'Notes for the newest blocks of today''s history which times they hold, so that a minute is found without reading the day';

CREATE FUNCTION pgqueue.keep_history(queue text, days integer, reason text DEFAULT NULL, actor text DEFAULT NULL, via text DEFAULT NULL)
RETURNS boolean LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
  IF days NOT BETWEEN 1 AND 36500 THEN
    RAISE EXCEPTION 'days: out of range; 1 to 36500, or NULL for the setting of all' USING ERRCODE = '22023';
  END IF;
  UPDATE pgqueue.queues q SET history_days = days WHERE q.name = keep_history.queue;
  IF NOT FOUND THEN
    RETURN false;
  END IF;
  PERFORM pgqueue.note_operation(keep_history.actor, keep_history.via, 'keep_history', 'queue ' || keep_history.queue, keep_history.reason,
    detail => jsonb_build_object('history_days', days));
  RETURN true;
END $$;
COMMENT ON FUNCTION pgqueue.keep_history IS 'Sets how many days a queue keeps its history when that is shorter than for all, NULL = as all; false if the queue is not known';

CREATE VIEW pgqueue.upkeep_status AS
SELECT u.duty, u.started_at, u.took_s, u.rounds, u.changed, u.by_whom, u.next_at,
  greatest(0, extract(epoch FROM clock_timestamp() - u.next_at))::double precision AS overdue_s,
  coalesce(u.failed_at > u.started_at, u.failed_at IS NOT NULL) AS failing, u.failures, u.failed_at, u.error
FROM pgqueue.upkeep_duties u;
COMMENT ON VIEW pgqueue.upkeep_status IS 'The duties of upkeep: when each was last done and by whom, how late it is, whether its newest round failed';

SELECT pgqueue.ensure_partitions(7);
