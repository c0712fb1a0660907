"""The gateway: an API's own protocol, with the adapter behind it."""
