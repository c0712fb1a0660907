"""What is asked first: a proprietary API, and what it answered."""
