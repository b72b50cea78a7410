"""What applications call to put jobs in: a pure plan first, then one statement on the caller's own connection."""
