SELECT (tup_inserted + tup_updated + tup_deleted)::bigint, (xact_commit)::bigint FROM pg_stat_database WHERE datname = current_database()
