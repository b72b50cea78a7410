-- Notes a kill before it happens.
INSERT INTO rides_demo.incidents (kind, target) VALUES ('kill', %(target)s)
