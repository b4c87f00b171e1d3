-- Deletes dead letters that are still as they were read.
--
-- KEYS[1]         the lane's dead letters
-- ARGV[1], [2]    see segments_shared.lua; nothing is kept longer by this
-- ARGV[3…]        item id, SHA-1 of the letter when it was read; again for each
--
-- Returns for each 1: it is deleted; 0: it has gone or changed

local results = {}
for n = 3, #ARGV, 2 do
  local letter = redis.call('HGET', KEYS[1], ARGV[n])
  local same = letter and redis.sha1hex(letter) == ARGV[n + 1]
  results[#results + 1] = same and redis.call('HDEL', KEYS[1], ARGV[n]) or 0
end
return results
