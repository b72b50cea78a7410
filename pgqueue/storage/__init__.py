"""The only door to Postgres: named statements, connections, faults, transactions, the caller's binding."""
