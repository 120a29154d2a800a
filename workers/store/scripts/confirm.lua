-- parts: base common modes
-- Renew the time of the last check of the VMs of one host whose records are still as the host knows them. Those that
-- are not, or on which an operator mode is in force or a switch is set, are left as they are, and told.
-- ARGV from 4: host, then each VM id with the revision that is known of it
-- Returns {seconds, microseconds, 1 if the data are those the host knows, {ids that were left}}
local function is_set(scope)
  if not any_modes() then return false end
  if holds(scope) then return true end
  local set = cjson.decode(redis.call('HGET', prefix .. ':modes', scope) or '{}') -- what cannot be read holds
  return set.switches and #set.switches > 0
end

local left = {}
local none = not intact or is_set('fleet') or is_set(host_place(ARGV[4]))
for i = 5, #ARGV, 2 do
  local id = ARGV[i]
  if none or redis.call('HGET', vm_key(id), 'rev') ~= ARGV[i + 1] or is_set('vm:' .. id) then
    left[#left + 1] = id
  else
    redis.call('HSET', vm_key(id), 'chk', now)
  end
end
return {server_time[1], server_time[2], intact and 1 or 0, left}
