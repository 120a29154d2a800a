-- What most scripts begin with: server time and keys (all made from the prefix; their list stands in keys.py).
-- ARGV: 1 prefix. Leaves: now, server time in ms.
local prefix = ARGV[1]
local now = math.floor(server_time[1] * 1000 + server_time[2] / 1000)
local stream = prefix .. ':events'

local function vm_key(id) return prefix .. ':vm:' .. id end
local function slots_key(place) return prefix .. ':slots:' .. place end
local function line_key(place) return prefix .. ':line:' .. place end
local function breaker_key(scope) return prefix .. ':breaker:' .. scope end
local function host_place(host) return 'host:' .. host end

local function is_newer(one, other)
  local ms, number = string.match(one, '(%d+)-(%d+)')
  local other_ms, other_number = string.match(other, '(%d+)-(%d+)')
  if ms ~= other_ms then return tonumber(ms) > tonumber(other_ms) end
  return tonumber(number) > tonumber(other_number)
end

local function has_been_trimmed()
  local facts, info = {}, redis.call('XINFO', 'STREAM', stream)
  for i = 1, #info, 2 do facts[info[i]] = info[i + 1] end
  return facts['entries-added'] > facts['length']
end

-- Whether the stream holds this event, or held it and has trimmed it away as too old.
local function remembers(event)
  if event == '0-0' or #redis.call('XRANGE', stream, event, event) == 1 then return true end
  local first = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
  return first ~= nil and is_newer(first[1], event) and has_been_trimmed()
end
