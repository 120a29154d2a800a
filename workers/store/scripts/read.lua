-- Read many records at one server time.
-- KEYS: VM hashes. ARGV: 1 "spec" to read the specs too.
-- Returns {seconds, microseconds, {v, rev, doc, lease owner or false, lease end or false, last check[, spec]}...}
local with_spec = ARGV[1] == 'spec'
local time = redis.call('TIME')
local rows = {time[1], time[2]}
for i, key in ipairs(KEYS) do
  if with_spec then
    rows[i + 2] = redis.call('HMGET', key, 'v', 'rev', 'doc', 'lo', 'lu', 'chk', 'spec')
  else
    rows[i + 2] = redis.call('HMGET', key, 'v', 'rev', 'doc', 'lo', 'lu', 'chk')
  end
end
return rows
