-- Why a job does not run: write its id in the first line.
WITH asked AS (SELECT 0::bigint AS job_id)
SELECT j.id AS job_id, j.queue, j.task, j.state,
  CASE
    WHEN j.state = 'running' THEN format('it runs: attempt %s since %s on worker %s', j.attempt, j.started_at, j.worker_id)
    WHEN j.state = 'held' AND j.hold_reason = 'unknown_task' THEN format('no worker that claimed it knows task %s: deploy one that does', j.task)
    WHEN j.state = 'held' AND j.hold_reason = 'suspect' THEN 'its last process died while it ran: it is run alone, in a process of its own'
    WHEN j.state = 'held' AND j.hold_reason = 'window' AND j.run_at > clock_timestamp() THEN format('it is collected with others until %s', j.run_at)
    WHEN j.state = 'held' AND j.hold_reason = 'window' THEN 'its window has ended: it goes along in the window''s next call'
    WHEN j.state = 'held' THEN format('it is held: %s', j.hold_reason)
    WHEN j.state = 'scheduled' AND j.run_at > clock_timestamp() AND j.attempt > 0 THEN format('attempt %s failed: the next is at %s', j.attempt, j.run_at)
    WHEN j.state = 'scheduled' AND j.run_at > clock_timestamp() THEN format('it is not due before %s', j.run_at)
    WHEN j.state = 'scheduled' THEN 'it is due, and nobody made it ready: no worker is alive'
    WHEN q.paused_at IS NOT NULL THEN format('queue %s is paused since %s by %s', j.queue, q.paused_at, q.paused_by)
    WHEN NOT EXISTS (SELECT FROM pgqueue.workers w WHERE w.status = 'live' AND j.queue = ANY (w.queues)
      AND w.beat_at + make_interval(secs => w.lease_s) > clock_timestamp()) THEN format('no live worker serves queue %s', j.queue)
    ELSE format('it is ready; %s jobs stand before it in its queue (counted to 10,000)',
      (SELECT count(*) FROM (SELECT FROM pgqueue.jobs b WHERE b.ready_seq IS NOT NULL AND b.state = 'ready' AND b.queue = j.queue
        AND (b.priority, b.ready_seq) < (j.priority, j.ready_seq) LIMIT 10000) n))
  END AS why
FROM asked JOIN pgqueue.jobs j ON j.id = asked.job_id
LEFT JOIN pgqueue.queues q ON q.name = j.queue
UNION ALL
SELECT h.job_id, h.queue, h.task, h.state, format('it has ended: %s at %s', h.state, h.finished_at)
FROM asked JOIN pgqueue.job_history h ON h.job_id = asked.job_id
UNION ALL
SELECT d.job_id, d.queue, d.task, 'dead', format('it failed for good (%s) at %s', d.reason, d.failed_at)
  || coalesce(format(', and runs again as job %s', d.redriven_as), '')
FROM asked JOIN pgqueue.dead_letter_jobs d ON d.job_id = asked.job_id;
