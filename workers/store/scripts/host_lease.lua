-- Take or keep the lease of a host name, and put the host's sweeps on the schedule.
-- KEYS: 1 host lease, 2 hosts, 3 due. ARGV: 1 host, 2 owner id, 3 value (JSON with "owner"), 4 ttl in ms,
--       5 value that may be replaced (its process is known to be dead) or "", 6... sweep members
-- Returns "" when the lease is ours, else the value of its holder.
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[5] and cjson.decode(held).owner ~= ARGV[2] then return held end
local now = math.floor(server_time[1] * 1000 + server_time[2] / 1000)
redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[4])
redis.call('ZADD', KEYS[2], now, ARGV[1])
for i = 6, #ARGV do redis.call('ZADD', KEYS[3], 'NX', now, ARGV[i]) end
return ''
