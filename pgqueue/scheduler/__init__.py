"""Time that comes by itself: who leads, what is due, and the one statement per schedule that decides its fires.

Nothing but the fires of schedules depends on this room; started by `pgqueue scheduler` and `app.scheduler()`.
"""
