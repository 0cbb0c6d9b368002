"""The command line: one command a file. What is heavy to import is imported when a command runs."""
