-- Read many records at one server time, with what operators hold on them.
-- KEYS: VM hashes. ARGV: 1 "spec" to read the specs too, 2 key of the modes, 3 what VM hashes begin with.
-- Returns {seconds, microseconds, {scope, JSON...}, {v, rev, doc, lease owner, end of lease, last check, place it waits
--   for, until when a slot is kept for it, host[, spec]}...}, false for what is not there
local fields = {'v', 'rev', 'doc', 'lo', 'lu', 'chk', 'ln', 'cl', 'host'}
if ARGV[1] == 'spec' then fields[#fields + 1] = 'spec' end
local rows = {server_time[1], server_time[2], {}}
for i, key in ipairs(KEYS) do rows[i + 3] = redis.call('HMGET', key, unpack(fields)) end
if redis.call('EXISTS', ARGV[2]) == 0 then return rows end

local asked = {fleet = true}
for i, key in ipairs(KEYS) do
  asked['vm:' .. string.sub(key, #ARGV[3] + 1)] = true
  if rows[i + 3][9] then asked['host:' .. rows[i + 3][9]] = true end
end
for scope in pairs(asked) do
  local held = redis.call('HGET', ARGV[2], scope)
  if held then
    table.insert(rows[3], scope)
    table.insert(rows[3], held)
  end
end
return rows
