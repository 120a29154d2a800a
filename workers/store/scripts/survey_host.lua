-- parts: base common storm
-- How one host stands right now, for its metrics and its status page. Changes nothing.
-- ARGV from 4: states of VMs (JSON list), host, for how long destructive actions count (ms), most records that are opened
-- Returns {now, JSON}
local host, most_opened = ARGV[5], tonumber(ARGV[7])
local here = host_place(host)
local IN_TROUBLE = {'orphaned', 'unhealthy', 'recovering', 'starting'}

local seen = {states = {}, reasons = {}, oldest_ms = 0, waiting = 0, waited_ms = 0, in_flight = {}}
for _, state in ipairs(cjson.decode(ARGV[4])) do
  seen.states[state] = redis.call('SINTERCARD', 2, prefix .. ':of:' .. host, prefix .. ':in:' .. state)
end

local function look(id, state)
  local vm = redis.call('HMGET', vm_key(id), 'doc', 'lo', 'lu')
  if not vm[1] then return end
  local record = cjson.decode(vm[1])
  local episode = type(record.episode) == 'table' and not record.episode['end'] and record.episode or {}
  if state == 'orphaned' then
    local reason = episode.reason or record.doubt or 'none'
    seen.reasons[reason] = (seen.reasons[reason] or 0) + 1
    seen.oldest_ms = math.max(seen.oldest_ms, now - (episode.started_ms or record.since_ms or now))
  end
  if vm[2] and tonumber(vm[3]) > now then
    seen.in_flight[#seen.in_flight + 1] = {vm_id = id, attempt = episode.attempt or 0, reason = episode.reason}
  elseif record.desired ~= 'stopped' then
    local due = math.max(episode.next_attempt_ms or 0, episode.started_ms or record.since_ms or now)
    if due <= now then
      seen.waiting = seen.waiting + 1
      seen.waited_ms = math.max(seen.waited_ms, now - due)
    end
  end
end

local opened = 0
for _, state in ipairs(IN_TROUBLE) do
  if seen.states[state] > 0 then
    for _, id in ipairs(redis.call('SINTER', prefix .. ':of:' .. host, prefix .. ':in:' .. state)) do
      if opened < most_opened then look(id, state) end
      opened = opened + 1
    end
  end
end
seen.slots_used = redis.call('ZCOUNT', slots_key(here), '(' .. now, '+inf')
seen.slots_limit = cap(here)
seen.storm = storm_at(here) and 1 or 0
seen.destroyed = redis.call('ZCOUNT', prefix .. ':budget:' .. host, '(' .. now - ARGV[6], '+inf')
return {now, cjson.encode(seen)}
