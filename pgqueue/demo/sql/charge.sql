-- The gateway's book: one charge per key, and how often it was asked for.
INSERT INTO rides_demo.charges (key, ride_id, amount_cents) VALUES (%(key)s, %(ride_id)s, %(amount_cents)s)
ON CONFLICT (key) DO UPDATE SET calls = charges.calls + 1
