SELECT extract(epoch FROM max(finished_at) - min(started_at))::float8 FROM pgqueue.job_history WHERE queue <> 'history'
