"""What Firestore refuses. Codes are those that Google's emulator answers, where it was asked."""

from __future__ import annotations

from collections.abc import Sequence

CODES = {
    "INVALID_ARGUMENT": 3,
    "NOT_FOUND": 5,
    "ALREADY_EXISTS": 6,
    "FAILED_PRECONDITION": 9,
    "ABORTED": 10,
    "UNIMPLEMENTED": 12,
}


class Refusal(Exception):
    """A call, or one write of it, that is refused. `code` is the name of a gRPC status code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    @property
    def number(self) -> int:
        """The code as google.rpc.Status has it."""
        return CODES[self.code]


def invalid(message: str) -> Refusal:
    """For a request that is wrong in itself."""
    return Refusal("INVALID_ARGUMENT", message)


def not_served(what: str) -> Refusal:
    """For what Firestore has and this one has not: never silently ignored."""
    return Refusal("UNIMPLEMENTED", f"The embedded Firestore does not serve {what}.")


def document_missing(name: str) -> Refusal:
    return Refusal("NOT_FOUND", f"Document ({name}) not found.")


def nothing_to_update(name: str) -> Refusal:
    return Refusal("NOT_FOUND", f"No document to update: {name}")


def document_exists(name: str) -> Refusal:
    return Refusal("ALREADY_EXISTS", f"Document already exists: {name}")


def other_version(stored_us: int, asked_us: int) -> Refusal:
    return Refusal(
        "FAILED_PRECONDITION",
        f"the stored version ({stored_us}) does not match the required base version ({asked_us})",
    )


def contention(names: Sequence[str]) -> Refusal:
    return Refusal(
        "ABORTED",
        "Transaction lock timeout: another transaction has read "
        f"{', '.join(names[:3])}{' …' if len(names) > 3 else ''} and is still open.",
    )


def key_scan_descends() -> Refusal:
    return Refusal("FAILED_PRECONDITION", "Firestore does not support descending key scans")


def transaction_closed() -> Refusal:
    return invalid("Transaction is invalid or closed.")
