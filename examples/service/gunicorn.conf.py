"""How gunicorn runs the service; it finds this file by its name."""

import os

bind = f":{os.environ.get('PORT', '8080')}"
# One process, so that what all callers hand in at a time is written together.
workers = 1
# As many as the requests that Cloud Run sends an instance at once unless told otherwise: a request
# holds its thread until its item is durable.
threads = 80
# Cloud Run has a time limit of its own.
timeout = 0
control_socket_disable = True
