"""Programs that measure. Their tables are kept beside them."""
