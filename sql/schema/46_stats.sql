-- Rollups: how many attempts ended, how long they had waited and run, by minute, hour and day, counted from history by upkeep.
-- Nothing on the way of a job writes here. Durations are kept as counts in 26 buckets, bounds 1 ms × 2^k: [0] below 1 ms,
-- [k] from 2^(k-1) ms up to 2^k ms, [25] from 4.7 hours on.

CREATE TABLE pgqueue.stats_minutely (
  grain_s integer NOT NULL,
  bucket_at timestamptz NOT NULL,
  series text NOT NULL,
  queue text NOT NULL,
  task text NOT NULL,
  outcome text NOT NULL,
  n bigint NOT NULL,
  wait_n integer[],
  run_n integer[],
  wait_sum_s double precision,
  run_sum_s double precision,
  wait_max_s real,
  run_max_s real,
  wait_met bigint,
  run_met bigint,
  due real,
  due_max integer,
  lag_s real,
  lag_max_s real,
  scheduled real,
  held real,
  running real,
  slots real,
  PRIMARY KEY (grain_s, bucket_at, series, queue, task, outcome),
  CONSTRAINT stats_minutely_grain_check CHECK (grain_s IN (60, 3600, 86400)),
  CONSTRAINT stats_minutely_series_check CHECK (series IN ('work', 'queue')),
  CONSTRAINT stats_minutely_buckets_check CHECK (cardinality(wait_n) = 26 AND cardinality(run_n) = 26)
);
CREATE INDEX stats_minutely_task_idx ON pgqueue.stats_minutely (grain_s, series, queue, task, bucket_at);

COMMENT ON TABLE pgqueue.stats_minutely IS 'Rollups: minutes are kept 48 hours, hours 90 days, days 2 years';
COMMENT ON COLUMN pgqueue.stats_minutely.grain_s IS 'Length of the bucket: 60, 3600 or 86400 seconds';
COMMENT ON COLUMN pgqueue.stats_minutely.bucket_at IS 'Its begin, in UTC minutes, hours, days';
COMMENT ON COLUMN pgqueue.stats_minutely.series IS 'work = attempts that ended in it; queue = samples of a queue''s depth and lag';
COMMENT ON COLUMN pgqueue.stats_minutely.queue IS 'Queue name';
COMMENT ON COLUMN pgqueue.stats_minutely.task IS 'Task name; empty in series queue';
COMMENT ON COLUMN pgqueue.stats_minutely.outcome IS 'succeeded, retry, dead, cancelled, snoozed, released, rescued or held; empty in series queue';
COMMENT ON COLUMN pgqueue.stats_minutely.n IS 'Attempts that ended so, with jobs that ended before any; samples taken, in series queue';
COMMENT ON COLUMN pgqueue.stats_minutely.wait_n IS 'How many of them had waited so long, by bucket';
COMMENT ON COLUMN pgqueue.stats_minutely.run_n IS 'How many of them had run so long, by bucket';
COMMENT ON COLUMN pgqueue.stats_minutely.wait_sum_s IS 'Seconds they had waited, together';
COMMENT ON COLUMN pgqueue.stats_minutely.run_sum_s IS 'Seconds they had run, together';
COMMENT ON COLUMN pgqueue.stats_minutely.wait_max_s IS 'The longest wait, exactly';
COMMENT ON COLUMN pgqueue.stats_minutely.run_max_s IS 'The longest run, exactly';
COMMENT ON COLUMN pgqueue.stats_minutely.wait_met IS 'How many waited no longer than their queue''s sla_s at the time of counting; NULL where it has none';
COMMENT ON COLUMN pgqueue.stats_minutely.run_met IS 'How many succeeded within their queue''s run_objective_s; NULL where it has none';
COMMENT ON COLUMN pgqueue.stats_minutely.due IS 'Series queue: jobs due, on average over the samples; a count ends at 10,001';
COMMENT ON COLUMN pgqueue.stats_minutely.due_max IS 'Series queue: the most jobs due in a sample';
COMMENT ON COLUMN pgqueue.stats_minutely.lag_s IS 'Series queue: age of the oldest due job, on average';
COMMENT ON COLUMN pgqueue.stats_minutely.lag_max_s IS 'Series queue: the highest such age';
COMMENT ON COLUMN pgqueue.stats_minutely.scheduled IS 'Series queue: jobs that waited for their time, on average';
COMMENT ON COLUMN pgqueue.stats_minutely.held IS 'Series queue: jobs held, on average';
COMMENT ON COLUMN pgqueue.stats_minutely.running IS 'Series queue: jobs running, on average';
COMMENT ON COLUMN pgqueue.stats_minutely.slots IS 'Series queue: handlers that could run at once, on average';

CREATE TABLE pgqueue.stats_progress (
  what text PRIMARY KEY,
  done_upto timestamptz
);
COMMENT ON TABLE pgqueue.stats_progress IS 'How far along time the rollups have come';
COMMENT ON COLUMN pgqueue.stats_progress.what IS 'rollups: each minute once, soon after its end; recount: each day once more, after its end';
COMMENT ON COLUMN pgqueue.stats_progress.done_upto IS 'Everything before this moment is counted';
INSERT INTO pgqueue.stats_progress (what) VALUES ('rollups'), ('recount');

CREATE FUNCTION pgqueue.bucket_bounds()
RETURNS double precision[] LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
  SELECT array_agg(0.001 * 2.0::double precision ^ k ORDER BY k) FROM generate_series(0, 24) AS k;
$$;
COMMENT ON FUNCTION pgqueue.bucket_bounds IS 'The 25 bounds between the 26 buckets of stats_minutely, in seconds: width_bucket(seconds, bounds) is a bucket''s number from 0';

CREATE FUNCTION pgqueue.bucket_percentile(counts bigint[], q double precision, max_s double precision DEFAULT NULL)
RETURNS double precision LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
  -- Geometrically inside the bucket, whose top is the maximum where that lies in it; the first bucket has no ratio.
  SELECT least(max_s, CASE b.slot WHEN 0 THEN 0.001 * b.share ELSE b.low * (b.top / b.low) ^ b.share END)
  FROM (
    SELECT c.slot, c.low, CASE WHEN c.slot = 25 THEN greatest(max_s, c.low) ELSE greatest(c.low, least(max_s, 2 * c.low)) END AS top,
      greatest(0, (q * c.total - (c.upto - c.n)) / c.n) AS share
    FROM (
      SELECT 0.001 * 2.0::double precision ^ (u.place - 2) AS low, u.place - 1 AS slot, u.n::double precision AS n, (sum(u.n) OVER (ORDER BY u.place))::double precision AS upto,
        (sum(u.n) OVER ())::double precision AS total
      FROM unnest(counts) WITH ORDINALITY AS u (n, place)
    ) c
    WHERE c.n > 0 AND c.upto >= q * c.total
    ORDER BY c.slot
    LIMIT 1
  ) b
  WHERE q BETWEEN 0 AND 1;
$$;
COMMENT ON FUNCTION pgqueue.bucket_percentile IS 'About the q-th quantile (0.5, 0.95, …) in seconds of durations counted by bucket, interpolated geometrically and never above max_s; NULL when nothing was counted';

CREATE FUNCTION pgqueue.count_attempts(since timestamptz, until timestamptz)
RETURNS TABLE (bucket_at timestamptz, queue text, task text, outcome text, n bigint, wait_n integer[], run_n integer[],
  wait_sum_s double precision, run_sum_s double precision, wait_max_s real, run_max_s real, wait_met bigint, run_met bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  WITH ended AS (
    SELECT date_bin('1 minute', h.finished_at, '2000-01-01 00:00:00+00') AS bucket_at, h.queue, h.task, 'succeeded' AS outcome, h.wait_s, h.run_s
    FROM pgqueue.job_history h
    WHERE h.finished_at >= count_attempts.since AND h.finished_at < count_attempts.until AND h.state = 'succeeded'
    UNION ALL
    SELECT date_bin('1 minute', t.at, '2000-01-01 00:00:00+00'), t.queue, t.task,
      CASE WHEN t.to_state IN ('dead', 'cancelled') THEN t.to_state WHEN t.to_state = 'ready' THEN 'released'
        WHEN t.reason IN ('rescued', 'snoozed') THEN t.reason WHEN t.to_state = 'scheduled' THEN 'retry' ELSE 'held' END,
      t.wait_s, t.run_s
    FROM pgqueue.job_transitions t
    WHERE t.at >= count_attempts.since AND t.at < count_attempts.until
      -- What ends an attempt, or a job that never had one; not what becomes of a dead letter later.
      -- A success is told by job_history; an audit in full repeats it.
      AND (t.from_state = 'running' AND t.to_state <> 'succeeded' OR (t.to_state IN ('dead', 'cancelled') AND t.from_state <> 'dead'))
  ), cells AS MATERIALIZED (
    SELECT e.bucket_at, e.queue, e.task, e.outcome, width_bucket(e.wait_s::double precision, pgqueue.bucket_bounds()) AS wait_slot,
      width_bucket(e.run_s::double precision, pgqueue.bucket_bounds()) AS run_slot, count(*) AS n,
      sum(e.wait_s::double precision) AS wait_sum_s, sum(e.run_s::double precision) AS run_sum_s, max(e.wait_s) AS wait_max_s,
      max(e.run_s) AS run_max_s, max(o.sla_s) AS sla_s, max(o.run_objective_s) AS run_objective_s,
      count(*) FILTER (WHERE e.wait_s <= o.sla_s) AS wait_met,
      count(*) FILTER (WHERE e.run_s <= o.run_objective_s AND e.outcome = 'succeeded') AS run_met
    FROM ended e
    LEFT JOIN (SELECT q.name, coalesce(q.sla_s, (q.defaults ->> 'sla_s')::double precision) AS sla_s,
        coalesce(q.run_objective_s, (q.defaults ->> 'run_objective_s')::double precision) AS run_objective_s
      FROM pgqueue.queues q) o ON o.name = e.queue
    GROUP BY 1, 2, 3, 4, 5, 6
  )
  SELECT c.bucket_at, c.queue, c.task, c.outcome, sum(c.n)::bigint,
    ARRAY[coalesce(sum(c.n) FILTER (WHERE c.wait_slot = 0), 0), coalesce(sum(c.n) FILTER (WHERE c.wait_slot = 1), 0),
      coalesce(sum(c.n) FILTER (WHERE c.wait_slot = 2), 0), coalesce(sum(c.n) FILTER (WHERE c.wait_slot = 3), 0),
      coalesce(sum(c.n) FILTER (WHERE c.wait_slot = 4), 0), coalesce(sum(c.n) FILTER (WHERE c.wait_slot = 5), 0),
      coalesce(sum(c.n) FILTER (WHERE c.wait_slot = 6), 0), coalesce(sum(c.n) FILTER (WHERE c.wait_slot = 7), 0),
      coalesce(sum(c.n) FILTER (WHERE c.wait_slot = 8), 0), coalesce(sum(c.n) FILTER (WHERE c.wait_slot = 9), 0),
      coalesce(sum(c.n) FILTER (WHERE c.wait_slot = 10), 0), coalesce(sum(c.n) FILTER (WHERE c.wait_slot = 11), 0),
      coalesce(sum(c.n) FILTER (WHERE c.wait_slot = 12), 0), coalesce(sum(c.n) FILTER (WHERE c.wait_slot = 13), 0),
      coalesce(sum(c.n) FILTER (WHERE c.wait_slot = 14), 0), coalesce(sum(c.n) FILTER (WHERE c.wait_slot = 15), 0),
      coalesce(sum(c.n) FILTER (WHERE c.wait_slot = 16), 0), coalesce(sum(c.n) FILTER (WHERE c.wait_slot = 17), 0),
      coalesce(sum(c.n) FILTER (WHERE c.wait_slot = 18), 0), coalesce(sum(c.n) FILTER (WHERE c.wait_slot = 19), 0),
      coalesce(sum(c.n) FILTER (WHERE c.wait_slot = 20), 0), coalesce(sum(c.n) FILTER (WHERE c.wait_slot = 21), 0),
      coalesce(sum(c.n) FILTER (WHERE c.wait_slot = 22), 0), coalesce(sum(c.n) FILTER (WHERE c.wait_slot = 23), 0),
      coalesce(sum(c.n) FILTER (WHERE c.wait_slot = 24), 0), coalesce(sum(c.n) FILTER (WHERE c.wait_slot = 25), 0)]::integer[],
    ARRAY[coalesce(sum(c.n) FILTER (WHERE c.run_slot = 0), 0), coalesce(sum(c.n) FILTER (WHERE c.run_slot = 1), 0),
      coalesce(sum(c.n) FILTER (WHERE c.run_slot = 2), 0), coalesce(sum(c.n) FILTER (WHERE c.run_slot = 3), 0),
      coalesce(sum(c.n) FILTER (WHERE c.run_slot = 4), 0), coalesce(sum(c.n) FILTER (WHERE c.run_slot = 5), 0),
      coalesce(sum(c.n) FILTER (WHERE c.run_slot = 6), 0), coalesce(sum(c.n) FILTER (WHERE c.run_slot = 7), 0),
      coalesce(sum(c.n) FILTER (WHERE c.run_slot = 8), 0), coalesce(sum(c.n) FILTER (WHERE c.run_slot = 9), 0),
      coalesce(sum(c.n) FILTER (WHERE c.run_slot = 10), 0), coalesce(sum(c.n) FILTER (WHERE c.run_slot = 11), 0),
      coalesce(sum(c.n) FILTER (WHERE c.run_slot = 12), 0), coalesce(sum(c.n) FILTER (WHERE c.run_slot = 13), 0),
      coalesce(sum(c.n) FILTER (WHERE c.run_slot = 14), 0), coalesce(sum(c.n) FILTER (WHERE c.run_slot = 15), 0),
      coalesce(sum(c.n) FILTER (WHERE c.run_slot = 16), 0), coalesce(sum(c.n) FILTER (WHERE c.run_slot = 17), 0),
      coalesce(sum(c.n) FILTER (WHERE c.run_slot = 18), 0), coalesce(sum(c.n) FILTER (WHERE c.run_slot = 19), 0),
      coalesce(sum(c.n) FILTER (WHERE c.run_slot = 20), 0), coalesce(sum(c.n) FILTER (WHERE c.run_slot = 21), 0),
      coalesce(sum(c.n) FILTER (WHERE c.run_slot = 22), 0), coalesce(sum(c.n) FILTER (WHERE c.run_slot = 23), 0),
      coalesce(sum(c.n) FILTER (WHERE c.run_slot = 24), 0), coalesce(sum(c.n) FILTER (WHERE c.run_slot = 25), 0)]::integer[],
    sum(c.wait_sum_s), sum(c.run_sum_s), max(c.wait_max_s), max(c.run_max_s),
    CASE WHEN max(c.sla_s) IS NOT NULL THEN sum(c.wait_met)::bigint END,
    CASE WHEN max(c.run_objective_s) IS NOT NULL THEN sum(c.run_met)::bigint END
  FROM cells c
  GROUP BY c.bucket_at, c.queue, c.task, c.outcome;
$$;
COMMENT ON FUNCTION pgqueue.count_attempts IS 'Counts the attempts that ended in a span of time from job_history and job_transitions, by minute, queue, task and outcome';

CREATE FUNCTION pgqueue.count_minutes(since timestamptz, until timestamptz)
RETURNS bigint LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  written bigint;
BEGIN
  INSERT INTO pgqueue.stats_minutely AS s (grain_s, bucket_at, series, queue, task, outcome, n, wait_n, run_n, wait_sum_s, run_sum_s,
      wait_max_s, run_max_s, wait_met, run_met)
    SELECT 60, c.bucket_at, 'work', c.queue, c.task, c.outcome, c.n, c.wait_n, c.run_n, c.wait_sum_s, c.run_sum_s, c.wait_max_s, c.run_max_s,
      c.wait_met, c.run_met
    FROM pgqueue.count_attempts(count_minutes.since, count_minutes.until) c
    ORDER BY c.bucket_at, c.queue, c.task, c.outcome
  ON CONFLICT (grain_s, bucket_at, series, queue, task, outcome) DO UPDATE SET n = excluded.n, wait_n = excluded.wait_n,
    run_n = excluded.run_n, wait_sum_s = excluded.wait_sum_s, run_sum_s = excluded.run_sum_s, wait_max_s = excluded.wait_max_s,
    run_max_s = excluded.run_max_s, wait_met = excluded.wait_met, run_met = excluded.run_met
    -- Sums of the same rows may differ in their last digits, the counts not.
    WHERE (s.n, s.wait_n, s.run_n) IS DISTINCT FROM (excluded.n, excluded.wait_n, excluded.run_n);
  GET DIAGNOSTICS written = ROW_COUNT;
  RETURN written;
END $$;
COMMENT ON FUNCTION pgqueue.count_minutes IS 'Counts the minutes of a span of time and writes them down; returns how many rows of stats_minutely are new or were wrong';

CREATE FUNCTION pgqueue.merge_minutes(since timestamptz, until timestamptz)
RETURNS bigint LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  coarse record;
  written bigint;
  total bigint := 0;
BEGIN
  FOR coarse IN SELECT * FROM (VALUES (60, 3600, interval '1 hour'), (3600, 86400, interval '1 day')) AS v (from_s, grain_s, width) LOOP
    INSERT INTO pgqueue.stats_minutely AS t (grain_s, bucket_at, series, queue, task, outcome, n, wait_n, run_n, wait_sum_s, run_sum_s,
        wait_max_s, run_max_s, wait_met, run_met, due, due_max, lag_s, lag_max_s, scheduled, held, running, slots)
      SELECT coarse.grain_s, date_bin(coarse.width, s.bucket_at, '2000-01-01 00:00:00+00') AS bucket, s.series, s.queue, s.task, s.outcome, sum(s.n),
        CASE WHEN s.series = 'work' THEN ARRAY[sum(s.wait_n[1]), sum(s.wait_n[2]), sum(s.wait_n[3]), sum(s.wait_n[4]), sum(s.wait_n[5]), sum(s.wait_n[6]), sum(s.wait_n[7]), sum(s.wait_n[8]),
          sum(s.wait_n[9]), sum(s.wait_n[10]), sum(s.wait_n[11]), sum(s.wait_n[12]), sum(s.wait_n[13]), sum(s.wait_n[14]), sum(s.wait_n[15]), sum(s.wait_n[16]),
          sum(s.wait_n[17]), sum(s.wait_n[18]), sum(s.wait_n[19]), sum(s.wait_n[20]), sum(s.wait_n[21]), sum(s.wait_n[22]), sum(s.wait_n[23]), sum(s.wait_n[24]),
          sum(s.wait_n[25]), sum(s.wait_n[26])]::integer[] END,
        CASE WHEN s.series = 'work' THEN ARRAY[sum(s.run_n[1]), sum(s.run_n[2]), sum(s.run_n[3]), sum(s.run_n[4]), sum(s.run_n[5]), sum(s.run_n[6]), sum(s.run_n[7]), sum(s.run_n[8]),
          sum(s.run_n[9]), sum(s.run_n[10]), sum(s.run_n[11]), sum(s.run_n[12]), sum(s.run_n[13]), sum(s.run_n[14]), sum(s.run_n[15]), sum(s.run_n[16]),
          sum(s.run_n[17]), sum(s.run_n[18]), sum(s.run_n[19]), sum(s.run_n[20]), sum(s.run_n[21]), sum(s.run_n[22]), sum(s.run_n[23]), sum(s.run_n[24]),
          sum(s.run_n[25]), sum(s.run_n[26])]::integer[] END,
        sum(s.wait_sum_s), sum(s.run_sum_s), max(s.wait_max_s), max(s.run_max_s), sum(s.wait_met), sum(s.run_met),
        sum(s.due * s.n) / sum(s.n), max(s.due_max), sum(s.lag_s * s.n) / sum(s.n), max(s.lag_max_s), sum(s.scheduled * s.n) / sum(s.n),
        sum(s.held * s.n) / sum(s.n), sum(s.running * s.n) / sum(s.n), sum(s.slots * s.n) / sum(s.n)
      FROM pgqueue.stats_minutely s
      WHERE s.grain_s = coarse.from_s AND s.bucket_at >= date_bin(coarse.width, merge_minutes.since, '2000-01-01 00:00:00+00')
        AND s.bucket_at < date_bin(coarse.width, merge_minutes.until, '2000-01-01 00:00:00+00')
      GROUP BY bucket, s.series, s.queue, s.task, s.outcome
      ORDER BY bucket, s.series, s.queue, s.task, s.outcome
    ON CONFLICT (grain_s, bucket_at, series, queue, task, outcome) DO UPDATE SET n = excluded.n, wait_n = excluded.wait_n,
      run_n = excluded.run_n, wait_sum_s = excluded.wait_sum_s, run_sum_s = excluded.run_sum_s, wait_max_s = excluded.wait_max_s,
      run_max_s = excluded.run_max_s, wait_met = excluded.wait_met, run_met = excluded.run_met, due = excluded.due, due_max = excluded.due_max,
      lag_s = excluded.lag_s, lag_max_s = excluded.lag_max_s, scheduled = excluded.scheduled, held = excluded.held,
      running = excluded.running, slots = excluded.slots
      WHERE (t.n, t.wait_n, t.run_n) IS DISTINCT FROM (excluded.n, excluded.wait_n, excluded.run_n);
    GET DIAGNOSTICS written = ROW_COUNT;
    total := total + written;
  END LOOP;
  RETURN total;
END $$;
COMMENT ON FUNCTION pgqueue.merge_minutes IS 'Makes the hours and days that end in a span of time from its minutes; returns how many rows are new or were wrong';

CREATE FUNCTION pgqueue.roll_up(minutes_max integer DEFAULT 60, OUT written bigint, OUT behind boolean)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  since timestamptz;
  upto timestamptz;
  -- A settlement's time is taken a moment before its commit: 15 s let the last of a minute arrive.
  closed timestamptz := date_bin('1 minute', clock_timestamp() - interval '15 seconds', '2000-01-01 00:00:00+00');
BEGIN
  written := 0;
  behind := false;
  SELECT p.done_upto INTO since FROM pgqueue.stats_progress p WHERE p.what = 'rollups' FOR UPDATE SKIP LOCKED;
  IF NOT FOUND THEN
    RETURN;
  END IF;
  -- Nothing was counted yet; or the clock was put back, and its minutes come once more: each is counted whole again.
  IF since IS NULL OR since > closed THEN
    since := closed;
  END IF;
  upto := least(closed, since + make_interval(mins => minutes_max));
  IF upto > since THEN
    written := pgqueue.count_minutes(since, upto);
    PERFORM pgqueue.merge_minutes(since, upto);
  END IF;
  UPDATE pgqueue.stats_progress p SET done_upto = upto WHERE p.what = 'rollups' AND p.done_upto IS DISTINCT FROM upto;
  behind := upto < closed;
END $$;
COMMENT ON FUNCTION pgqueue.roll_up IS 'Counts the minutes that have ended since the last time, at most so many; behind = there are more';

CREATE FUNCTION pgqueue.recount(minutes_max integer DEFAULT 10, OUT corrected bigint, OUT behind boolean)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  since timestamptz;
  upto timestamptz;
  closed timestamptz := date_trunc('day', clock_timestamp() - interval '5 minutes', 'UTC');
BEGIN
  corrected := 0;
  behind := false;
  SELECT p.done_upto INTO since FROM pgqueue.stats_progress p WHERE p.what = 'recount' FOR UPDATE SKIP LOCKED;
  IF NOT FOUND THEN
    RETURN;
  END IF;
  IF since IS NULL OR since > closed THEN
    since := closed;
  END IF;
  upto := least(closed, since + make_interval(mins => minutes_max));
  IF upto > since THEN
    corrected := pgqueue.count_minutes(since, upto);
    PERFORM pgqueue.merge_minutes(since, upto);
  END IF;
  UPDATE pgqueue.stats_progress p SET done_upto = upto WHERE p.what = 'recount' AND p.done_upto IS DISTINCT FROM upto;
  behind := upto < closed;
END $$;
COMMENT ON FUNCTION pgqueue.recount IS 'Counts a day once more after its end, so many minutes at a time, and corrects what came late; behind = there is more';

CREATE FUNCTION pgqueue.work_stats(since timestamptz, until timestamptz, grain_s integer DEFAULT 60)
RETURNS TABLE (queue text, task text, ended bigint, succeeded bigint, retried bigint, dead bigint, other bigint,
  wait_p50_s double precision, wait_p95_s double precision, wait_p99_s double precision, wait_max_s real,
  run_p50_s double precision, run_p95_s double precision, run_p99_s double precision, run_max_s real)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  SELECT m.queue, m.task, m.ended, m.succeeded, m.retried, m.dead, m.ended - m.succeeded - m.retried - m.dead,
    pgqueue.bucket_percentile(m.wait_n, 0.5, m.wait_max_s), pgqueue.bucket_percentile(m.wait_n, 0.95, m.wait_max_s),
    pgqueue.bucket_percentile(m.wait_n, 0.99, m.wait_max_s), m.wait_max_s,
    pgqueue.bucket_percentile(m.run_n, 0.5, m.run_max_s), pgqueue.bucket_percentile(m.run_n, 0.95, m.run_max_s),
    pgqueue.bucket_percentile(m.run_n, 0.99, m.run_max_s), m.run_max_s
  FROM (
    SELECT s.queue, s.task, sum(s.n)::bigint AS ended, coalesce(sum(s.n) FILTER (WHERE s.outcome = 'succeeded'), 0)::bigint AS succeeded,
      coalesce(sum(s.n) FILTER (WHERE s.outcome = 'retry'), 0)::bigint AS retried, coalesce(sum(s.n) FILTER (WHERE s.outcome = 'dead'), 0)::bigint AS dead,
      ARRAY[sum(s.wait_n[1]), sum(s.wait_n[2]), sum(s.wait_n[3]), sum(s.wait_n[4]), sum(s.wait_n[5]), sum(s.wait_n[6]), sum(s.wait_n[7]), sum(s.wait_n[8]),
      sum(s.wait_n[9]), sum(s.wait_n[10]), sum(s.wait_n[11]), sum(s.wait_n[12]), sum(s.wait_n[13]), sum(s.wait_n[14]), sum(s.wait_n[15]), sum(s.wait_n[16]),
      sum(s.wait_n[17]), sum(s.wait_n[18]), sum(s.wait_n[19]), sum(s.wait_n[20]), sum(s.wait_n[21]), sum(s.wait_n[22]), sum(s.wait_n[23]), sum(s.wait_n[24]),
      sum(s.wait_n[25]), sum(s.wait_n[26])]::bigint[] AS wait_n,
      ARRAY[sum(s.run_n[1]), sum(s.run_n[2]), sum(s.run_n[3]), sum(s.run_n[4]), sum(s.run_n[5]), sum(s.run_n[6]), sum(s.run_n[7]), sum(s.run_n[8]),
      sum(s.run_n[9]), sum(s.run_n[10]), sum(s.run_n[11]), sum(s.run_n[12]), sum(s.run_n[13]), sum(s.run_n[14]), sum(s.run_n[15]), sum(s.run_n[16]),
      sum(s.run_n[17]), sum(s.run_n[18]), sum(s.run_n[19]), sum(s.run_n[20]), sum(s.run_n[21]), sum(s.run_n[22]), sum(s.run_n[23]), sum(s.run_n[24]),
      sum(s.run_n[25]), sum(s.run_n[26])]::bigint[] AS run_n,
      max(s.wait_max_s) AS wait_max_s, max(s.run_max_s) AS run_max_s
    FROM pgqueue.stats_minutely s
    WHERE s.grain_s = work_stats.grain_s AND s.bucket_at >= work_stats.since AND s.bucket_at < work_stats.until AND s.series = 'work'
    GROUP BY GROUPING SETS ((s.queue, s.task), (s.queue))
  ) m;
$$;
COMMENT ON FUNCTION pgqueue.work_stats IS 'What ended in a span of time, by queue and task, and by queue alone (task NULL): how many, and about how long they waited and ran';
