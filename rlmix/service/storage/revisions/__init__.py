"""The steps that the tables were made in, one a file. A released one never changes."""
