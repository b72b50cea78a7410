"""The demo: a ride-hailing service in miniature that runs on pgqueue, and is broken on purpose while it does.

An application of the library like any other: `pgqueue demo` starts it, nothing else imports it. Its business
tables live in the schema `rides_demo` of a throwaway server.
"""
