-- Take one out of a budget of so many actions within a period, or nothing.
-- KEYS: 1 budget (zset action -> when). ARGV: 1 most, 2 period in ms, 3 id of this action. Returns 1, or 0 where it is spent.
local now = math.floor(server_time[1] * 1000 + server_time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2])
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[1]) then return 0 end
redis.call('ZADD', KEYS[1], now, ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
