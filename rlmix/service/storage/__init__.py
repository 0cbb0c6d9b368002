"""Where the service keeps what it must never lose."""
