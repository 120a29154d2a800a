-- Hand everything that is due to this beat, once: each member gets its next time before it is returned.
-- A VM's next time is its place in the interval: the host's phase, plus one of a few steps so that big hosts are
-- checked in several messages. Hosts without a live worker get no messages, and no backlog: their time just moves on.
-- Redis serves nobody else meanwhile: per VM there are one HGET, its part of a ZADD, and as little Lua as can be.
-- KEYS: 1 due. ARGV: 1 prefix, 2 limit, 3 check interval, 4 most VMs per message, 5... pairs of sweep kind and interval.
-- Returns {now, ms until the next member is due or -1, for how long (ms) the first one had been due, {host, vm id...}...,
--   } with sweeps as {"@kind", host}
local due, prefix = KEYS[1], ARGV[1]
local limit, interval, per_message = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local sweeps = {}
for i = 5, #ARGV, 2 do sweeps[ARGV[i]] = tonumber(ARGV[i + 1]) end
local now = math.floor(server_time[1] * 1000 + server_time[2] / 1000)
local SWEEP = string.byte('@')
local MOST_VALUES = 1000 -- of one call, for Lua's stack is small; even, for they are pairs

local function hash(text) return tonumber(string.sub(redis.sha1hex(text), 1, 8), 16) end

local function after(every, offset) return now + every - ((now - offset) % every) end

local hosts = {}
local function host_of(name)
  local host = hosts[name]
  if not host then
    local steps = math.max(1, math.ceil(redis.call('SCARD', prefix .. ':of:' .. name) / per_message))
    local phase = hash(name)
    host = {
      phase = phase,
      steps = steps,
      next = steps == 1 and after(interval, phase),
      alive = redis.call('EXISTS', prefix .. ':host:' .. name) == 1,
      room = 0,
    }
    hosts[name] = host
  end
  return host
end

local reply, moves, gone = {now, -1, 0}, {}, {}
local function move(member, to)
  local n = #moves
  moves[n + 1], moves[n + 2] = to, member
end

local function hand_out(name, host, member)
  if host.room == 0 then
    host.batch, host.room = {name}, per_message
    reply[#reply + 1] = host.batch
  end
  host.batch[#host.batch + 1] = member
  host.room = host.room - 1
end

local function claim_sweep(member)
  local kind, of = string.match(member, '^@([a-z_]+):(.+)$')
  local every = sweeps[kind]
  if every and redis.call('SCARD', prefix .. ':of:' .. of) + redis.call('EXISTS', prefix .. ':host:' .. of) > 0 then
    move(member, after(every, hash(of)))
    if host_of(of).alive then reply[#reply + 1] = {'@' .. kind, of} end
  else
    gone[#gone + 1] = member
  end
end

local function claim_vm(member)
  local name = redis.call('HGET', prefix .. ':vm:' .. member, 'host')
  if not name then
    gone[#gone + 1] = member
    return
  end
  local host = host_of(name)
  local step = host.steps > 1 and math.floor((hash(member) % host.steps) * interval / host.steps)
  move(member, host.next or after(interval, host.phase + step))
  if host.alive then hand_out(name, host, member) end
end

local most_overdue = redis.call('ZRANGE', due, 0, 0, 'WITHSCORES')
if most_overdue[2] then reply[3] = math.max(0, math.floor(now - most_overdue[2])) end
for _, member in ipairs(redis.call('ZRANGEBYSCORE', due, '-inf', now, 'LIMIT', 0, limit)) do
  if string.byte(member) == SWEEP then claim_sweep(member) else claim_vm(member) end
end
for i = 1, #moves, MOST_VALUES do redis.call('ZADD', due, unpack(moves, i, math.min(#moves, i + MOST_VALUES - 1))) end
for i = 1, #gone, MOST_VALUES do redis.call('ZREM', due, unpack(gone, i, math.min(#gone, i + MOST_VALUES - 1))) end
local first = redis.call('ZRANGE', due, 0, 0, 'WITHSCORES')
if first[2] then reply[2] = math.max(0, math.floor(first[2] - now)) end
return reply
