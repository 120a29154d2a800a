-- Hand everything that is due to this beat, once: each member gets its next time before it is returned.
-- A VM's next time is its place in the interval: the host's phase, plus one of a few steps so that big hosts are
-- checked in several messages. Hosts without a live worker get no messages, and no backlog: their time just moves on.
-- KEYS: 1 due. ARGV: 1 prefix, 2 limit, 3 check interval, 4 most VMs per message, 5... pairs of sweep kind and interval.
-- Returns {now, ms until the next member is due or -1, for how long (ms) the first one had been due, {host, vm id...}...,
--   } with sweeps as {"@kind", host}
local due, prefix = KEYS[1], ARGV[1]
local limit, interval, per_message = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local sweeps = {}
for i = 5, #ARGV, 2 do sweeps[ARGV[i]] = tonumber(ARGV[i + 1]) end
local now = math.floor(server_time[1] * 1000 + server_time[2] / 1000)

local function hash(text) return tonumber(string.sub(redis.sha1hex(text), 1, 8), 16) end

local hosts = {}
local function host_of(name)
  local host = hosts[name]
  if not host then
    local steps = math.ceil(redis.call('SCARD', prefix .. ':of:' .. name) / per_message)
    host = {phase = hash(name), steps = math.max(1, steps), alive = redis.call('EXISTS', prefix .. ':host:' .. name) == 1}
    hosts[name] = host
  end
  return host
end

local function after(every, offset) return now + every - ((now - offset) % every) end

local reply, batches = {now, -1, 0}, {}
local function hand_out(name, member)
  local batch = batches[name]
  if not batch or #batch > per_message then
    batch = {name}
    batches[name] = batch
    reply[#reply + 1] = batch
  end
  batch[#batch + 1] = member
end

local most_overdue = redis.call('ZRANGE', due, 0, 0, 'WITHSCORES')
if most_overdue[2] then reply[3] = math.max(0, math.floor(now - most_overdue[2])) end
for _, member in ipairs(redis.call('ZRANGEBYSCORE', due, '-inf', now, 'LIMIT', 0, limit)) do
  local kind, of = string.match(member, '^@([a-z_]+):(.+)$')
  if kind then
    local every = sweeps[kind]
    if every and redis.call('SCARD', prefix .. ':of:' .. of) + redis.call('EXISTS', prefix .. ':host:' .. of) > 0 then
      redis.call('ZADD', due, after(every, hash(of)), member)
      if host_of(of).alive then reply[#reply + 1] = {'@' .. kind, of} end
    else
      redis.call('ZREM', due, member)
    end
  else
    local name = redis.call('HGET', prefix .. ':vm:' .. member, 'host')
    if name then
      local host = host_of(name)
      local step = math.floor((hash(member) % host.steps) * interval / host.steps)
      redis.call('ZADD', due, after(interval, host.phase + step), member)
      if host.alive then hand_out(name, member) end
    else
      redis.call('ZREM', due, member)
    end
  end
end
local first = redis.call('ZRANGE', due, 0, 0, 'WITHSCORES')
if first[2] then reply[2] = math.max(0, math.floor(first[2] - now)) end
return reply
