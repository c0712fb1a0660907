"""The adapter: a small model downstream of an API, which accepts the API's answer or overrides it."""
