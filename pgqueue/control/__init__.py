"""The one layer for what people look at and do: shared by the command line and by `app.jobs`, `app.dead_letters`, `app.queues`.

Every deed goes through the SQL function of that deed, which writes its audit row in the same transaction.
"""
