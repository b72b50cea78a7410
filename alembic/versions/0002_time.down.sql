-- squawk-ignore-file ban-drop-table, ban-drop-function, ban-drop-view
-- Takes schedules and their fire log away again. Those that code defines come back with it; those that people
-- made would not.
DO $$
DECLARE
  made bigint;
BEGIN
  LOCK TABLE pgqueue.schedules IN ACCESS EXCLUSIVE MODE;
  SELECT count(*) INTO made FROM pgqueue.schedules WHERE source <> 'code';
  IF made > 0 AND current_setting('pgqueue.downgrade_force', true) IS DISTINCT FROM 'on' THEN
    RAISE EXCEPTION 'downgrade to pgqueue_0001 loses % schedules that no code defines', made
      USING ERRCODE = 'PQ003', HINT = 'SET pgqueue.downgrade_force = ''on'' loses them';
  END IF;
END $$;
DROP VIEW pgqueue.schedule_status;
DROP FUNCTION pgqueue.prune_orphans;
DROP FUNCTION pgqueue.delete_schedule;
DROP FUNCTION pgqueue.run_schedule;
DROP FUNCTION pgqueue.resume_schedule;
DROP FUNCTION pgqueue.pause_schedule;
DROP FUNCTION pgqueue.put_schedule;
DROP FUNCTION pgqueue.tick_schedule;
DROP FUNCTION pgqueue.enqueue_scheduled;
DROP TABLE pgqueue.schedule_runs;
DROP TABLE pgqueue.schedules;
