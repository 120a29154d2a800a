-- Read many records at one server time.
-- KEYS: VM hashes. ARGV: 1 "spec" to read the specs too.
-- Returns {seconds, microseconds, {v, rev, doc, lease owner, end of lease, last check, place it waits for, until when a
--   slot is kept for it[, spec]}...}, false for what is not there
local fields = {'v', 'rev', 'doc', 'lo', 'lu', 'chk', 'ln', 'cl'}
if ARGV[1] == 'spec' then fields[#fields + 1] = 'spec' end
local rows = {server_time[1], server_time[2]}
for i, key in ipairs(KEYS) do rows[i + 2] = redis.call('HMGET', key, unpack(fields)) end
return rows
