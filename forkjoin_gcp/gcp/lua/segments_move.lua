-- Deletes or rewrites a segment of a batch and creates pieces of it in another of the same lane, or
-- in the same one; or does neither.
--
-- KEYS[1]         the batch it is in
-- KEYS[2]         the batch that the pieces go to
-- ARGV[1], [2]    see segments_shared.lua
-- ARGV[3], [4]    its field, and the head of its value when it was read
-- ARGV[5]         what stays in its place, or ''
-- ARGV[6…]        field, nonce, value; again for each piece
--
-- Returns 'moved', by this call or an earlier one; 'gone' where the segment has gone or changed;
-- 'conflict' where another's segment stands at the target

local stands = begins(redis.call('HGET', KEYS[1], ARGV[3]), ARGV[4])
for n = 6, #ARGV, 3 do
  local value = redis.call('HGET', KEYS[2], ARGV[n])
  if value and stands then
    -- Another's, though it may be of the same group, and have its nonce.
    return 'conflict'
  elseif value and nonce_of(value) == ARGV[n + 1] then
    -- Pieces come all at once: one of them is proof of all.
    return 'moved'
  end
end
if not stands then
  return 'gone'
end
for n = 6, #ARGV, 3 do
  redis.call('HSET', KEYS[2], ARGV[n], stamped(ARGV[n + 2]))
end
if ARGV[5] == '' then
  redis.call('HDEL', KEYS[1], ARGV[3])
else
  redis.call('HSET', KEYS[1], ARGV[3], stamped(ARGV[5]))
end
keep(KEYS[2])
return 'moved'
