-- Whether everybody is at work: the workers have registered, schedules and subscriptions are stored, and the API has booked its first ride.
SELECT (SELECT count(*) FROM pgqueue.workers w WHERE w.status = 'live' AND w.kind = 'worker') >= %(workers)s
  AND EXISTS (SELECT FROM rides_demo.rides)
  AND (SELECT count(*) FROM pgqueue.schedules) >= %(schedules)s
  AND (SELECT count(*) FROM pgqueue.outbox_subscriptions) >= %(subscriptions)s
