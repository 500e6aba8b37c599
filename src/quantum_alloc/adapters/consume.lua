#!lua
-- The apply layer's write: permits consumed, the account, fills and results, in one step or not at all.
--
-- KEYS  1 kill  2 latch  3 state  4 book, then those that the arguments name by number
-- ARGV  read in order by take(); a number n before every list of n
--
-- First everything is tested: kill switch and latch as decided on, the state's revision, the age of the snapshot, each
-- permit's bytes as verified and its time, and the type of every key that is written (a script is not rolled back). One
-- that fails answers with a word, and nothing is written. Consumption is marked in the book by its time in the place of
-- the last number of the open's field; that raises the book's revision, unless it is spoiled: what fails from here on
-- would leave permits consumed and nothing else done.
local cursor = 0
local function take()
  cursor = cursor + 1
  return ARGV[cursor]
end
local function take_number()
  return tonumber(take())
end
local function holds(key, kind)
  local found = redis.call('TYPE', key).ok
  return found == kind or found == 'none'
end

local kill_seen, latch_seen, revision = take(), take(), take()
local snapshot_us, age_max_us, simulated = take_number(), take_number(), take()
local now_us = tonumber(simulated)
if not now_us then
  local time = redis.call('TIME')
  now_us = tonumber(time[1]) * 1000000 + tonumber(time[2])
end

local kill = '!'
if holds(KEYS[1], 'string') then
  local value = redis.call('GET', KEYS[1])
  kill = value and '+' .. value or '-'
end
if kill ~= kill_seen then return {'kill'} end
local latch = '!'
if holds(KEYS[2], 'hash') then
  local value = redis.call('HMGET', KEYS[2], 'state', 'since')
  latch = (value[1] or value[2]) and '+' .. (value[1] or '') .. '|' .. (value[2] or '') or '-'
end
if latch ~= latch_seen then return {'latch'} end
if not holds(KEYS[3], 'hash') or (redis.call('HGET', KEYS[3], '_rev') or '') ~= revision then return {'state'} end
if math.abs(now_us - snapshot_us) > age_max_us then return {'old'} end

local permits = {}
for i = 1, take_number() do
  local key, seen, until_us = KEYS[take_number()], take(), take_number()
  if not holds(key, 'string') or redis.call('GET', key) ~= seen or now_us >= until_us then return {'permit'} end
  permits[i] = key
end
local marks = {}
for i = 1, take_number() do marks[i] = take() end
for _, kind in ipairs({'hash', 'stream', 'set', 'string'}) do
  for _ = 1, take_number() do
    local key = KEYS[take_number()]
    if not holds(key, kind) then return {'type', key} end
  end
end

for _, key in ipairs(permits) do redis.call('DEL', key) end
if #marks > 0 and holds(KEYS[4], 'hash') then
  local at, marked = string.format('%.0f', now_us), 0
  for _, plan in ipairs(marks) do
    local open = redis.call('HGET', KEYS[4], plan)
    if open then
      redis.call('HSET', KEYS[4], plan, (string.gsub(open, '%d+$', at)))
      marked = marked + 1
    end
  end
  local rev = redis.call('HGET', KEYS[4], ':rev') or '0'
  if marked > 0 and #rev < 16 and string.find(rev, '^%d+$') then redis.call('HINCRBY', KEYS[4], ':rev', 1) end
end
for _ = 1, take_number() do
  local n = take_number()
  local name, key = take(), KEYS[take_number()]
  local from = cursor + 1
  cursor = cursor + n - 2
  redis.call(name, key, unpack(ARGV, from, cursor))
end
return {'ok'}
