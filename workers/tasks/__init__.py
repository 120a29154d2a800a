"""The thin edge to Celery: arguments are checked, a service is called, its outcome becomes a message or nothing."""
