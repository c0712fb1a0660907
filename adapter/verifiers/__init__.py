"""Who is right: what counts as an answer of a kind, how it is found in an API's text, and whether it is the true one."""
