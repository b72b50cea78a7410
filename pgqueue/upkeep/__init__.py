"""What must happen by itself: due jobs become ready, dead workers' claims come back, old keys and days go.

Every worker process runs all duties; SKIP LOCKED and try-locks keep them out of each other's way. Nothing here
depends on a scheduler process.
"""
