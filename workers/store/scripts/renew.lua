-- Prolong a lease that is still ours, with its slots.
-- KEYS: 1 VM hash, 2 fleet slots, 3 host slots. ARGV: 1 vm id, 2 owner, 3 ttl in ms. Returns 1, or 0 if it is not ours.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local lease = redis.call('HMGET', KEYS[1], 'lo', 'lu')
if lease[1] ~= ARGV[2] or tonumber(lease[2]) <= now then return 0 end
local ends = now + ARGV[3]
redis.call('HSET', KEYS[1], 'lu', ends)
redis.call('ZADD', KEYS[2], 'XX', ends, ARGV[1])
redis.call('ZADD', KEYS[3], 'XX', ends, ARGV[1])
return 1
