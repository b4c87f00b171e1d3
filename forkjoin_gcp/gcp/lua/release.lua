-- Gives a writer's hold back.
--
-- KEYS[1]        the lane's hash, see lane.lua
-- KEYS[2]        the index's wake-up list, {lane}:wake:INDEX
-- index          the index
-- scheduled      '1' if the writer knows that the root task exists
-- closes         '1' if that closes the batch to those who come next (batch_period = 0)
-- wake_up_ms     how long a wake-up is kept for its reader
--
-- Returns 'open', 'sealed' or 'late'. Late: a reader went past, or the state was lost; what was
-- written under this index must move.

local function release(index, scheduled, closes, wake_up_ms)
  if not is_known(index) then
    return 'late'
  end
  local writers = redis.call('HINCRBY', lane, 'w:' .. index, -1)
  if scheduled == '1' then
    redis.call('HSET', lane, 't:' .. index, '1')
    if closes == '1' and redis.call('HGET', lane, 'index') == index then
      advance_past(tonumber(index))
    end
  end
  touch()
  if redis.call('HEXISTS', lane, 'x:' .. index) == 0 then
    return 'open'
  end
  if writers <= 0 then
    redis.call('RPUSH', KEYS[2], 'drained')
    redis.call('PEXPIRE', KEYS[2], wake_up_ms)
  end
  return 'sealed'
end
