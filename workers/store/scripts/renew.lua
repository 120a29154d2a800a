-- parts: base
-- Prolong a lease that is still ours, with its slots and its probes.
-- ARGV from 2: vm id, owner, token, ttl in ms. Returns 1, or 0 if the lease is not ours.
local id, owner, token = ARGV[2], ARGV[3], ARGV[4]
local vm = redis.call('HMGET', vm_key(id), 'lo', 'lt', 'lu', 'host', 'br')
if vm[1] ~= owner or vm[2] ~= token or tonumber(vm[3]) <= now then return 0 end
local ends = now + ARGV[5]
redis.call('HSET', vm_key(id), 'lu', ends)
for _, place in ipairs({'fleet', host_place(vm[4])}) do redis.call('ZADD', slots_key(place), 'XX', ends, id) end
for _, entry in ipairs(vm[5] and cjson.decode(vm[5]) or {}) do
  redis.call('ZADD', breaker_key(entry.scope) .. ':probes', 'XX', ends, id)
end
return 1
