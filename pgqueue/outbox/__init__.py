"""The relay: takes committed messages out of the outbox and hands them to tasks, webhooks, other databases and code.

Nothing but the delivery of messages depends on this room; started by `pgqueue relay` and `app.relay()`.
"""
