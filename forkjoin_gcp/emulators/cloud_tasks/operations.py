"""Batch calls as long-running operations, and the service google.longrunning.Operations.

The work of a batch is done, and kept, before its call is answered: an operation that was
answered cannot be lost. The first answer still shows it as running, as the service's does, so
that a caller who never asks for the result is found out.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Any

from google.cloud import tasks_v2
from google.longrunning import operations_pb2  # type: ignore[import-untyped]
from google.protobuf import empty_pb2  # type: ignore[import-untyped]
from google.rpc import code_pb2, status_pb2  # type: ignore[import-untyped]

from . import paging, refusals
from .refusals import Refusal
from .resource_names import check_location, check_operation_name, location_of
from .state import CloudTasksState
from .times import set_time

SERVICE = "google.longrunning.Operations"
MAX_CREATES_A_BATCH = 100
MAX_DELETES_A_BATCH = 1_000
MAX_OPERATIONS_A_PAGE = 1_000
_MOST_KEPT = 10_000

_CreateMetadata = tasks_v2.BatchCreateTasksMetadata.pb()
_DeleteMetadata = tasks_v2.BatchDeleteTasksMetadata.pb()
_CreateResponse = tasks_v2.BatchCreateTasksResponse.pb()


class Operations:
    """The operations that ended, by name; the latest 10,000 are kept."""

    def __init__(self, state: CloudTasksState) -> None:
        self._state = state
        self._ended: dict[str, Any] = {}

    def calls(self) -> dict[str, tuple[Any, Callable[[Any], Any]]]:
        """The methods of the service: request type and behaviour."""
        return {
            "GetOperation": (operations_pb2.GetOperationRequest, self._get),
            "ListOperations": (operations_pb2.ListOperationsRequest, self._list),
            "WaitOperation": (operations_pb2.WaitOperationRequest, self._get),
            "CancelOperation": (operations_pb2.CancelOperationRequest, self._cancel),
            "DeleteOperation": (operations_pb2.DeleteOperationRequest, self._delete),
        }

    def restore(self, name: str, operation: bytes) -> None:
        """Puts back an operation that a journal kept."""
        self._ended[name] = operations_pb2.Operation.FromString(operation)

    def create_batch(self, request: Any, queue_name: str, create: Callable[[Any], Any]) -> Any:
        """BatchCreateTasks, with what creates one task from its CreateTaskRequest. Raises Refusal
        for what is wrong with the batch; what is wrong with a task is in the metadata."""
        _check_count(len(request.requests), MAX_CREATES_A_BATCH)
        for each in request.requests:
            if each.parent != queue_name:
                raise refusals.invalid(
                    f"The parent of every request must be that of the batch ('{queue_name}')."
                )

        def respond(tasks: Sequence[Any]) -> Any:
            return _CreateResponse(tasks=tasks)

        return self._run(request, queue_name, request.requests, create, _CreateMetadata, respond)

    def delete_batch(self, request: Any, queue_name: str, delete: Callable[[Any], Any]) -> Any:
        """BatchDeleteTasks, with what deletes one task by its name. Raises as `create_batch`."""
        _check_count(len(request.names), MAX_DELETES_A_BATCH)

        def respond(_: Sequence[Any]) -> Any:
            return empty_pb2.Empty()

        return self._run(request, queue_name, request.names, delete, _DeleteMetadata, respond)

    def _run(
        self,
        request: Any,
        queue_name: str,
        parts: Sequence[Any],
        do: Callable[[Any], Any],
        metadata_type: Any,
        respond: Callable[[Sequence[Any]], Any],
    ) -> Any:
        operation_id = request.request_id or str(uuid.uuid4())
        name = check_operation_name(f"{location_of(queue_name)}/operations/{operation_id}")
        if name in self._ended:  # a retry of the same call: nothing is done twice
            return self._ended[name]
        metadata = metadata_type(state=metadata_type.RUNNING)
        set_time(metadata.start_time, self._state.clock())
        running = operations_pb2.Operation(name=name)
        running.metadata.Pack(metadata)
        results = []
        for index, part in enumerate(parts):
            try:
                results.append(do(part))
            except Refusal as refusal:
                status = metadata.failed_requests[index]
                status.code = code_pb2.Code.Value(refusal.code)
                status.message = refusal.message
        ended = operations_pb2.Operation(name=name, done=True)
        if results:
            ended.response.Pack(respond(results))
        else:
            ended.error.CopyFrom(_nothing_succeeded(metadata_type.DESCRIPTOR.name))
        partly = metadata.failed_requests
        metadata.state = metadata.PARTIALLY_SUCCEEDED if partly else metadata.SUCCEEDED
        set_time(metadata.end_time, self._state.clock())
        ended.metadata.Pack(metadata)
        self._keep(ended)
        return running

    def _keep(self, operation: Any) -> None:
        self._ended[operation.name] = operation
        self._state.journal.operation_ended(operation.name, operation.SerializeToString())
        if len(self._ended) > _MOST_KEPT:
            self._forget(next(iter(self._ended)))

    def _forget(self, name: str) -> None:
        del self._ended[name]
        self._state.journal.operation_deleted(name)

    def _get(self, request: Any) -> Any:
        operation = self._ended.get(check_operation_name(request.name))
        if operation is None:
            raise refusals.not_found()
        return operation

    def _list(self, request: Any) -> Any:
        if request.filter:
            raise refusals.not_emulated("ListOperations filters")
        prefix = check_location(request.name.removesuffix("/operations")) + "/operations/"
        names, last = paging.page(
            (name for name in self._ended if name.startswith(prefix)),
            paging.page_size(request.page_size, MAX_OPERATIONS_A_PAGE),
            paging.place_of(request.page_token, prefix),
        )
        return operations_pb2.ListOperationsResponse(
            operations=[self._ended[name] for name in names],
            next_page_token=paging.token_for(last, prefix),
        )

    def _cancel(self, request: Any) -> Any:
        self._get(request)  # it has ended: there is nothing to cancel, and that is no error
        return empty_pb2.Empty()

    def _delete(self, request: Any) -> Any:
        self._get(request)
        self._forget(request.name)
        return empty_pb2.Empty()


def _check_count(count: int, most: int) -> None:
    if not 1 <= count <= most:
        raise refusals.invalid(f"A batch must have between 1 and {most} requests, not {count}.")


def _nothing_succeeded(metadata_name: str) -> Any:
    return status_pb2.Status(
        code=code_pb2.ABORTED,
        message="None of the requests succeeded, refer to "
        f"{metadata_name}.failed_requests for individual error details",
    )
