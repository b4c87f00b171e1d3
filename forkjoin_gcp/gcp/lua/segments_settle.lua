-- Replaces or deletes segments that are still as they were read, and puts dead letters down.
--
-- KEYS[1]         the batch
-- KEYS[2]         the lane's dead letters: a hash, item id to JSON text
-- ARGV[1], [2]    see segments_shared.lua
-- ARGV[3…]        field, head of the value when it was read, new value or '', number of dead
--                 letters, then id, JSON text for each of these; again for each change
--
-- Returns for each change 1: it is made, by this call or, as far as that can be told, an earlier
-- one; 0: the segment has gone or changed

-- A rewritten segment is known by its revision, a deleted one by its dead letters.
local function made_before(stored, value, id)
  if value == '' then
    return not stored and id and redis.call('HEXISTS', KEYS[2], id) == 1
  end
  return begins(stored, head_of(value))
end

local results = {}
local n = 3
while n <= #ARGV do
  local field, head, value, letters = ARGV[n], ARGV[n + 1], ARGV[n + 2], tonumber(ARGV[n + 3])
  local stored = redis.call('HGET', KEYS[1], field)
  n = n + 4
  if begins(stored, head) then
    if value == '' then
      redis.call('HDEL', KEYS[1], field)
    else
      redis.call('HSET', KEYS[1], field, stamped(value))
    end
    for m = n, n + 2 * letters - 1, 2 do
      redis.call('HSET', KEYS[2], ARGV[m], ARGV[m + 1])
    end
    results[#results + 1] = 1
  else
    results[#results + 1] = made_before(stored, value, letters > 0 and ARGV[n]) and 1 or 0
  end
  n = n + 2 * letters
end
keep(KEYS[1])
keep(KEYS[2])
return results
