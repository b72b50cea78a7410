-- Whether everybody is at work: the workers have registered, and the API has booked its first ride.
SELECT (SELECT count(*) FROM pgqueue.workers w WHERE w.status = 'live' AND w.kind = 'worker') >= %(workers)s
  AND EXISTS (SELECT FROM rides_demo.rides)
