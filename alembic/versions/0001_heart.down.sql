-- squawk-ignore-file ban-drop-table, ban-drop-function, ban-drop-view, ban-drop-sequence
-- Takes the schema away again. It refuses while jobs would be lost; the version table and the schema itself
-- are left to the caller, who notes the new revision in between.
DO $$
DECLARE
  live bigint;
  dead bigint;
BEGIN
  LOCK TABLE pgqueue.jobs, pgqueue.dead_letter_jobs IN ACCESS EXCLUSIVE MODE;
  SELECT count(*) INTO live FROM pgqueue.jobs;
  SELECT count(*) INTO dead FROM pgqueue.dead_letter_jobs WHERE redriven_as IS NULL;
  IF live + dead > 0 AND current_setting('pgqueue.downgrade_force', true) IS DISTINCT FROM 'on' THEN
    RAISE EXCEPTION 'downgrade to base loses % jobs and % dead letters that wait for a decision', live, dead
      USING ERRCODE = 'PQ003', HINT = 'SET pgqueue.downgrade_force = ''on'' loses them';
  END IF;
END $$;
DROP FUNCTION pgqueue.grant_roles;
DROP FUNCTION pgqueue.role_rights;
DROP VIEW pgqueue.held_summary;
DROP FUNCTION pgqueue.job_timeline;
DROP VIEW pgqueue.dead_letter_summary;
DROP VIEW pgqueue.running_jobs;
DROP VIEW pgqueue.queue_health;
DROP VIEW pgqueue.upkeep_status;
DROP FUNCTION pgqueue.keep_history;
DROP FUNCTION pgqueue.summarize_days;
DROP FUNCTION pgqueue.discard_old_letters;
DROP FUNCTION pgqueue.prune_redriven;
DROP FUNCTION pgqueue.prune_default_partitions;
DROP FUNCTION pgqueue.sweep_history;
DROP FUNCTION pgqueue.drop_partition;
DROP FUNCTION pgqueue.ensure_partitions;
DROP TABLE pgqueue.history_sweeps;
DROP TABLE pgqueue.upkeep_duties;
DROP FUNCTION pgqueue.paused_queues;
DROP FUNCTION pgqueue.register_queues;
DROP FUNCTION pgqueue.set_queue;
DROP FUNCTION pgqueue.resume;
DROP FUNCTION pgqueue.pause;
DROP FUNCTION pgqueue.discard;
DROP FUNCTION pgqueue.redrive;
DROP FUNCTION pgqueue.reschedule;
DROP FUNCTION pgqueue.run_now;
DROP FUNCTION pgqueue.cancel;
DROP FUNCTION pgqueue.note_operation;
DROP FUNCTION pgqueue.assert_settled;
DROP FUNCTION pgqueue.enqueue_outcome;
DROP FUNCTION pgqueue.enqueue_receipt;
DROP FUNCTION pgqueue.enqueue_many;
DROP FUNCTION pgqueue.enqueue;
DROP FUNCTION pgqueue.enqueue_jobs;
DROP FUNCTION pgqueue.put_jobs;
DROP FUNCTION pgqueue.enqueue_job;
DROP FUNCTION pgqueue.put_job;
DROP FUNCTION pgqueue.wake;
DROP FUNCTION pgqueue.take_key;
DROP FUNCTION pgqueue.check_options;
DROP FUNCTION pgqueue.check_args;
DROP FUNCTION pgqueue.check_headers;
DROP FUNCTION pgqueue.check_key;
DROP FUNCTION pgqueue.check_job;
DROP FUNCTION pgqueue.work_stats;
DROP FUNCTION pgqueue.recount;
DROP FUNCTION pgqueue.roll_up;
DROP FUNCTION pgqueue.merge_minutes;
DROP FUNCTION pgqueue.count_minutes;
DROP FUNCTION pgqueue.count_attempts;
DROP FUNCTION pgqueue.bucket_percentile;
DROP FUNCTION pgqueue.bucket_bounds;
DROP TABLE pgqueue.stats_progress;
DROP TABLE pgqueue.stats_minutely;
DROP TABLE pgqueue.operator_audit;
DROP TABLE pgqueue.sleepers;
DROP TABLE pgqueue.workers;
DROP TABLE pgqueue.tasks;
DROP TABLE pgqueue.queues;
DROP TABLE pgqueue.dedup_keys;
DROP TABLE pgqueue.job_transitions;
DROP TABLE pgqueue.dead_letter_jobs;
DROP TABLE pgqueue.job_history;
DROP TABLE pgqueue.claims;
DROP TABLE pgqueue.jobs;
DROP SEQUENCE pgqueue.job_seq;
