-- What the scripts over a batch's segments share. Put before each of them.
--
-- A batch is a hash. Its fields are the segments' first positions, eight digits each, and their
-- values JSON texts that begin {"revision":"<hex>","count":<items left>, and go on with
--   updated_at                                       put in by `stamped`, by the server's clock
--   nonce, payloads, enqueued_at, expire_at          always
--   positions, attempts, due, origin, shift,
--   handled_payloads, handled_positions, handled_attempts   only where they say something
-- The revision is a hash of the rest, so a value is told from its successors by its first bytes.
--
-- ARGV[1]   the time to live, in ms, that a key has at least after a write
-- ARGV[2]   Unix time in ms at which, at the earliest, what is written may expire

-- A key's time to live is never shortened: other segments in it may have been promised more.
local function keep(key)
  if redis.call('PTTL', key) < tonumber(ARGV[1]) then
    redis.call('PEXPIRE', key, ARGV[1])
  end
  redis.call('PEXPIREAT', key, ARGV[2], 'GT')
end

-- A value to be stored, with the time of this.
local function stamped(value)
  local time = redis.call('TIME')
  local at = time[1] .. '.' .. string.format('%06d', time[2])
  local head = string.match(value, '^{"revision":"%x+","count":%d+,') or ''
  return head == '' and value or head .. '"updated_at":' .. at .. ',' .. string.sub(value, #head + 1)
end

local function nonce_of(value)
  local decoded, segment = pcall(cjson.decode, value)
  return decoded and type(segment) == 'table' and segment.nonce
end

-- The part of a value that says which revision it is; all of it where it says not.
local function head_of(value)
  return string.match(value, '^{"revision":"%x+",') or value
end

local function begins(value, head)
  return value and string.sub(value, 1, #head) == head
end
