-- What a sweep wants to know of each segment of a batch, without the payloads.
--
-- KEYS[1]         the batch
-- ARGV[1], [2]    see segments_shared.lua; nothing is kept longer by this
--
-- Returns field, items left, when it was written, and the times at which its items may be tried
-- as a JSON list without brackets, or ''; again for each segment, in no order. Of what is no
-- segment it says 1 item, written in 1970: somebody is to look at it.

local found = {}
local all = redis.call('HGETALL', KEYS[1])
for n = 1, #all, 2 do
  local value = all[n + 1]
  local written = string.match(value, '"updated_at":([%d.]+),')
  found[#found + 1] = all[n]
  found[#found + 1] = tonumber(string.match(value, '^{"revision":"%x+","count":(%d+),')) or 1
  found[#found + 1] = written or '0'
  -- A quotation mark within a payload has a backslash before it, so this is no payload's text.
  found[#found + 1] = string.match(value, '"due":%[([^%]]*)%]') or ''
end
return found
