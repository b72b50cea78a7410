"""One job's journey through a worker process: claimed, run, settled; and the signs of life meanwhile."""
