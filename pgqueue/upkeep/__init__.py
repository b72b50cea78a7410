"""What must happen by itself: due jobs become ready, dead workers' claims come back, old keys and days go, minutes are counted.

Every worker process promotes and rescues, kept out of each other's way by SKIP LOCKED; the rest is done by whichever
process comes first when it is due. Nothing here depends on a scheduler process.
"""
