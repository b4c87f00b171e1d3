-- The fields of a batch and the items left in each, without the payloads.
--
-- KEYS[1]         the batch
-- ARGV[1], [2]    see segments_shared.lua; nothing is kept longer by this
--
-- Returns field, count; again for each segment, in no order. The count of what is no segment is
-- 1, so that somebody looks at it.

local found = {}
for n, text in ipairs(redis.call('HGETALL', KEYS[1])) do
  if n % 2 == 1 then
    found[n] = text
  else
    found[n] = tonumber(string.match(text, '^{"revision":"%x+","count":(%d+),')) or 1
  end
end
return found
