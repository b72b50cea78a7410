-- The partner's book: every delivery, repetitions too, in the order of their arrival.
INSERT INTO rides_demo.events (uid, topic, ride_id) VALUES (%(uid)s, %(topic)s, %(ride_id)s)
