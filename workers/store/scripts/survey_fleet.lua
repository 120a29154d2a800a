-- parts: base common modes storm
-- How the fleet stands right now, for the metrics that each beat serves. Changes nothing.
-- ARGV from 4: states of VMs (JSON list), after how long (ms) without a worker a host that has no VMs is left out
-- Returns {now, JSON}
local seen = {states = {}, breakers = {}, halted = {frozen = 0, paused = 0}, hosts = {}, held = {}}
for _, state in ipairs(cjson.decode(ARGV[4])) do
  seen.states[state] = redis.call('SCARD', prefix .. ':in:' .. state)
end
for _, scope in ipairs(redis.call('SMEMBERS', prefix .. ':breakers')) do
  local kind, found = string.match(scope, '^[a-z]+'), redis.call('HMGET', breaker_key(scope), 'state', 'opened', 'cooldown')
  local state = found[1]
  -- It is written down only when somebody asks it: by its time it may be probed already.
  if state == 'open' and now - tonumber(found[2] or 0) >= tonumber(found[3] or 0) then state = 'half_open' end
  if state then
    local name = kind .. ' ' .. state
    seen.breakers[name] = (seen.breakers[name] or 0) + 1
  end
end
local halted = redis.call('HGETALL', prefix .. ':halted')
for i = 2, #halted, 2 do
  local ok, halt = pcall(cjson.decode, halted[i])
  local kind = ok and type(halt) == 'table' and halt.frozen and 'frozen' or 'paused'
  seen.halted[kind] = seen.halted[kind] + 1
end
local function count_hold(kind, scope)
  local name = holds(scope) and kind .. ' ' .. holds(scope)
  if name then seen.held[name] = (seen.held[name] or 0) + 1 end
end

count_hold('fleet', 'fleet')
local hosts = redis.call('ZRANGE', prefix .. ':hosts', 0, -1, 'WITHSCORES')
for i = 1, #hosts, 2 do
  local vms = redis.call('SCARD', prefix .. ':of:' .. hosts[i])
  count_hold('host', host_place(hosts[i]))
  if vms > 0 or now - tonumber(hosts[i + 1]) < tonumber(ARGV[5]) then
    seen.hosts[#seen.hosts + 1] = {hosts[i], math.max(0, now - tonumber(hosts[i + 1])), vms}
  end
end
seen.slots_used = redis.call('ZCOUNT', slots_key('fleet'), '(' .. now, '+inf')
seen.slots_limit = cap('fleet')
seen.storm = storm_at('fleet') and 1 or 0
seen.refused_writes = tonumber(redis.call('HGET', prefix .. ':counts', 'refused_writes') or 0)
return {now, cjson.encode(seen)}
