-- squawk-ignore-file ban-drop-table, ban-drop-function, ban-drop-view, ban-drop-sequence
-- Takes the schema away again. It refuses while jobs would be lost; the version table and the schema itself
-- are left to the caller, who notes the new revision in between.
DO $$
DECLARE
  live bigint;
  dead bigint;
  told bigint;
BEGIN
  LOCK TABLE pgqueue.jobs, pgqueue.dead_letter_jobs, pgqueue.outbox, pgqueue.outbox_dead_letters IN ACCESS EXCLUSIVE MODE;
  SELECT count(*) INTO live FROM pgqueue.jobs;
  SELECT count(*) INTO dead FROM pgqueue.dead_letter_jobs WHERE redriven_as IS NULL;
  SELECT count(*) INTO told FROM (SELECT o.id FROM pgqueue.outbox o UNION SELECT d.message_id FROM pgqueue.outbox_dead_letters d) m;
  IF live + dead + told > 0 AND current_setting('pgqueue.downgrade_force', true) IS DISTINCT FROM 'on' THEN
    RAISE EXCEPTION 'downgrade to base loses % jobs, % dead letters that wait for a decision and % messages', live, dead, told
      USING ERRCODE = 'PQ003', HINT = 'SET pgqueue.downgrade_force = ''on'' loses them';
  END IF;
END $$;
DROP FUNCTION pgqueue.job_timeline;
DROP VIEW pgqueue.dead_letter_summary;
DROP VIEW pgqueue.running_jobs;
DROP VIEW pgqueue.queue_health;
DROP FUNCTION pgqueue.drop_partitions;
DROP FUNCTION pgqueue.ensure_partitions;
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
DROP VIEW pgqueue.outbox_status;
DROP FUNCTION pgqueue.skip_message;
DROP FUNCTION pgqueue.replay_message;
DROP FUNCTION pgqueue.unsubscribe;
DROP FUNCTION pgqueue.subscribe;
DROP FUNCTION pgqueue.put_subscriptions;
DROP FUNCTION pgqueue.settle_lane;
DROP FUNCTION pgqueue.forget_deliveries;
DROP FUNCTION pgqueue.claim_lanes;
DROP FUNCTION pgqueue.route_messages;
DROP FUNCTION pgqueue.emit_outcome;
DROP FUNCTION pgqueue.emit_receipt;
DROP FUNCTION pgqueue.server_life;
DROP FUNCTION pgqueue.accept_message;
DROP FUNCTION pgqueue.emit;
DROP FUNCTION pgqueue.put_message;
DROP FUNCTION pgqueue.check_message;
DROP FUNCTION pgqueue.topic_matches;
DROP FUNCTION pgqueue.outbox_lane;
DROP TABLE pgqueue.outbox_relays;
DROP TABLE pgqueue.outbox_dead_letters;
DROP TABLE pgqueue.outbox_deliveries;
DROP TABLE pgqueue.outbox_lanes;
DROP TABLE pgqueue.outbox_subscriptions;
DROP TABLE pgqueue.outbox;
DROP SEQUENCE pgqueue.outbox_seq;
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
