-- What every lane script begins with: the lane's state, and whether it can be believed.
--
-- KEYS[1]  the lane's hash, fj:{queue/version/lane}
-- ARGV[1]  its time to live, ms, refreshed at each use: the state is lost whole or not at all
-- ARGV[2]  floor: the highest index that the caller has ever seen of this lane
--
-- Fields of the hash:
--   epoch     the replication id of the primary that wrote the state
--   index     the current work index: the one that reserve hands out
--   w:INDEX   writers that hold the index; there as long as the index is open or sealed
--   n:INDEX   its length: how many positions were handed out
--   s:INDEX   its batch_size, from its first reservation
--   t:INDEX   1 once its root task is known to exist
--   x:INDEX   1 once it is sealed
--
-- A replica that became primary may have missed the last writes. Its replication id differs from
-- the one in the state, and nothing the old state says is then believed: held positions might be
-- handed out again, a fence forgotten. Where INFO is refused to scripts, the floor catches what it
-- can: a state whose index is below one that was seen has gone back.

local lane = KEYS[1]
local ttl_ms = tonumber(ARGV[1])
local floor = tonumber(ARGV[2])

local function text(number)
  return string.format('%.0f', number)
end

local function current_epoch()
  local info = redis.pcall('INFO', 'replication')
  if type(info) ~= 'string' then
    return 'unknown'
  end
  return string.match(info, 'master_replid:(%x+)') or 'unknown'
end

local function now_us()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000000 + tonumber(time[2])
end

local function now_ms()
  return math.floor(now_us() / 1000)
end

-- The current index, or nil where there is none that can be believed.
local function believed_index()
  local state = redis.call('HMGET', lane, 'epoch', 'index')
  if not state[1] or state[1] ~= current_epoch() then
    return nil
  end
  local index = tonumber(state[2])
  if index < floor then
    return nil
  end
  return index
end

-- Whether this index is still held open for writers in a state that can be believed.
local function is_known(index)
  return believed_index() ~= nil and redis.call('HEXISTS', lane, 'w:' .. index) == 1
end

-- Moves the lane past an index. Never back: the clock alone could. In microseconds, as the clock
-- must stay ahead of every lane: one that lost its state has nothing else to begin past.
local function advance_past(last)
  local index = math.max(last + 1, now_us())
  redis.call('HSET', lane, 'index', text(index))
  return index
end

local function touch()
  redis.call('PEXPIRE', lane, ttl_ms)
end
