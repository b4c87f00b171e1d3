"""The simulation's small Valkey beside a real one: the same commands get the same replies."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from forkjoin_gcp import QueueConfig, Services
from forkjoin_gcp.emulators import LocalServices
from forkjoin_gcp.gcp.memorystore import LANE_TTL_MS, MemorystoreIndex
from forkjoin_gcp.gcp.memorystore_store import MemorystoreStore
from forkjoin_gcp.names import Lane
from forkjoin_gcp.ports import Counters
from forkjoin_gcp.testing import index_contract, store_contract
from forkjoin_gcp.testing.simulation.loop import SimulatedLoop
from forkjoin_gcp.testing.simulation.lua import ReplyError
from forkjoin_gcp.testing.simulation.network import Link, Network, Trace
from forkjoin_gcp.testing.simulation.valkey import SimulatedValkey
from forkjoin_gcp.testing.simulation.valkey_client import SimulatedValkeyClient

Command = Sequence[bytes]
CLOCKS_APART_MS = 2_000
ERROR = b"error"


# The contracts, through the real ports


def simulated(loop: SimulatedLoop) -> tuple[SimulatedValkey, Any]:
    server = SimulatedValkey(lambda: 1_800_000_000.0 + loop.time(), Random(1))
    network = Network(loop, Random(2), Trace(loop))
    return server, SimulatedValkeyClient(server, network, Link("memorystore"), 1.0)


@pytest.mark.parametrize("check", index_contract.CHECKS, ids=lambda check: check.__name__)
def test_the_real_index_keeps_its_contract_on_it(check: index_contract.Check) -> None:
    loop = SimulatedLoop(Random(3))
    server, client = simulated(loop)
    config = QueueConfig(
        "checks",
        batch_size=index_contract.BATCH_SIZE,
        max_batch_items=index_contract.MAX_BATCH_ITEMS,
    )
    index = MemorystoreIndex(client, config, Counters())
    loop.run(check(index, Lane("checks", "v1")), max_steps=100_000, max_seconds=1_000)
    assert server.keys()
    assert all(left and 0 < left <= LANE_TTL_MS for left in server.keys().values())


def test_a_lane_that_lost_its_state_is_seeded_past_what_it_gave_out_in_a_rush() -> None:
    """By a process that has seen nothing of the lane: a full batch each millisecond and more."""
    loop = SimulatedLoop(Random(3))
    server, client = simulated(loop)
    config = QueueConfig("checks", batch_size=1, max_batch_items=1)
    lane = Lane("checks", "v1")

    async def body() -> None:
        index = MemorystoreIndex(client, config, Counters())
        given = await asyncio.gather(*(index.reserve(lane, 1) for _ in range(500)))
        last = max(one.index for one in given)
        assert len({one.index for one in given}) == 500
        server.flush()
        stranger = MemorystoreIndex(client, config, Counters())
        assert (await stranger.reserve(lane, 1)).index > last

    loop.run(body(), max_steps=100_000, max_seconds=0.4)


@pytest.mark.parametrize("check", store_contract.CHECKS, ids=lambda check: check.__name__)
def test_the_real_store_keeps_its_contract_on_it(check: store_contract.Check) -> None:
    loop = SimulatedLoop(Random(3))
    server, client = simulated(loop)
    store = MemorystoreStore(client, 3_600.0, Counters())
    loop.run(check(store, Lane("checks", "v1")), max_steps=100_000, max_seconds=1_000)
    assert all(left and left > 0 for left in server.keys().values())


# Command by command


class Pair:
    """A real server and the simulated one, asked the same."""

    def __init__(self, services: Services, runner: asyncio.Runner) -> None:
        self.runner = runner
        self.real = Redis.from_url(services.need("memorystore"), protocol=2)
        self.simulated = SimulatedValkey(time.time, Random(1))
        self.prefix = uuid.uuid4().hex[:12].encode() + b":"

    def fresh(self) -> None:
        self.prefix = uuid.uuid4().hex[:12].encode() + b":"

    def ask(self, *words: bytes) -> None:
        """Both answer the same, or both refuse."""
        real = self.runner.run(self._ask_real(words))
        try:
            answer = self.simulated.execute(*words)
        except ReplyError:
            answer = ERROR
        assert_same(words, real, answer)

    def evaluate(self, text: bytes, keys: Command, args: Command) -> None:
        words = [b"EVAL", text, b"%d" % len(keys), *keys, *args]
        real = self.runner.run(self._ask_real(words))
        try:
            answer = self.simulated.evaluate(text, keys, args)
        except ReplyError:
            answer = ERROR
        assert_same(words, real, answer)

    async def _ask_real(self, words: Command) -> Any:
        connection = await self.real.connection_pool.get_connection()
        try:
            await connection.send_command(*words)
            return await connection.read_response()
        except ResponseError:
            return ERROR
        finally:
            await self.real.connection_pool.release(connection)


def assert_same(words: Command, real: Any, answer: Any) -> None:
    name = words[0].upper()
    answer = _as_bytes(answer)
    if name == b"PTTL" and isinstance(real, int) and real > 0:
        assert isinstance(answer, int)
        assert abs(real - answer) < CLOCKS_APART_MS, words
        return
    if name in (b"HGETALL", b"HKEYS") and isinstance(real, list):
        step = 2 if name == b"HGETALL" else 1
        real, answer = (sorted(zip(*[iter(each)] * step, strict=True)) for each in (real, answer))
    assert answer == real, words


def _as_bytes(answer: Any) -> Any:
    """A reply as redis-py has it: a status is a text like any other."""
    if isinstance(answer, list):
        return [_as_bytes(each) for each in answer]
    return answer.encode() if isinstance(answer, str) else answer


@pytest.fixture(scope="module")
def pair(local_services: LocalServices) -> Any:
    with asyncio.Runner() as runner:
        both = Pair(Services.from_env(local_services.environment()), runner)
        yield both
        runner.run(both.real.aclose())


keys = st.sampled_from([b"a", b"b"])
fields = st.sampled_from([b"f", b"g", b"h"])
texts = st.sampled_from(
    [b"", b"x", b"1", b"-7", b"01", b"1.5", b"9223372036854775807", b"\xff\x00"]
)
far = st.sampled_from([b"1000000", b"5000000", b"0", b"-5", b"x"])


ahead = [2 * 10**6, 10**7]
"""No two ends that are compared are within a moment of each other."""


def far_from_now(ahead_ms: int) -> bytes:
    return b"%d" % (int(time.time() * 1000) + ahead_ms)


def command(name: bytes, *words: st.SearchStrategy[bytes]) -> st.SearchStrategy[Command]:
    return st.tuples(st.just(name), *words)


options = st.sampled_from([b"GT", b"LT", b"NX", b"XX", b"gt"])
commands: st.SearchStrategy[Command] = st.one_of(
    command(b"HSET", keys, fields, texts),
    command(b"HSET", keys, fields, texts, fields, texts),
    command(b"HSET", keys, fields),
    command(b"HSETNX", keys, fields, texts),
    command(b"HGET", keys, fields),
    command(b"hget", keys, fields),
    command(b"HMGET", keys, fields, fields),
    command(b"HMGET", keys),
    command(b"HGETALL", keys),
    command(b"HKEYS", keys),
    command(b"HLEN", keys),
    command(b"HEXISTS", keys, fields),
    command(b"HDEL", keys, fields),
    command(b"HDEL", keys, fields, fields),
    command(b"HDEL", keys),
    command(b"HINCRBY", keys, fields, texts),
    command(b"DEL", keys),
    command(b"DEL", keys, keys),
    command(b"EXISTS", keys, keys),
    command(b"PEXPIRE", keys, far),
    command(b"PEXPIRE", keys, far, options),
    command(b"PEXPIREAT", keys, st.sampled_from([-5_000, *ahead]).map(far_from_now)),
    command(b"PEXPIREAT", keys, st.sampled_from(ahead).map(far_from_now), options),
    command(b"PTTL", keys),
    command(b"GET", keys),
    command(b"SET", keys, texts),
    command(b"SET", keys, texts, st.sampled_from([b"NX", b"XX", b"YY"])),
    command(b"SET", keys, texts, st.just(b"PX"), far),
    command(b"SET", keys, texts, st.just(b"NX"), st.just(b"PX"), far),
    command(b"RPUSH", keys, texts, texts),
    command(b"RPUSH", keys),
    command(b"LPOP", keys),
    command(b"PING"),
)


@settings(max_examples=300, deadline=None)
@given(script=st.lists(commands, max_size=25))
def test_every_command_gets_the_reply_of_a_real_server(pair: Pair, script: list[Command]) -> None:
    pair.fresh()
    for words in script:
        named = [
            pair.prefix + word if at == 1 or (at > 1 and words[0] in (b"DEL", b"EXISTS")) else word
            for at, word in enumerate(words)
        ]
        pair.ask(*named)


@settings(max_examples=100, deadline=None)
@given(script=st.lists(commands, max_size=12), careful=st.booleans())
def test_a_script_sees_what_it_would_see_on_a_real_server(
    pair: Pair, script: list[Command], careful: bool
) -> None:
    pair.fresh()
    lines = [_in_lua(words, careful) for words in script if words[0] not in UNORDERED]
    text = b"""
        local replies = {}
        %b
        for n, reply in ipairs(replies) do
          if type(reply) == 'table' and reply.err then replies[n] = 'error' end
        end
        return replies"""
    pair.evaluate(text % b"\n".join(lines), [pair.prefix + b"a", pair.prefix + b"b"], [])
    for key in (b"a", b"b"):
        pair.ask(b"EXISTS", pair.prefix + key)


UNORDERED = (b"PTTL", b"HGETALL", b"HKEYS")
"""Their replies are compared elsewhere: they are the same but for order, or for a moment."""


def _in_lua(words: Command, careful: bool) -> bytes:
    keys = {b"a": b"KEYS[1]", b"b": b"KEYS[2]"}
    arguments = b", ".join(keys.get(word) or _quoted(word) for word in words)
    function = b"pcall" if careful else b"call"
    return b"replies[#replies + 1] = redis.%b(%b)" % (function, arguments)


def _quoted(word: bytes) -> bytes:
    return b"'" + b"".join(b"\\%03d" % byte for byte in word) + b"'"


@pytest.mark.parametrize(
    "text",
    [
        "return 1", "return 3.99", "return -3.99", "return 'text'", "return nil", "return true",
        "return false", "return {}", "return {1, 'two', {3, false}, nil, 5}",
        "return {ok = 'FINE'}", "return {err = 'ERR no'}", "return redis.status_reply('FINE')",
        "return redis.error_reply('ERR no')", "return {x = 1}", "return ARGV", "return KEYS",
        "return #ARGV + #KEYS", "return redis.call('GET', KEYS[1])",
        "return type(redis.call('GET', KEYS[1]))",
        "return type(redis.call('HGET', KEYS[1], 'f'))",
        "return redis.call('SET', KEYS[1], 'x').ok",
        "return redis.call('NOSUCH', KEYS[1])", "return redis.pcall('NOSUCH', KEYS[1])",
        "return type(redis.pcall('NOSUCH', KEYS[1]).err)", "return redis.call('SET', KEYS[1])",
        "redis.call('HSET', KEYS[1], 'n', 2^53) return redis.call('HGET', KEYS[1], 'n')",
        "redis.call('HSET', KEYS[1], 'n', 0.1) return redis.call('HGET', KEYS[1], 'n')",
        "redis.call('HSET', KEYS[1], 'n', 1e3) return redis.call('HGET', KEYS[1], 'n')",
        "return redis.call('HSET', KEYS[1], 'n', true)", "leaked = 1 return 1",
        "return nothing_here",
        "return string.format('%.0f', 1800000000123)", "return tonumber('12') + 1",
        "return cjson.decode('{\"a\":[1,\"b\"]}').a[2]", "return pcall(cjson.decode, 'x{')",
        "return {pcall(cjson.decode, '[1,2]')}", "error('no')", "this is no Lua",
        "return string.match('master_replid:0a1b', 'master_replid:(%x+)')",
        "return type(redis.pcall('INFO', 'replication'))", "return #redis.call('TIME')",
    ],
)  # fmt: skip
def test_a_script_returns_what_it_would_from_a_real_server(pair: Pair, text: str) -> None:
    pair.fresh()
    pair.evaluate(text.encode(), [pair.prefix + b"k"], [b"one", b"2"])


def test_a_replication_id_is_found_where_a_real_server_has_it(pair: Pair) -> None:
    find = b"return string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)')"
    answers = [pair.simulated.evaluate(find, [], []), pair.runner.run(pair.real.eval(find, 0))]
    assert [len(answer) for answer in answers] == [40, 40]


def test_a_key_that_was_not_declared_is_refused() -> None:
    """As on a cluster; a server alone would let it pass."""
    server = SimulatedValkey(time.time, Random(1))
    with pytest.raises(ReplyError, match="non local key"):
        server.evaluate(b"return redis.call('GET', 'other')", [b"key"], [])
