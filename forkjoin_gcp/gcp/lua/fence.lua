-- Forgets an index: from here on every release of it is late.
--
-- KEYS[1]  the lane's hash, see lane.lua
-- KEYS[2]  the index's wake-up list, {lane}:wake:INDEX
-- index    the index
--
-- Returns {length, batch_size}, or {} where they are unknown. A lane that stands at the index or,
-- after its state was lost, behind it is moved past: nobody can reserve the index again. A state
-- that cannot be believed is forgotten but for its index, so that it is not believed later either.

local function fence(index)
  local known = is_known(index)
  local length_and_size = {}
  if known then
    length_and_size = redis.call('HMGET', lane, 'n:' .. index, 's:' .. index)
  end
  local current = tonumber(redis.call('HGET', lane, 'index'))
  if current and not believed_index() then
    redis.call('DEL', lane)
    advance_past(math.max(current, tonumber(index), floor))
  elseif current and current <= tonumber(index) then
    advance_past(tonumber(index))
  end
  redis.call(
    'HDEL', lane, 'w:' .. index, 'n:' .. index, 's:' .. index, 't:' .. index, 'x:' .. index
  )
  redis.call('DEL', KEYS[2])
  touch()
  return length_and_size
end
