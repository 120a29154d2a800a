-- Apply changes to records: each one alone is atomic and guarded by its revision; leases, slots, schedule, indexes and
-- audit move with it. Server time decides every expiry.
-- KEYS: 1 due, 2 slots, 3 line, 4 events, 5 vms; the keys of single VMs and hosts are made from the prefix (keys.py).
-- ARGV: 1 prefix, 2 schema version, 3 length of the event stream, 4 changes (JSON list), 5 ids seen (JSON list),
--       6 "all" to write all or nothing, 7 further events (JSON list of strings)
-- Returns {outcome of each change, {vm id, host}... next in line}
local due, slots, line, stream, vms = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local prefix, schema, keep = ARGV[1], ARGV[2], ARGV[3]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function vm_key(id) return prefix .. ':vm:' .. id end
local function host_slots(host) return slots .. ':' .. host end
local function host_line(host) return line .. ':' .. host end

local function free_slot(c)
  if not c.take.per_fleet then return true end
  for _, place in ipairs({{slots, c.take.per_fleet}, {host_slots(c.host), c.take.per_host}}) do
    redis.call('ZREMRANGEBYSCORE', place[1], '-inf', now)
    if redis.call('ZCARD', place[1]) >= place[2] and not redis.call('ZSCORE', place[1], c.id) then return false end
  end
  return true
end

local function stand_in_line(c)
  local score = (9 - c.priority) * 1e13 + now
  redis.call('ZADD', line, 'NX', score, c.id)
  return redis.call('ZADD', host_line(c.host), 'NX', score, c.id) == 1
end

local function refusal(c)
  local old = redis.call('HMGET', vm_key(c.id), 'rev', 'state', 'host', 'lo', 'lu', 'v')
  c.old_state, c.old_host = old[2], old[3]
  if old[6] and old[6] ~= schema then return 'schema' end
  if tonumber(old[1] or '0') ~= c.rev then return 'stale' end
  local holder = old[4] and tonumber(old[5]) > now and old[4]
  if c.held_by and holder ~= c.held_by then return 'leased' end
  if c.take then
    if holder and holder ~= c.take.owner then return 'leased' end
    if not free_slot(c) then
      return stand_in_line(c) and 'no_slot' or 'waiting'
    end
  end
  return nil
end

local function leave_indexes(c)
  if c.old_state then redis.call('SREM', prefix .. ':in:' .. c.old_state, c.id) end
  if c.old_host then redis.call('SREM', prefix .. ':of:' .. c.old_host, c.id) end
end

local function give_back(c)
  redis.call('HDEL', vm_key(c.id), 'lo', 'lu')
  redis.call('ZREM', slots, c.id)
  redis.call('ZREM', host_slots(c.old_host or c.host), c.id)
end

local function leave_line(id, host)
  redis.call('ZREM', line, id)
  redis.call('ZREM', host_line(host), id)
end

local function delete(c)
  leave_indexes(c)
  give_back(c)
  leave_line(c.id, c.old_host or c.host)
  redis.call('SREM', vms, c.id)
  redis.call('ZREM', due, c.id)
  redis.call('DEL', vm_key(c.id))
end

local function put(c)
  local key = vm_key(c.id)
  if c.old_state ~= c.state or c.old_host ~= c.host then
    leave_indexes(c)
    redis.call('SADD', prefix .. ':in:' .. c.state, c.id)
    redis.call('SADD', prefix .. ':of:' .. c.host, c.id)
    redis.call('SADD', vms, c.id)
  end
  redis.call('HSET', key, 'v', schema, 'rev', c.rev + 1, 'host', c.host, 'state', c.state, 'doc', c.doc)
  if c.spec then redis.call('HSET', key, 'spec', c.spec) end
  if c.take then
    local ends = now + c.take.ttl_ms
    redis.call('HSET', key, 'lo', c.take.owner, 'lu', ends)
    if c.take.per_fleet then
      redis.call('ZADD', slots, ends, c.id)
      redis.call('ZADD', host_slots(c.host), ends, c.id)
    end
    leave_line(c.id, c.host)
  end
  if c.release then give_back(c) end
  if c.check_in_ms then
    if c.check_in_ms < 0 then redis.call('ZREM', due, c.id) else redis.call('ZADD', due, now + c.check_in_ms, c.id) end
  end
end

local function write_down(entries)
  for _, entry in ipairs(entries) do redis.call('XADD', stream, 'MAXLEN', '~', keep, '*', 'e', entry) end
end

local function apply(c)
  if c.doc then put(c) else delete(c) end
  write_down(c.events)
end

-- The head of the host's own line, else of the fleet's; whoever admits it takes it out of the line.
local function next_in_line(host)
  local head = redis.call('ZRANGE', host_line(host), 0, 0)[1] or redis.call('ZRANGE', line, 0, 0)[1]
  if not head then return nil end
  local of = redis.call('HGET', vm_key(head), 'host')
  if of then return {head, of} end
  leave_line(head, host)
  return nil
end

local changes = cjson.decode(ARGV[4])
local reply = {{}}
local all = ARGV[6] == 'all'
local refused = false
if all then
  for i, c in ipairs(changes) do
    reply[1][i] = refusal(c) or 'not_tried'
    refused = refused or reply[1][i] ~= 'not_tried'
  end
end
if not refused then
  for i, c in ipairs(changes) do
    reply[1][i] = refusal(c) or 'done'
    if reply[1][i] == 'done' then
      apply(c)
      if c.release then
        local head = next_in_line(c.host)
        if head then reply[#reply + 1] = head end
      end
    end
  end
end
for _, id in ipairs(cjson.decode(ARGV[5])) do
  local key = vm_key(id)
  if redis.call('EXISTS', key) == 1 then redis.call('HSET', key, 'chk', now) end
end
write_down(cjson.decode(ARGV[7]))
return reply
