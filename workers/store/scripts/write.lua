-- parts: base common modes storm breaker line
-- Apply changes to records: each one alone is atomic and guarded by its revision; leases, slots, breakers, lines,
-- schedule, indexes and audit move with it. Server time decides every expiry.
-- ARGV from 4: changes (JSON list), ids seen (JSON list), "all" to write all or nothing, further events (JSON list of
--   strings), ids to put in line (JSON list), ids that pass their slot on (JSON list), schema versions: the one written,
--   then those that may be overwritten (JSON list)
-- Returns {outcome of each change, {{vm id, host, episode or "", attempt}... called}, {event...} made here,
--   last event id or "", 1 if the data are those the host knows}
local due, vms = prefix .. ':due', prefix .. ':vms'
local versions = cjson.decode(ARGV[10])
local places_with_losses = {}
local FORGOTTEN_KEPT_MS = 30 * 24 * 3600 * 1000 -- until then what was forgotten does not rise again from a host's files

local function may_overwrite(version)
  if not version then return true end
  for _, known in ipairs(versions) do
    if tostring(known) == version then return true end
  end
  return false
end

local function blocker(c)
  if quarantine() > 0 then return host_place(c.host) end
  if c.take.forced then return nil end
  for _, call in ipairs(c.take.calls) do
    if not admits(call.scope) then return 'breaker:' .. call.scope end
  end
  if is_kept_for(c.id, c.host) then return nil end
  if room(host_place(c.host)) < 1 then return host_place(c.host) end
  if room('fleet') < 1 then return 'fleet' end
  return nil
end

local function refusal(c)
  local old = redis.call('HMGET', vm_key(c.id), 'rev', 'state', 'host', 'lo', 'lu', 'v', 'lt')
  c.old_state, c.old_host = old[2], old[3]
  if not may_overwrite(old[6]) then return 'schema' end
  if not old[1] and c.rev > 0 then return 'stale' end
  -- Made before the VM was forgotten: a write that was long under way, which must not bring it back.
  local forgotten = not old[1] and redis.call('ZSCORE', prefix .. ':forgotten', c.id)
  if forgotten and (c.created_ms or 0) > 0 and c.created_ms < tonumber(forgotten) then return 'stale' end
  local holder = old[4] and tonumber(old[5]) > now and old[4]
  c.is_leased = holder
  if c.held_by and (holder ~= c.held_by.owner or old[7] ~= c.held_by.token) then
    count('refused_writes')
    return 'leased'
  end
  if tonumber(old[1] or '0') ~= c.rev then return 'stale' end
  if c.take then
    if holder and holder ~= c.take.owner then return 'leased' end
    if not intact then return 'frozen' end
    if not c.take.forced and is_held(c.id, c.host) then
      if is_kept_for(c.id, c.host) then must_call(c.host) end
      give_back_slots(c.id, c.host)
      leave_line(c.id)
      return 'held'
    end
    local place = c.take.calls and blocker(c)
    if place then
      if is_kept_for(c.id, c.host) then must_call(c.host) end
      give_back_slots(c.id, c.host)
      stand(c.id, place)
      return 'waiting'
    end
  end
  return nil
end

local function leave_indexes(c)
  if c.old_state then redis.call('SREM', prefix .. ':in:' .. c.old_state, c.id) end
  if c.old_host then redis.call('SREM', prefix .. ':of:' .. c.old_host, c.id) end
end

-- The scopes that admitted the attempt hear how it ended.
local function end_attempt(c)
  local entries = redis.call('HGET', vm_key(c.id), 'br')
  if not entries then return end
  redis.call('HDEL', vm_key(c.id), 'br')
  for _, entry in ipairs(cjson.decode(entries)) do
    leave(entry, c.id, c.result)
    tend_breaker(entry.scope)
  end
  if c.result then
    for _, place in ipairs({'fleet', host_place(c.old_host or c.host)}) do storm_result(place, c.result) end
  end
end

local function give_back(c)
  redis.call('HDEL', vm_key(c.id), 'lo', 'lu', 'lt')
  give_back_slots(c.id, c.old_host or c.host)
  must_call(c.old_host or c.host)
end

local function delete(c)
  leave_indexes(c)
  end_attempt(c)
  give_back(c)
  leave_line(c.id)
  redis.call('SREM', vms, c.id)
  redis.call('ZREM', due, c.id)
  redis.call('DEL', vm_key(c.id))
  redis.call('ZREMRANGEBYSCORE', prefix .. ':forgotten', '-inf', now - FORGOTTEN_KEPT_MS)
  redis.call('ZADD', prefix .. ':forgotten', now, c.id)
end

local function take(c)
  local key, ends = vm_key(c.id), now + c.take.ttl_ms
  redis.call('HSET', key, 'lo', c.take.owner, 'lu', ends, 'lt', c.token)
  if not c.take.calls then return end
  local entries = {}
  for n, call in ipairs(c.take.calls) do
    entries[n] = {scope = call.scope, generation = enter(call.scope, c.id, ends), children = call.children}
  end
  redis.call('HSET', key, 'br', cjson.encode(entries))
  redis.call('HDEL', key, 'cl')
  for _, place in ipairs({'fleet', host_place(c.host)}) do redis.call('ZADD', slots_key(place), ends, c.id) end
  leave_line(c.id)
end

-- A VM that needs no attempt any more waits for none, and keeps no slot.
local function settle(c)
  if c.needs_attempt or c.take or c.is_leased then return end
  leave_line(c.id)
  if redis.call('HEXISTS', vm_key(c.id), 'cl') == 1 then
    give_back_slots(c.id, c.host)
    must_call(c.host)
  end
end

local function put(c)
  local key = vm_key(c.id)
  if c.old_state ~= c.state or c.old_host ~= c.host then
    leave_indexes(c)
    redis.call('SADD', prefix .. ':in:' .. c.state, c.id)
    redis.call('SADD', prefix .. ':of:' .. c.host, c.id)
    redis.call('SADD', vms, c.id)
  end
  if c.rev == 0 then redis.call('ZREM', prefix .. ':forgotten', c.id) end
  redis.call('HSET', key, 'v', versions[1], 'rev', c.rev + 1, 'host', c.host, 'state', c.state, 'doc', c.doc)
  if c.spec then redis.call('HSET', key, 'spec', c.spec) end
  if c.take then take(c) end
  if c.result or c.release then end_attempt(c) end
  if c.release then give_back(c) end
  settle(c)
  if c.check_in_ms then
    if c.check_in_ms < 0 then redis.call('ZREM', due, c.id) else redis.call('ZADD', due, now + c.check_in_ms, c.id) end
  end
  if c.loss then
    count_loss(c.id, c.loss, host_place(c.host))
    count_loss(c.id, c.loss, 'fleet')
    if not places_with_losses[c.host] then
      places_with_losses[c.host] = true
      places_with_losses[#places_with_losses + 1] = host_place(c.host)
    end
  end
end

local function enlist(id)
  local vm = redis.call('HMGET', vm_key(id), 'host', 'lo', 'lu', 'ln', 'cl')
  local leased = vm[2] and tonumber(vm[3]) > now
  local is_called = vm[5] and tonumber(vm[5]) > now
  if not vm[1] or leased or vm[4] or is_called then return end
  if is_held(id, vm[1]) then
    ask(id, vm[1]) -- its host says what is not done
    return
  end
  stand(id, host_place(vm[1]))
  must_call(vm[1])
end

local function apply(c)
  if c.doc then put(c) else delete(c) end
  for _, entry in ipairs(c.events) do write_down(entry) end
  if c.enlist then enlist(c.id) end
end

local changes = cjson.decode(ARGV[4])
local outcomes = {}
local refused = false
if ARGV[6] == 'all' then
  for i, c in ipairs(changes) do
    outcomes[i] = refusal(c) or 'not_tried'
    refused = refused or outcomes[i] ~= 'not_tried'
  end
end
if not refused then
  for i, c in ipairs(changes) do
    outcomes[i] = refusal(c) or 'done'
    if outcomes[i] == 'done' then apply(c) end
  end
end
for _, place in ipairs(places_with_losses) do look_for_storm(place) end
if #places_with_losses > 0 then look_for_storm('fleet') end
for _, id in ipairs(cjson.decode(ARGV[5])) do
  local key = vm_key(id)
  if redis.call('EXISTS', key) == 1 then redis.call('HSET', key, 'chk', now) end
end
for _, entry in ipairs(cjson.decode(ARGV[7])) do write_down(entry) end
for _, id in ipairs(cjson.decode(ARGV[8])) do enlist(id) end
for _, id in ipairs(cjson.decode(ARGV[9])) do
  local vm = redis.call('HMGET', vm_key(id), 'host', 'lo', 'lu', 'cl')
  if vm[1] and vm[4] and not (vm[2] and tonumber(vm[3]) > now) then
    give_back_slots(id, vm[1])
    must_call(vm[1])
  end
end
call_and_tell()
return {outcomes, called, told, last_event, intact and 1 or 0}
