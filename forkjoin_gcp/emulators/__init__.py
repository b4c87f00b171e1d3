"""The services of the cloud on this machine: Valkey, Firestore and Cloud Tasks.

    with LocalServices.start() as local:
        os.environ.update(local.environment())

or, from a shell, `eval "$(forkjoin local up --detach)"`. Needs the extra `local`.
"""

from .errors import LocalServiceError
from .local import LocalServices

__all__ = ["LocalServiceError", "LocalServices"]
