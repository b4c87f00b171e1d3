"""The state of queues, in virtual time."""

import dataclasses

import pytest

from forkjoin_gcp.emulators.cloud_tasks.journal import Journal
from forkjoin_gcp.emulators.cloud_tasks.pacing import RateLimits, RetryPolicy
from forkjoin_gcp.emulators.cloud_tasks.paging import page
from forkjoin_gcp.emulators.cloud_tasks.queues import (
    MAX_TASK_AGE,
    Outcome,
    Queue,
    QueueSettings,
    Task,
    Verdict,
)
from forkjoin_gcp.emulators.cloud_tasks.refusals import Refusal
from forkjoin_gcp.emulators.cloud_tasks.state import CloudTasksState
from forkjoin_gcp.emulators.cloud_tasks.targets import HttpRequest

NOW = 1_700_000_000.0
DAY = 86_400.0
NAME = "projects/p/locations/l/queues/q"
OK = Outcome(200)
FAILED = Outcome(500)


def make_queue(
    limits: RateLimits | None = None,
    retry: RetryPolicy | None = None,
    *,
    tombstone_age: float = DAY,
) -> Queue:
    return Queue(
        NAME,
        QueueSettings(limits or RateLimits(), retry or RetryPolicy()),
        now=NOW,
        tombstone_age=tombstone_age,
        journal=Journal(),
    )


def make_task(task_id: str = "t", at: float = NOW) -> Task:
    return Task(
        name=f"{NAME}/tasks/{task_id}",
        task_id=task_id,
        request=HttpRequest("http://target/"),
        create_time=NOW,
        schedule_time=at,
    )


def run(queue: Queue, outcome: Outcome, now: float) -> Verdict:
    task = queue.take_due(now)
    assert task is not None
    assert task.last_attempt is not None
    return queue.finish(task, task.last_attempt, outcome, now)


def due_ids(queue: Queue, now: float) -> list[str]:
    found = []
    while (task := queue.take_due(now)) is not None:
        found.append(task.task_id)
    return found


def refusal(raised: pytest.ExceptionInfo[Refusal]) -> tuple[str, str]:
    return raised.value.code, raised.value.message


def test_a_name_is_taken_while_its_task_lives_and_a_day_after() -> None:
    queue = make_queue()
    queue.add(make_task(), NOW)
    with pytest.raises(Refusal, match="Requested entity already exists") as alive:
        queue.add(make_task(), NOW)
    assert alive.value.code == "ALREADY_EXISTS"
    assert run(queue, OK, NOW + 1) is Verdict.COMPLETED
    with pytest.raises(Refusal, match="existed too recently") as buried:
        queue.add(make_task(), NOW + DAY)
    assert buried.value.code == "ALREADY_EXISTS"
    queue.add(make_task(), NOW + 1 + DAY)
    assert queue.tombstones == 0


def test_deleting_leaves_a_tombstone_too() -> None:
    queue = make_queue(tombstone_age=10)
    queue.add(make_task(), NOW)
    queue.delete("t", NOW)
    assert due_ids(queue, NOW) == []
    with pytest.raises(Refusal, match="though a task with this name existed recently"):
        queue.get("t", NOW + 9)
    with pytest.raises(Refusal, match=r"Requested entity was not found\."):
        queue.get("t", NOW + 10)
    with pytest.raises(Refusal, match=r"Requested entity was not found\."):
        queue.delete("t", NOW + 10)


def test_tombstones_expire_in_order_and_take_no_room_after() -> None:
    queue = make_queue(tombstone_age=100)
    for second in range(50):
        queue.add(make_task(f"t{second}"), NOW + second)
        queue.delete(f"t{second}", NOW + second)
    assert queue.tombstones == 50
    with pytest.raises(Refusal):
        queue.get("t40", NOW + 139)
    assert queue.tombstones == 10
    with pytest.raises(Refusal):
        queue.get("t0", NOW + 1_000)
    assert queue.tombstones == 0


def test_tasks_go_out_in_the_order_they_are_due() -> None:
    queue = make_queue()
    for task_id, at in (("c", 3), ("a", 1), ("b", 1), ("d", 4)):
        queue.add(make_task(task_id, NOW + at), NOW)
    assert due_ids(queue, NOW + 0.999) == []
    assert queue.wake_at(NOW) == NOW + 1
    assert due_ids(queue, NOW + 3) == ["a", "b", "c"]
    assert queue.wake_at(NOW + 3) == NOW + 4


def test_no_more_than_max_concurrent_dispatches_are_in_flight() -> None:
    queue = make_queue(RateLimits(max_concurrent_dispatches=2))
    for task_id in "abc":
        queue.add(make_task(task_id), NOW)
    first = queue.take_due(NOW)
    assert first is not None
    assert first.last_attempt is not None
    assert due_ids(queue, NOW) == ["b"]
    assert queue.wake_at(NOW) is None  # only the end of one can change anything
    queue.finish(first, first.last_attempt, OK, NOW + 1)
    assert due_ids(queue, NOW + 1) == ["c"]


def test_dispatches_keep_to_the_rate_after_the_burst() -> None:
    queue = make_queue(RateLimits(max_dispatches_per_second=10))
    for number in range(25):
        queue.add(make_task(f"{number:02}"), NOW)
    now, sent = NOW, []
    while (wake := queue.wake_at(now)) is not None:
        now = wake
        sent += [(task_id, now) for task_id in due_ids(queue, now)]
    assert [at for _, at in sent[:10]] == [NOW] * 10
    assert sent[-1][1] - NOW == pytest.approx(1.5, abs=0.01)
    assert [task_id for task_id, _ in sent] == [f"{number:02}" for number in range(25)]


def test_a_failed_task_comes_back_after_its_backoff() -> None:
    queue = make_queue(retry=RetryPolicy(min_backoff=10, max_backoff=300, max_doublings=3))
    queue.add(make_task(), NOW)
    now, waits = NOW, []
    for _ in range(8):
        assert run(queue, FAILED, now) is Verdict.RETRIED
        wake = queue.wake_at(now)
        assert wake is not None
        waits.append(wake - now)
        now = wake
    assert waits == [10, 20, 40, 80, 160, 240, 300, 300]


def test_a_target_that_asks_for_more_time_gets_it() -> None:
    queue = make_queue(retry=RetryPolicy(min_backoff=1, max_backoff=1))
    queue.add(make_task(), NOW)
    run(queue, Outcome(429, retry_after=30), NOW)
    assert queue.wake_at(NOW) == NOW + 30


def test_a_task_is_given_up_after_its_attempts_and_its_name_stays_taken() -> None:
    queue = make_queue(retry=RetryPolicy(max_attempts=3, min_backoff=1, max_backoff=1))
    queue.add(make_task(), NOW)
    verdicts = [run(queue, FAILED, NOW + second) for second in range(3)]
    assert verdicts == [Verdict.RETRIED, Verdict.RETRIED, Verdict.EXHAUSTED]
    with pytest.raises(Refusal) as raised:
        queue.add(make_task(), NOW + 3)
    assert raised.value.code == "ALREADY_EXISTS"


def test_a_tasks_own_retry_settings_go_before_its_queues() -> None:
    queue = make_queue(retry=RetryPolicy(max_attempts=100))
    task = make_task()
    task.retry = RetryPolicy(max_attempts=1)
    queue.add(task, NOW)
    assert run(queue, FAILED, NOW) is Verdict.EXHAUSTED


def test_retry_duration_counts_from_the_first_attempt() -> None:
    retry = RetryPolicy(max_attempts=-1, max_retry_duration=5, min_backoff=2, max_backoff=2)
    queue = make_queue(retry=retry)
    queue.add(make_task(at=NOW + 100), NOW)
    verdicts = [run(queue, FAILED, NOW + 100 + second) for second in (0, 2, 4, 6)]
    assert verdicts == [Verdict.RETRIED] * 3 + [Verdict.EXHAUSTED]


def test_counters_of_responses_and_executions() -> None:
    """Executions leave out the answers 5xx, responses only the attempts without any answer."""
    queue = make_queue(retry=RetryPolicy(min_backoff=0, max_backoff=0))
    task = make_task()
    queue.add(task, NOW)
    for outcome in (Outcome(503), Outcome(404), Outcome(None, "refused")):
        run(queue, outcome, NOW)
    assert (task.dispatch_count, task.response_count, task.execution_count) == (3, 2, 1)
    assert task.previous_status is None


def test_a_task_deleted_in_flight_does_not_come_back() -> None:
    queue = make_queue()
    queue.add(make_task(), NOW)
    task = queue.take_due(NOW)
    assert task is not None
    assert task.last_attempt is not None
    queue.delete("t", NOW)
    assert queue.finish(task, task.last_attempt, FAILED, NOW + 1) is Verdict.GONE
    assert queue.wake_at(NOW + 1) is None
    assert queue.in_flight == 0


def test_running_a_task_now_takes_it_out_of_its_turn() -> None:
    queue = make_queue(RateLimits(max_concurrent_dispatches=1))
    queue.add(make_task("first"), NOW)
    queue.add(make_task("later", NOW + 1_000), NOW)
    assert due_ids(queue, NOW) == ["first"]
    task = queue.take("later", NOW + 1)  # past the limit of one in flight
    assert task.last_attempt is not None
    assert queue.in_flight == 2
    assert queue.finish(task, task.last_attempt, FAILED, NOW + 2) is Verdict.RETRIED
    assert task.schedule_time == pytest.approx(NOW + 2.1)


def test_two_runs_of_one_task_end_it_once() -> None:
    queue = make_queue()
    queue.add(make_task(), NOW)
    attempts = []
    for _ in range(2):
        task = queue.take("t", NOW)
        assert task.last_attempt is not None
        attempts.append((task, task.last_attempt))
    verdicts = [queue.finish(task, attempt, OK, NOW + 1) for task, attempt in attempts]
    assert verdicts == [Verdict.COMPLETED, Verdict.GONE]
    assert queue.in_flight == 0


def test_new_limits_hold_at_once() -> None:
    queue = make_queue(RateLimits(max_concurrent_dispatches=1))
    for task_id in "abcd":
        queue.add(make_task(task_id), NOW)
    assert due_ids(queue, NOW) == ["a"]
    queue.configure(QueueSettings(RateLimits(max_concurrent_dispatches=3)), NOW)
    assert due_ids(queue, NOW) == ["b", "c"]


def test_a_paused_queue_gives_nothing_out() -> None:
    queue = make_queue()
    queue.add(make_task(), NOW)
    queue.pause()
    assert due_ids(queue, NOW) == []
    assert queue.wake_at(NOW) is None
    queue.resume()
    assert queue.wake_at(NOW) == NOW
    assert due_ids(queue, NOW) == ["t"]


def test_names_that_are_taken_are_told_newest_first() -> None:
    now = NOW
    state = CloudTasksState(lambda: now, tombstone_age=10)
    for at, name in enumerate(("a", "b", "a", "b", "a")):
        queue = state.queues.get(name) or state.create_queue(name, QueueSettings())
        queue.add(make_task(f"t{at}"), NOW)
        queue.delete(f"t{at}", NOW + at)
    assert state.buried(3) == [
        ("a/tasks/t4", NOW + 4),
        ("b/tasks/t3", NOW + 3),
        ("a/tasks/t2", NOW + 2),
    ]
    now = NOW + 13
    assert state.buried(3) == [("a/tasks/t4", NOW + 4)]


def test_a_purge_leaves_tombstones_and_room() -> None:
    queue = make_queue(tombstone_age=10)
    for task_id in "abc":
        queue.add(make_task(task_id), NOW)
    queue.take("a", NOW)
    assert queue.purge(NOW + 1) == 3
    assert (queue.tombstones, queue.purge_time, queue.wake_at(NOW + 1)) == (3, NOW + 1, None)
    with pytest.raises(Refusal, match="too recently"):
        queue.add(make_task("a"), NOW + 10)
    queue.add(make_task("a"), NOW + 11)


def test_a_task_is_dropped_when_it_is_31_days_old() -> None:
    queue = make_queue(retry=RetryPolicy(max_attempts=-1, min_backoff=DAY, max_backoff=DAY))
    queue.add(make_task(), NOW)
    now = NOW
    while now - NOW < MAX_TASK_AGE:
        assert run(queue, FAILED, now) is Verdict.RETRIED
        wake = queue.wake_at(now)
        assert wake is not None
        now = wake
    assert queue.take_due(now) is None
    assert queue.tasks == {}
    assert queue.tombstones == 1


def test_names_can_be_forgotten_early_and_kept_again() -> None:
    state = CloudTasksState(lambda: NOW)
    queue = state.create_queue(NAME, QueueSettings())
    queue.add(make_task(), NOW)
    queue.delete("t", NOW)
    state.forget_tombstones_after(1.5)
    with pytest.raises(Refusal):
        queue.add(make_task(), NOW + 1.4)
    queue.add(make_task(), NOW + 1.5)
    queue.delete("t", NOW + 2)
    state.forget_tombstones_after(None)
    with pytest.raises(Refusal):
        queue.add(make_task(), NOW + 100)
    other = state.create_queue(NAME + "2", QueueSettings())
    assert other.tombstone_age == DAY


def test_queue_names_are_unique_and_stay_taken_three_days_after_a_deletion() -> None:
    time = NOW
    state = CloudTasksState(lambda: time)
    queue = state.create_queue(NAME, QueueSettings())
    queue.add(make_task(), NOW)
    with pytest.raises(Refusal) as exists:
        state.create_queue(NAME, QueueSettings())
    assert refusal(exists) == ("ALREADY_EXISTS", "Queue already exists")
    state.delete_queue(NAME)
    assert queue.take_due(NOW) is None
    with pytest.raises(Refusal) as missing:
        state.queue(NAME)
    assert missing.value.code == "NOT_FOUND"
    with pytest.raises(Refusal) as recent:
        state.create_queue(NAME, QueueSettings())
    assert recent.value.code == "FAILED_PRECONDITION"
    time += 3 * DAY
    assert state.create_queue(NAME, QueueSettings()).tasks == {}


def test_queues_come_to_be_by_themselves_only_if_asked_for() -> None:
    state = CloudTasksState(lambda: NOW, auto_create=True)
    assert state.queue(NAME) is state.queue(NAME)


def test_pages_cover_everything_once_in_order_while_keys_come_and_go() -> None:
    keys = {f"{number:03}" for number in range(100)}
    seen: list[str] = []
    token = ""
    while True:
        found, token = page(keys, 30, token)
        seen += found
        keys.discard(found[0])
        if not token:
            break
    assert seen == [f"{number:03}" for number in range(100)]
    assert page([], 10, "") == ([], "")
    assert page(["a"], 1, "") == (["a"], "")


def test_what_a_task_sends_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_task().request.url = "http://other/"  # type: ignore[misc]
