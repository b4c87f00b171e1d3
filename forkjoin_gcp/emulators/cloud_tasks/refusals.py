"""What the service refuses, in its own words.

The messages are those recorded from the live service where one is known. Codes are gRPC status
names, so that the state needs no gRPC.
"""

from __future__ import annotations


class Refusal(Exception):
    """A call the service refuses.

    `code` is the name of a gRPC status code, the message is what the client sees.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def invalid(message: str) -> Refusal:
    """For a request that is wrong in itself."""
    return Refusal("INVALID_ARGUMENT", message)


def not_emulated(what: str) -> Refusal:
    """For what the real service has and this one has not: never silently ignored."""
    return Refusal("UNIMPLEMENTED", f"The Cloud Tasks emulator does not have {what}.")


def queue_missing() -> Refusal:
    return Refusal(
        "NOT_FOUND",
        "Queue does not exist. If you just created the queue, wait at least a minute for the "
        "queue to initialize.",
    )


def queue_exists() -> Refusal:
    return Refusal("ALREADY_EXISTS", "Queue already exists")


def queue_existed_recently() -> Refusal:
    return Refusal(
        "FAILED_PRECONDITION",
        "The queue cannot be created because a queue with this name existed too recently.",
    )


def task_exists() -> Refusal:
    return Refusal("ALREADY_EXISTS", "Requested entity already exists")


def task_existed_recently() -> Refusal:
    return Refusal(
        "ALREADY_EXISTS",
        "The task cannot be created because a task with this name existed too recently.",
    )


def task_gone() -> Refusal:
    return Refusal(
        "NOT_FOUND",
        "The task no longer exists, though a task with this name existed recently. The task "
        "either successfully completed or was deleted.",
    )


def not_found() -> Refusal:
    return Refusal("NOT_FOUND", "Requested entity was not found.")
