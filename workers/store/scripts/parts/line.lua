-- Slots, and the lines of those that wait for one, or for a breaker. A VM stands in one line at most, by priority, then
-- age; a freed slot is handed to the head of the line and kept for it until it comes (or its message turns out lost).
-- P:slots:<place> zset VM -> end of its lease, or of what is kept for it; P:line:<place> zset VM -> rank.
-- VM hash: ln the place it waits for, cl until when a slot is kept for it.
local called, waits = {}, {}
local hosts_to_call, host_order = {}, {}

local function busy(place)
  redis.call('ZREMRANGEBYSCORE', slots_key(place), '-inf', now)
  return redis.call('ZCARD', slots_key(place))
end

local function room(place) return cap(place) - busy(place) end

local function is_kept_for(id, host)
  local function ends(place) return tonumber(redis.call('ZSCORE', slots_key(place), id) or 0) > now end
  return ends('fleet') and ends(host_place(host))
end

local function give_back_slots(id, host)
  redis.call('HDEL', vm_key(id), 'cl')
  redis.call('ZREM', slots_key('fleet'), id)
  redis.call('ZREM', slots_key(host_place(host)), id)
end

local function leave_line(id)
  local place = redis.call('HGET', vm_key(id), 'ln')
  if place then
    redis.call('ZREM', line_key(place), id)
    redis.call('HDEL', vm_key(id), 'ln')
  end
end

-- By priority (9 first), then by how long ago the VM was lost, or wanted.
local function rank_of(doc)
  local record = cjson.decode(doc)
  local episode = type(record.episode) == 'table' and record.episode
  local since = episode and not episode['end'] and episode.started_ms or record.since_ms or now
  return string.format('%.0f', (9 - (record.priority or 5)) * 1e13 + since)
end

local function stand(id, place)
  local vm = redis.call('HMGET', vm_key(id), 'ln', 'doc')
  if vm[1] == place then return end
  leave_line(id)
  redis.call('ZADD', line_key(place), rank_of(vm[2]), id)
  redis.call('HSET', vm_key(id), 'ln', place)
  waits[#waits + 1] = {id, place}
end

-- A restart of the server may have lost leases: for as long as one lasts, nobody is admitted. Returns the ms left.
local quarantine_left
local function quarantine()
  if quarantine_left then return quarantine_left end
  local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
  local known = redis.call('HMGET', prefix .. ':server', 'run', 'until')
  local ends = tonumber(known[2] or 0)
  if known[1] ~= run then
    redis.call('HSET', prefix .. ':server', 'run', run)
    if known[1] then
      ends = now + limits.lease_ms
      redis.call('HSET', prefix .. ':server', 'until', ends)
      tell('quarantine', 'recovery', string.format('redis was started again: no recovery begins for %d s, as long as a '
        .. 'lease may last', limits.lease_ms / 1000), {scope = 'fleet'})
    end
  end
  quarantine_left = math.max(0, ends - now)
  return quarantine_left
end

local function is_served(host)
  return redis.call('EXISTS', prefix .. ':host:' .. host) == 1 and redis.call('HEXISTS', prefix .. ':halted', host) == 0
end

-- Have its host told that this VM needs an attempt.
local function ask(id, host)
  local episode = cjson.decode(redis.call('HGET', vm_key(id), 'doc')).episode
  local open = type(episode) == 'table' and not episode['end'] and episode
  local attempt = open and (open.attempt or 0) + (open.running and 0 or 1)
  called[#called + 1] = {id, host, open and open.id or '', attempt or 0}
end

local function call(id, host)
  for _, place in ipairs({'fleet', host_place(host)}) do
    redis.call('ZADD', slots_key(place), now + limits.call_ms, id)
  end
  redis.call('HSET', vm_key(id), 'cl', now + limits.call_ms)
  ask(id, host)
end

local function head(place)
  local first = redis.call('ZRANGE', line_key(place), 0, 0, 'WITHSCORES')
  return first[1], first[2] and tonumber(first[2]) or math.huge
end

-- Hand the free slots of this host, and of the fleet, to those who wait longest for them.
local function call_line(host)
  local here = host_place(host)
  local served = is_served(host)
  while room('fleet') > 0 do
    local mine, my_rank = nil, math.huge
    if served and room(here) > 0 then mine, my_rank = head(here) end
    local id, rank = head('fleet')
    if mine and my_rank <= rank then id = mine end
    if not id then return end
    local of = redis.call('HGET', vm_key(id), 'host')
    leave_line(id)
    if not of then redis.call('ZREM', line_key('fleet'), id); redis.call('ZREM', line_key(here), id)
    elseif id ~= mine and (not is_served(of) or room(host_place(of)) < 1) then stand(id, host_place(of))
    else call(id, of) end
  end
end

local function must_call(host)
  if not hosts_to_call[host] then
    hosts_to_call[host] = true
    host_order[#host_order + 1] = host
  end
end

-- Those who wait for a breaker go on to wait for a slot: as many as may probe it, or all (0) once it is closed.
local function move_on(scope, number)
  local place = 'breaker:' .. scope
  for _, id in ipairs(redis.call('ZRANGE', line_key(place), 0, number - 1)) do
    local host = redis.call('HGET', vm_key(id), 'host')
    if host then
      stand(id, host_place(host))
      must_call(host)
    else
      redis.call('ZREM', line_key(place), id)
    end
  end
end

-- Let go whoever a breaker need not hold back any more. A probe that was offered gets the time to be taken.
local function tend_breaker(scope)
  local breaker = breaker_now(scope)
  if breaker.state == 'closed' then
    move_on(scope, 0)
  elseif breaker.state == 'half_open' then
    local offered = tonumber(redis.call('HGET', breaker_key(scope), 'offered') or 0)
    if free_probes(scope) > 0 and offered <= now then
      redis.call('HSET', breaker_key(scope), 'offered', now + limits.call_ms)
      move_on(scope, free_probes(scope))
    end
  end
end

local function why_waits(id, place)
  local host = string.match(place, '^host:(.+)$')
  local scope = string.match(place, '^breaker:(.+)$')
  if scope then return 'breaker ' .. scope .. ' is ' .. string.gsub(breaker_at(scope).state, '_', '-'), 'breaker' end
  if quarantine() > 0 then return 'redis was started again, leases may have been lost', 'quarantine' end
  if host and not is_served(host) then
    return 'nothing is recovered on its host now: no worker serves it, or it is halted', 'halted'
  end
  local storm = storm_at(place)
  local why = 'no free recovery slot of the %s (%d%s)'
  return string.format(why, host and 'host' or 'fleet', cap(place), storm and ', storm guard' or ''), storm and 'storm' or 'slot'
end

-- The end of every script that may have freed a slot: calls who is next, and tells of who has to wait from now on.
local function call_and_tell()
  if intact and quarantine() == 0 then
    for _, host in ipairs(host_order) do call_line(host) end
  end
  for _, wait in ipairs(waits) do
    local id, place = wait[1], wait[2]
    local vm = redis.call('HMGET', vm_key(id), 'ln', 'host')
    if vm[1] == place then
      local why, cause = why_waits(id, place)
      tell('deferred', 'recovery', why, {vm_id = id, host = vm[2], scope = place, cause = cause})
    end
  end
end
