SELECT count(*) FROM pgqueue.enqueue_jobs(%(task)s,
  (SELECT array_agg(jsonb_build_object('n', i, 'note', %(note)s::text)) FROM generate_series(1, %(jobs)s) i), %(queue)s)
