"""The gRPC service google.cloud.tasks.v2.CloudTasks, as generic handlers over raw protobuf.

A method that is not here (pause, resume, purge, the batch calls, IAM, CMEK) answers
UNIMPLEMENTED, as gRPC does for any unknown method.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.cloud import tasks_v2
from google.protobuf import empty_pb2  # type: ignore[import-untyped]

from . import refusals, wire
from .dispatcher import Dispatcher
from .ledger import Ledger
from .queues import Queue
from .refusals import Refusal
from .state import CloudTasksState, page

SERVICE = "google.cloud.tasks.v2.CloudTasks"
MAX_QUEUES_A_PAGE = 9_800
MAX_TASKS_A_PAGE = 1_000

_ListQueuesResponse = tasks_v2.ListQueuesResponse.pb()
_ListTasksResponse = tasks_v2.ListTasksResponse.pb()

_Behaviour = Callable[[Any, Any], Awaitable[Any]]


class CloudTasksService:
    """Answers the API's calls from the state, and tells the dispatcher what became due."""

    def __init__(self, state: CloudTasksState, dispatcher: Dispatcher, ledger: Ledger) -> None:
        self._state = state
        self._dispatcher = dispatcher
        self._ledger = ledger

    def handlers(self) -> grpc.GenericRpcHandler:
        """What grpc.aio.Server.add_generic_rpc_handlers takes."""
        calls: dict[str, tuple[type, Callable[[Any], Any]]] = {
            "CreateQueue": (tasks_v2.CreateQueueRequest, self._create_queue),
            "GetQueue": (tasks_v2.GetQueueRequest, self._get_queue),
            "ListQueues": (tasks_v2.ListQueuesRequest, self._list_queues),
            "UpdateQueue": (tasks_v2.UpdateQueueRequest, self._update_queue),
            "DeleteQueue": (tasks_v2.DeleteQueueRequest, self._delete_queue),
            "CreateTask": (tasks_v2.CreateTaskRequest, self._create_task),
            "GetTask": (tasks_v2.GetTaskRequest, self._get_task),
            "ListTasks": (tasks_v2.ListTasksRequest, self._list_tasks),
            "DeleteTask": (tasks_v2.DeleteTaskRequest, self._delete_task),
            "RunTask": (tasks_v2.RunTaskRequest, self._run_task),
        }
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                name: grpc.unary_unary_rpc_method_handler(
                    self._answering(call),
                    request_deserializer=request.pb().FromString,  # type: ignore[attr-defined]
                    response_serializer=_serialize,
                )
                for name, (request, call) in calls.items()
            },
        )

    def _answering(self, call: Callable[[Any], Any]) -> _Behaviour:
        # The calls themselves are plain functions: no await can come between their look-ups and
        # their insertions, which is what makes the dedupe of names atomic.
        async def answer(request: Any, context: Any) -> Any:
            try:
                return call(request)
            except Refusal as refusal:
                self._ledger.count_refusal(refusal.code)
                await context.abort(grpc.StatusCode[refusal.code], refusal.message)

        return answer

    def _create_queue(self, request: Any) -> Any:
        wire.check_location(request.parent)
        name = wire.check_queue_name(request.queue.name)
        if not name.startswith(request.parent + "/queues/"):
            raise refusals.invalid(f"{name} must begin with {request.parent}.")
        limits, retry = wire.settings_from(request.queue)
        return wire.queue_message(self._state.create_queue(name, limits, retry))

    def _get_queue(self, request: Any) -> Any:
        return wire.queue_message(self._queue(request.name))

    def _list_queues(self, request: Any) -> Any:
        if request.filter:
            raise refusals.not_emulated("ListQueues filters")
        prefix = wire.check_location(request.parent) + "/queues/"
        names, token = page(
            (name for name in self._state.queues if name.startswith(prefix)),
            _page_size(request.page_size, MAX_QUEUES_A_PAGE),
            request.page_token,
        )
        queues = [wire.queue_message(self._state.queues[name]) for name in names]
        return _ListQueuesResponse(queues=queues, next_page_token=token)

    def _update_queue(self, request: Any) -> Any:
        """Creates the queue if it is not there, as the API documents."""
        name = wire.check_queue_name(request.queue.name)
        queue = self._state.queues.get(name)
        if queue is None:
            limits, retry = wire.settings_from(request.queue)
            return wire.queue_message(self._state.create_queue(name, limits, retry))
        limits, retry = wire.updated_settings(queue, request.queue, list(request.update_mask.paths))
        queue.configure(limits, retry, self._state.clock())
        self._dispatcher.wake(queue)
        return wire.queue_message(queue)

    def _delete_queue(self, request: Any) -> Any:
        self._dispatcher.forget(self._state.delete_queue(wire.check_queue_name(request.name)))
        return empty_pb2.Empty()

    def _create_task(self, request: Any) -> Any:
        queue = self._queue(request.parent)
        now = self._state.clock()
        task = wire.task_from(request.task, queue.name, now)
        try:
            queue.add(task, now)
        except Refusal:
            self._ledger.count(queue.name, "duplicates")
            raise
        self._ledger.count(queue.name, "creates")
        answer = wire.task_message(task, request.response_view)
        self._dispatcher.wake(queue)
        return answer

    def _get_task(self, request: Any) -> Any:
        queue, task_id = self._named(request.name)
        return wire.task_message(queue.get(task_id, self._state.clock()), request.response_view)

    def _list_tasks(self, request: Any) -> Any:
        queue = self._queue(request.parent)
        ids, token = page(
            queue.tasks, _page_size(request.page_size, MAX_TASKS_A_PAGE), request.page_token
        )
        tasks = [wire.task_message(queue.tasks[i], request.response_view) for i in ids]
        return _ListTasksResponse(tasks=tasks, next_page_token=token)

    def _delete_task(self, request: Any) -> Any:
        queue, task_id = self._named(request.name)
        queue.delete(task_id, self._state.clock())
        self._ledger.count(queue.name, "deletes")
        return empty_pb2.Empty()

    def _run_task(self, request: Any) -> Any:
        queue, task_id = self._named(request.name)
        task = self._dispatcher.run_now(queue, task_id)
        return wire.task_message(task, request.response_view)

    def _queue(self, name: str) -> Queue:
        return self._state.queue(wire.check_queue_name(name))

    def _named(self, task_name: str) -> tuple[Queue, str]:
        queue_name, task_id = wire.split_task_name(task_name)
        return self._queue(queue_name), task_id


def _page_size(asked: int, most: int) -> int:
    if asked < 0:
        raise refusals.invalid("The page size cannot be negative.")
    return min(asked or most, most)


def _serialize(message: Any) -> bytes:
    return bytes(message.SerializeToString())
