-- What the scripts that change records share: the limits, events made here, and whether the data are those we know.
-- ARGV: 2 limits (JSON of ports.Limits), 3 what the host knows of the data (JSON of domain.epoch.Known), or "".
-- Leaves: told (JSON of events made here), last_event (id of the last one written, or ""), intact.
local limits = cjson.decode(ARGV[2])
local told, last_event = {}, ''

local function write_down(entry)
  last_event = redis.call('XADD', stream, 'MAXLEN', '~', limits.events_kept, '*', 'e', entry)
end

local function tell(kind, actor, why, about)
  local event = {kind = kind, actor = actor, why = why, vm_id = '', host = ''}
  for name, value in pairs(about) do event[name] = value end
  local text = cjson.encode(event)
  write_down(text)
  told[#told + 1] = text
end

local function count(name) redis.call('HINCRBY', prefix .. ':counts', name, 1) end

local intact = true
if ARGV[3] ~= '' then
  local known = cjson.decode(ARGV[3])
  intact = redis.call('HGET', prefix .. ':epoch', 'id') == known.epoch and remembers(known.last_event)
end
