-- Takes a writer's hold on the current work index, and positions for its items.
--
-- KEYS[1]          the lane's hash, see lane.lua
-- count            how many items
-- batch_size       for an index that has none yet
-- max_batch_items  at this length the index is closed to those who come next
--
-- Returns {index, start, batch_size, scheduled, full}, as text

local function reserve(count, batch_size, max_batch_items)
  local index = believed_index()
  if not index then
    -- Lost, or not to be believed: start afresh, ahead of every index there ever was.
    local last = tonumber(redis.call('HGET', lane, 'index') or 0)
    redis.call('DEL', lane)
    redis.call('HSET', lane, 'epoch', current_epoch())
    index = advance_past(math.max(last, floor))
  end
  local field = text(index)
  redis.call('HINCRBY', lane, 'w:' .. field, 1)
  redis.call('HSETNX', lane, 's:' .. field, batch_size)
  local length = redis.call('HINCRBY', lane, 'n:' .. field, count)
  local found = redis.call('HMGET', lane, 's:' .. field, 't:' .. field)
  local full = '0'
  if length >= tonumber(max_batch_items) then
    full = '1'
    advance_past(index)
  end
  touch()
  return {field, text(length - tonumber(count)), found[1], found[2] or '0', full}
end
