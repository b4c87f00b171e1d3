"""Batch calls of the Cloud Tasks emulator and the operations they begin."""

import asyncio
from typing import Any

import grpc
import pytest
from google.api_core import exceptions
from google.cloud import tasks_v2
from google.longrunning import operations_pb2
from google.protobuf import empty_pb2

from .cloud_tasks import FULL, PARENT, QUEUE, a_task, running, said_by, with_queue

CREATED = tasks_v2.BatchCreateTasksMetadata.State
DELETED = tasks_v2.BatchDeleteTasksMetadata.State


def creating(*ids: str, **fields: Any) -> dict[str, Any]:
    requests = [{"parent": QUEUE, "task": a_task(f"{QUEUE}/tasks/{task_id}")} for task_id in ids]
    return {"parent": QUEUE, "requests": requests, **fields}


def operations_call(channel: grpc.aio.Channel, method: str, answer: Any) -> Any:
    """A call that the tasks client has no method for."""
    return channel.unary_unary(
        f"/google.longrunning.Operations/{method}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=answer.FromString,
    )


def test_a_batch_is_created_and_deleted_through_operations() -> None:
    async def scenario() -> None:
        async with with_queue() as (_, client):
            request = creating("a", "b")
            request["requests"][0]["response_view"] = FULL
            operation = await client.batch_create_tasks(request)
            assert not operation.operation.done  # as the service's: the caller has to ask
            assert operation.metadata.state == CREATED.RUNNING
            made = await operation.result()
            assert [task.name.rpartition("/")[2] for task in made.tasks] == ["a", "b"]
            assert [task.view.name for task in made.tasks] == ["FULL", "BASIC"]
            assert operation.metadata.state == CREATED.SUCCEEDED
            assert operation.metadata.start_time <= operation.metadata.end_time
            names = [f"{QUEUE}/tasks/a", f"{QUEUE}/tasks/b"]
            ending = await client.batch_delete_tasks(parent=QUEUE, names=names)
            await ending.result()
            assert ending.metadata.state == DELETED.SUCCEEDED
            pager = await client.list_tasks(parent=QUEUE)
            assert [task async for task in pager] == []
            with pytest.raises(exceptions.AlreadyExists):
                await client.create_task(parent=QUEUE, task=a_task(names[0]))

    asyncio.run(scenario())


def test_what_fails_in_a_batch_is_told_by_its_place() -> None:
    async def scenario() -> None:
        async with with_queue() as (_, client):
            operation = await client.batch_create_tasks(creating("a", "a", "b", "c.d"))
            made = await operation.result()
            assert len(made.tasks) == 2
            metadata = operation.metadata
            assert metadata.state == CREATED.PARTIALLY_SUCCEEDED
            failed = {place: status.code for place, status in metadata.failed_requests.items()}
            assert failed == {1: 6, 3: 3}  # ALREADY_EXISTS, INVALID_ARGUMENT
            names = [f"{QUEUE}/tasks/{task_id}" for task_id in ("a", "unknown")]
            names.append(f"{PARENT}/queues/other/tasks/t")
            ending = await client.batch_delete_tasks(parent=QUEUE, names=names)
            await ending.result()
            failed = {
                place: status.code for place, status in ending.metadata.failed_requests.items()
            }
            assert failed == {1: 5, 2: 3}  # NOT_FOUND, INVALID_ARGUMENT

    asyncio.run(scenario())


def test_a_batch_of_which_nothing_succeeds_is_an_error() -> None:
    async def scenario() -> None:
        async with with_queue() as (_, client):
            operation = await client.batch_delete_tasks(
                parent=QUEUE, names=[f"{QUEUE}/tasks/unknown"]
            )
            with pytest.raises(exceptions.GoogleAPICallError, match="None of the requests") as told:
                await operation.result()
            assert "BatchDeleteTasksMetadata.failed_requests" in told.value.message
            assert operation.metadata.state == DELETED.PARTIALLY_SUCCEEDED

    asyncio.run(scenario())


def test_a_batch_that_is_sent_again_does_nothing_twice() -> None:
    async def scenario() -> None:
        async with with_queue() as (emulator, client):
            request = creating("a", request_id="once")
            first = await client.batch_create_tasks(request)
            assert first.operation.name == f"{PARENT}/operations/once"
            again = await client.batch_create_tasks(request)
            assert len((await again.result()).tasks) == 1
            assert emulator.stats()["creates"] == 1
            assert emulator.stats()["duplicates"] == 0

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (creating(), "between 1 and 100 requests, not 0"),
        (creating(*(f"t{number}" for number in range(101))), "not 101"),
        (creating("a", request_id="a/b"), "Operation name must be formatted"),
        (
            {"parent": QUEUE, "requests": [{"parent": PARENT + "/queues/o", "task": a_task()}]},
            "must be that of the batch",
        ),
    ],
)
def test_what_is_wrong_with_a_batch_is_said(request_: dict[str, Any], message: str) -> None:
    async def scenario() -> None:
        async with with_queue() as (emulator, client):
            code, said = await said_by(client.batch_create_tasks(request_))
            assert code == "INVALID_ARGUMENT"
            assert message in said
            names = [f"{QUEUE}/tasks/t"] * 1_001
            code, said = await said_by(client.batch_delete_tasks(parent=QUEUE, names=names))
            assert code == "INVALID_ARGUMENT"
            assert emulator.stats()["creates"] == 0

    asyncio.run(scenario())


def test_a_batch_needs_its_queue() -> None:
    async def scenario() -> str:
        async with running() as (_, client):
            return (await said_by(client.batch_create_tasks(creating("a"))))[0]

    assert asyncio.run(scenario()) == "NOT_FOUND"


def test_operations_are_listed_waited_for_and_deleted() -> None:
    async def scenario() -> None:
        async with (
            with_queue() as (emulator, client),
            grpc.aio.insecure_channel(emulator.grpc_address) as channel,
        ):
            for number in range(3):
                await client.batch_create_tasks(creating(f"t{number}", request_id=f"o{number}"))
            list_them = operations_call(
                channel, "ListOperations", operations_pb2.ListOperationsResponse
            )
            page = operations_pb2.ListOperationsRequest(name=PARENT, page_size=2)
            first = await list_them(page)
            assert [each.name[-2:] for each in first.operations] == ["o0", "o1"]
            page.page_token = first.next_page_token
            assert [each.name[-2:] for each in (await list_them(page)).operations] == ["o2"]
            name = f"{PARENT}/operations/o0"
            wait = operations_call(channel, "WaitOperation", operations_pb2.Operation)
            assert (await wait(operations_pb2.WaitOperationRequest(name=name))).done
            cancel = operations_call(channel, "CancelOperation", empty_pb2.Empty)
            await cancel(operations_pb2.CancelOperationRequest(name=name))
            delete = operations_call(channel, "DeleteOperation", empty_pb2.Empty)
            await delete(operations_pb2.DeleteOperationRequest(name=name))
            with pytest.raises(exceptions.NotFound):
                await client.get_operation({"name": name})
            with pytest.raises(exceptions.InvalidArgument):
                await client.get_operation({"name": "o0"})

    asyncio.run(scenario())
