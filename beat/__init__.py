"""The scheduler that `celery -A workers beat` uses."""
