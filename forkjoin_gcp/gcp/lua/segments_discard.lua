-- Takes back segments that carry the writer's nonce.
--
-- KEYS[1]         the batch
-- ARGV[1], [2]    see segments_shared.lua; nothing is kept longer by this
-- ARGV[3…]        field, nonce; again for each segment
--
-- Returns how many were deleted

local deleted = 0
for n = 3, #ARGV, 2 do
  local value = redis.call('HGET', KEYS[1], ARGV[n])
  if value and nonce_of(value) == ARGV[n + 1] then
    deleted = deleted + redis.call('HDEL', KEYS[1], ARGV[n])
  end
end
return deleted
