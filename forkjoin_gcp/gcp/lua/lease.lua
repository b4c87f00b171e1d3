-- A chunk's lease: which delivery of its task may run it, and how many runs came to no end.
--
-- KEYS[1]  the lane's hash, see lane.lua; not touched
-- KEYS[2]  the chunk's hash, {lane}:chunk:BATCH_KEY:FIRST-STOP, ending in :suspect for a suspect
-- KEYS[3]  the lane's quarantine, {lane}:quarantine: the token of the suspect that runs
-- ARGV[1]  the chunk's hash's time to live, ms, refreshed at each use
--
-- Fields of the hash:
--   token   whose the lease is
--   until   when it runs out unless it is renewed: ms by the server's clock
--   starts  runs that began, less those that came to an end
--   split   the position at which the chunk was split, once it was
--
-- A run that ends in order leaves nothing, so what a run finds counted before its own start are
-- runs that vanished with their process.

local chunk = KEYS[2]
local quarantine = KEYS[3]

local function is_holder(token)
  return redis.call('HGET', chunk, 'token') == token
end

-- Takes the lease where nobody else holds it. A suspect also takes the lane's quarantine, and its
-- start is not counted here: renew does that when the handler is about to be called.
--
-- Returns {'granted', runs that vanished, split or ''} or {'busy', ms until the other's runs out}
local function lease(token, lease_ms, suspect)
  local now = now_ms()
  local found = redis.call('HMGET', chunk, 'token', 'until', 'starts', 'split')
  local left_ms = (tonumber(found[2]) or 0) - now
  if found[1] and found[1] ~= token and left_ms > 0 then
    return {'busy', text(left_ms)}
  end
  local vanished = tonumber(found[3]) or 0
  local starts = vanished
  if suspect == '1' then
    local other = redis.call('GET', quarantine)
    if other and other ~= token then
      return {'busy', text(math.max(1, redis.call('PTTL', quarantine)))}
    end
    redis.call('SET', quarantine, token, 'PX', lease_ms)
  else
    starts = vanished + 1
  end
  redis.call(
    'HSET', chunk, 'token', token, 'until', text(now + tonumber(lease_ms)), 'starts', text(starts)
  )
  redis.call('PEXPIRE', chunk, ttl_ms)
  return {'granted', text(vanished), found[4] or ''}
end

-- Holds the lease for lease_ms from now; starts, unless it is '', is what is counted from here on.
--
-- Returns 1, or 0 where the lease, or a suspect's quarantine, is not this token's any more
local function renew(token, lease_ms, suspect, starts)
  if not is_holder(token) then
    return 0
  end
  if suspect == '1' then
    if redis.call('GET', quarantine) ~= token then
      return 0
    end
    redis.call('PEXPIRE', quarantine, lease_ms)
  end
  redis.call('HSET', chunk, 'until', text(now_ms() + tonumber(lease_ms)))
  if starts ~= '' then
    redis.call('HSET', chunk, 'starts', starts)
  end
  redis.call('PEXPIRE', chunk, ttl_ms)
  return 1
end

-- Gives the lease back, and a suspect's quarantine. Runs that vanished before, and where the chunk
-- was split, stay; where there is neither, nothing does.
--
-- Returns 1, or 0 where the lease was not this token's
local function unlease(token, vanished, split)
  if redis.call('GET', quarantine) == token then
    redis.call('DEL', quarantine)
  end
  if not is_holder(token) then
    return 0
  end
  redis.call('DEL', chunk)
  if vanished ~= '0' then
    redis.call('HSET', chunk, 'starts', vanished)
  end
  if split ~= '' then
    redis.call('HSET', chunk, 'split', split)
  end
  redis.call('PEXPIRE', chunk, ttl_ms)
  return 1
end
