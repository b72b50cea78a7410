"""The command line: a file per noun. It may use every room; none may use it."""
