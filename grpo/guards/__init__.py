"""What stops a run that would be silently wrong, and keeps what it has learned."""
