-- Writes segments that must not exist yet. Each stands for itself.
--
-- KEYS[1]         the batch
-- ARGV[1], [2]    see segments_shared.lua
-- ARGV[3…]        field, nonce, value; again for each segment
--
-- Returns for each 1: it is written, by this call or an earlier one; 0: another's stands there

local results = {}
for n = 3, #ARGV, 3 do
  local field, nonce, value = ARGV[n], ARGV[n + 1], ARGV[n + 2]
  local written = redis.call('HSETNX', KEYS[1], field, stamped(value)) == 1
  if not written then
    written = nonce_of(redis.call('HGET', KEYS[1], field)) == nonce
  end
  results[#results + 1] = written and 1 or 0
end
keep(KEYS[1])
return results
