"""The HTTP server of [status]: a page, metrics, and an API. Imported only where it is asked for."""
