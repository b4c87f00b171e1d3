"""The gRPC service google.cloud.tasks.v2.CloudTasks, as generic handlers over raw protobuf.

A method that is not here (IAM, CMEK, locations) answers UNIMPLEMENTED, as gRPC does for any
unknown method.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.cloud import tasks_v2
from google.protobuf import empty_pb2  # type: ignore[import-untyped]

from . import filters, operations, paging, refusals
from .dispatcher import Dispatcher
from .faults import Faults
from .ledger import Ledger
from .operations import Operations
from .queue_messages import queue_message, settings_from, updated_settings
from .queues import Queue
from .refusals import Refusal
from .resource_names import (
    check_location,
    check_queue_name,
    split_task_name,
    split_task_name_of,
)
from .sqlite_journal import SqliteJournal
from .state import CloudTasksState
from .task_messages import check_view, task_from, task_message

SERVICE = "google.cloud.tasks.v2.CloudTasks"
MAX_QUEUES_A_PAGE = 9_800
MAX_TASKS_A_PAGE = 1_000

_ListQueuesResponse = tasks_v2.ListQueuesResponse.pb()
_ListTasksResponse = tasks_v2.ListTasksResponse.pb()

_Call = Callable[[Any], Any]
_Behaviour = Callable[[Any, Any], Awaitable[Any]]


class CloudTasksService:
    """Answers the API's calls from the state, and tells the dispatcher what became due.

    With a journal no call is answered, and none refused, before everything it could have seen is
    on disk: what a client was told is still true after a crash.
    """

    def __init__(
        self,
        state: CloudTasksState,
        dispatcher: Dispatcher,
        ledger: Ledger,
        faults: Faults,
        operations: Operations,
        journal: SqliteJournal | None,
    ) -> None:
        self._state = state
        self._dispatcher = dispatcher
        self._ledger = ledger
        self._faults = faults
        self._operations = operations
        self._journal = journal

    def handlers(self) -> tuple[grpc.GenericRpcHandler, grpc.GenericRpcHandler]:
        """What grpc.aio.Server.add_generic_rpc_handlers takes."""
        return (
            self._handler(SERVICE, {name: (t.pb(), call) for name, (t, call) in self._calls()}),
            self._handler(operations.SERVICE, self._operations.calls()),
        )

    def _calls(self) -> Any:
        return {
            "CreateQueue": (tasks_v2.CreateQueueRequest, self._create_queue),
            "GetQueue": (tasks_v2.GetQueueRequest, self._get_queue),
            "ListQueues": (tasks_v2.ListQueuesRequest, self._list_queues),
            "UpdateQueue": (tasks_v2.UpdateQueueRequest, self._update_queue),
            "DeleteQueue": (tasks_v2.DeleteQueueRequest, self._delete_queue),
            "PauseQueue": (tasks_v2.PauseQueueRequest, self._pause_queue),
            "ResumeQueue": (tasks_v2.ResumeQueueRequest, self._resume_queue),
            "PurgeQueue": (tasks_v2.PurgeQueueRequest, self._purge_queue),
            "CreateTask": (tasks_v2.CreateTaskRequest, self._create_task),
            "GetTask": (tasks_v2.GetTaskRequest, self._get_task),
            "ListTasks": (tasks_v2.ListTasksRequest, self._list_tasks),
            "DeleteTask": (tasks_v2.DeleteTaskRequest, self._delete_task),
            "RunTask": (tasks_v2.RunTaskRequest, self._run_task),
            "BatchCreateTasks": (tasks_v2.BatchCreateTasksRequest, self._batch_create_tasks),
            "BatchDeleteTasks": (tasks_v2.BatchDeleteTasksRequest, self._batch_delete_tasks),
        }.items()

    def _handler(self, service: str, calls: dict[str, tuple[Any, _Call]]) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            service,
            {
                name: grpc.unary_unary_rpc_method_handler(
                    self._answering(name, call),
                    request_deserializer=request.FromString,
                    response_serializer=_serialize,
                )
                for name, (request, call) in calls.items()
            },
        )

    def _answering(self, method: str, call: _Call) -> _Behaviour:
        faults, journal = self._faults, self._journal

        # The calls themselves are plain functions: no await can come between their look-ups and
        # their insertions, which is what makes the dedupe of names atomic.
        async def answer(request: Any, context: Any) -> Any:
            try:
                if faults.active:
                    if delay := faults.call_delay(method):
                        await asyncio.sleep(delay)
                    faults.check_call(method)
                try:
                    result = call(request)
                finally:
                    if journal is not None:
                        await journal.settled()
                if faults.active:
                    faults.check_answer(method)
            except Refusal as refusal:
                self._ledger.count_refusal(refusal.code)
                await context.abort(grpc.StatusCode[refusal.code], refusal.message)
            else:
                return result

        return answer

    def _create_queue(self, request: Any) -> Any:
        check_location(request.parent)
        name = check_queue_name(request.queue.name)
        if not name.startswith(request.parent + "/queues/"):
            raise refusals.invalid(f"{name} must begin with {request.parent}.")
        return queue_message(self._state.create_queue(name, settings_from(request.queue)))

    def _get_queue(self, request: Any) -> Any:
        return queue_message(self._queue(request.name))

    def _list_queues(self, request: Any) -> Any:
        prefix = check_location(request.parent) + "/queues/"
        wanted = filters.predicate(request.filter)
        question = f"{prefix} {request.filter}"
        messages = {
            name: queue_message(queue)
            for name, queue in self._state.queues.items()
            if name.startswith(prefix)
        }
        names, last = paging.page(
            (name for name, message in messages.items() if wanted(message)),
            paging.page_size(request.page_size, MAX_QUEUES_A_PAGE),
            paging.place_of(request.page_token, question),
        )
        return _ListQueuesResponse(
            queues=[messages[name] for name in names],
            next_page_token=paging.token_for(last, question),
        )

    def _update_queue(self, request: Any) -> Any:
        """Creates the queue if it is not there, as the API documents."""
        name = check_queue_name(request.queue.name)
        queue = self._state.queues.get(name)
        if queue is None:
            return queue_message(self._state.create_queue(name, settings_from(request.queue)))
        settings = updated_settings(queue, request.queue, request.update_mask.paths)
        queue.configure(settings, self._state.clock())
        self._dispatcher.wake(queue)
        return queue_message(queue)

    def _delete_queue(self, request: Any) -> Any:
        self._dispatcher.forget(self._state.delete_queue(check_queue_name(request.name)))
        return empty_pb2.Empty()

    def _pause_queue(self, request: Any) -> Any:
        queue = self._queue(request.name)
        queue.pause()
        self._dispatcher.wake(queue)
        return queue_message(queue)

    def _resume_queue(self, request: Any) -> Any:
        queue = self._queue(request.name)
        queue.resume()
        self._dispatcher.wake(queue)
        return queue_message(queue)

    def _purge_queue(self, request: Any) -> Any:
        queue = self._queue(request.name)
        self._ledger.count(queue.name, "purged", queue.purge(self._state.clock()))
        self._dispatcher.wake(queue)
        return queue_message(queue)

    def _create_task(self, request: Any) -> Any:
        view = check_view(request.response_view)
        queue = self._queue(request.parent)
        now = self._state.clock()
        task = task_from(request.task, queue.name, now)
        try:
            queue.add(task, now)
        except Refusal:
            self._ledger.count(queue.name, "duplicates")
            raise
        self._ledger.count(queue.name, "creates")
        answer = task_message(task, view)
        self._dispatcher.wake(queue)
        return answer

    def _get_task(self, request: Any) -> Any:
        view = check_view(request.response_view)
        queue, task_id = self._named(request.name)
        return task_message(queue.get(task_id, self._state.clock()), view)

    def _list_tasks(self, request: Any) -> Any:
        view = check_view(request.response_view)
        queue = self._queue(request.parent)
        ids, last = paging.page(
            queue.tasks,
            paging.page_size(request.page_size, MAX_TASKS_A_PAGE),
            paging.place_of(request.page_token, queue.name),
        )
        return _ListTasksResponse(
            tasks=[task_message(queue.tasks[task_id], view) for task_id in ids],
            next_page_token=paging.token_for(last, queue.name),
        )

    def _delete_task(self, request: Any) -> Any:
        queue, task_id = self._named(request.name)
        self._delete(queue, task_id)
        return empty_pb2.Empty()

    def _run_task(self, request: Any) -> Any:
        view = check_view(request.response_view)
        queue, task_id = self._named(request.name)
        return task_message(self._dispatcher.run_now(queue, task_id), view)

    def _batch_create_tasks(self, request: Any) -> Any:
        queue = self._queue(request.parent)
        return self._operations.create_batch(request, queue.name, self._create_task)

    def _batch_delete_tasks(self, request: Any) -> Any:
        queue = self._queue(request.parent)

        def delete(name: str) -> None:
            self._delete(queue, split_task_name_of(queue.name, name)[1])

        return self._operations.delete_batch(request, queue.name, delete)

    def _delete(self, queue: Queue, task_id: str) -> None:
        queue.delete(task_id, self._state.clock())
        self._ledger.count(queue.name, "deletes")

    def _queue(self, name: str) -> Queue:
        return self._state.queue(check_queue_name(name))

    def _named(self, task_name: str) -> tuple[Queue, str]:
        queue_name, task_id = split_task_name(task_name)
        return self._queue(queue_name), task_id


def _serialize(message: Any) -> bytes:
    return bytes(message.SerializeToString())
