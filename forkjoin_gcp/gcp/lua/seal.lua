-- Closes an index to new writers.
--
-- KEYS[1]  the lane's hash, see lane.lua
-- index    the index
--
-- Returns how many writers hold it, or -1 where that is unknown.

local function seal(index)
  if not is_known(index) then
    return -1
  end
  if redis.call('HGET', lane, 'index') == index then
    advance_past(tonumber(index))
  end
  redis.call('HSET', lane, 'x:' .. index, '1')
  touch()
  return math.max(0, tonumber(redis.call('HGET', lane, 'w:' .. index)))
end
