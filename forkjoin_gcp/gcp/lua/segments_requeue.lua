-- Removes a dead letter and creates a segment with its item in the same lane, or neither.
--
-- KEYS[1]         the lane's dead letters
-- KEYS[2]         the batch that the segment goes to
-- ARGV[1], [2]    see segments_shared.lua
-- ARGV[3], [4]    the item's id, and the SHA-1 of its dead letter when it was read
-- ARGV[5…7]       field, nonce and value of the segment
--
-- Returns 'moved', by this call or an earlier one; 'gone' where the letter has gone or changed;
-- 'conflict' where another's segment stands at the target

local there = redis.call('HGET', KEYS[2], ARGV[5])
if there and nonce_of(there) == ARGV[6] then
  return 'moved'
end
local letter = redis.call('HGET', KEYS[1], ARGV[3])
if not letter or redis.sha1hex(letter) ~= ARGV[4] then
  return 'gone'
end
if there then
  return 'conflict'
end
redis.call('HSET', KEYS[2], ARGV[5], stamped(ARGV[7]))
redis.call('HDEL', KEYS[1], ARGV[3])
keep(KEYS[2])
return 'moved'
