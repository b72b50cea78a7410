-- Day partitions of job_history and job_transitions, in UTC days.

CREATE FUNCTION pgqueue.ensure_partitions(ahead_days integer DEFAULT 7)
RETURNS integer LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  parent text;
  day date;
  made integer := 0;
BEGIN
  IF ahead_days NOT BETWEEN 0 AND 60 THEN
    RAISE EXCEPTION 'ahead_days: out of range; 0 to 60' USING ERRCODE = '22023';
  END IF;
  FOREACH parent IN ARRAY ARRAY['job_history', 'job_transitions'] LOOP
    FOR i IN 0..ahead_days LOOP
      day := (clock_timestamp() AT TIME ZONE 'UTC')::date + i;
      CONTINUE WHEN to_regclass(format('pgqueue.%I', parent || to_char(day, '"_"YYYYMMDD'))) IS NOT NULL;
      BEGIN
        EXECUTE format('CREATE TABLE pgqueue.%I PARTITION OF pgqueue.%I FOR VALUES FROM (%L) TO (%L)',
          parent || to_char(day, '"_"YYYYMMDD'), parent,
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

CREATE FUNCTION pgqueue.drop_partitions(keep_days integer)
RETURNS integer LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  part record;
  dropped integer := 0;
BEGIN
  IF keep_days NOT BETWEEN 1 AND 36500 THEN
    RAISE EXCEPTION 'keep_days: out of range; 1 to 36500' USING ERRCODE = '22023';
  END IF;
  FOR part IN
    SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
      JOIN pg_class p ON p.oid = i.inhparent JOIN pg_namespace n ON n.oid = p.relnamespace
    WHERE n.nspname = 'pgqueue' AND p.relname IN ('job_history', 'job_transitions') AND c.relname ~ '_[0-9]{8}$'
      AND to_date(right(c.relname, 8), 'YYYYMMDD') < (clock_timestamp() AT TIME ZONE 'UTC')::date - keep_days
    ORDER BY c.relname
  LOOP
    EXECUTE format('DROP TABLE pgqueue.%I', part.relname);
    dropped := dropped + 1;
  END LOOP;
  RETURN dropped;
END $$;
COMMENT ON FUNCTION pgqueue.drop_partitions IS 'Drops the day partitions older than keep_days; returns how many';

SELECT pgqueue.ensure_partitions(7);
