#!lua
-- The governor's commit: every answer of a batch, tested against what it was decided on, in one step.
--
-- KEYS  1 kill  2 latch  3 epoch  4 book  5 events  6 plans  7 dead letters, then those that items name by number
-- ARGV  read in order by take(); a number n before every list of n
--
-- First come the tests that concern all: kill switch, latch and epoch as decided on, the age of the snapshot, and the
-- type of every key that all items write (a script is not rolled back). One that fails answers with a word, and
-- nothing is written. Then each item is tested and written, or its status says why not:
--   ok       written, and its entry acknowledged
--   gone     its entry is not pending any more: somebody has answered it
--   moved    what it was decided on has changed; so have later items of its symbol or id
--   taken    a permit of that id stands that was not given here
--   type     a key that it writes holds another type
local cursor = 0
local function take()
  cursor = cursor + 1
  return ARGV[cursor]
end
local function take_number()
  return tonumber(take())
end
local function take_list()
  local n = take_number()
  local from = cursor + 1
  cursor = cursor + n
  return from, cursor
end
local function holds(key, kind)
  local found = redis.call('TYPE', key).ok
  return found == kind or found == 'none'
end
local function text(micros)
  return string.format('%.0f', micros)
end

local group = take()
local kill_seen, latch_seen, epoch_seen = take(), take(), take()
local snapshot_us, age_max_us, simulated = take_number(), take_number(), take()
local is_stable, maxlen, position = take() == '1', take_number(), take()
local ledger_ttl_s = take_number()
local fence_field, fence_seen = take(), take()

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
if not holds(KEYS[3], 'string') or (redis.call('GET', KEYS[3]) or '') ~= epoch_seen then return {'epoch'} end
for i = 5, 6 do
  if not holds(KEYS[i], 'stream') then return {'type', KEYS[i]} end
end
local has_book = holds(KEYS[4], 'hash')
if has_book and (redis.call('HGET', KEYS[4], fence_field) or '') ~= fence_seen then return {'epoch'} end

local clock = redis.call('TIME')
local time_us = simulated ~= '' and tonumber(simulated) or clock[1] * 1000000 + clock[2]
local age_us = time_us - snapshot_us
if age_us > age_max_us or age_us < -age_max_us then return {'old'} end
local watermark_us = has_book and tonumber(redis.call('HGET', KEYS[4], ':watermark') or '0') or 0
local stamp_us = math.max(time_us, watermark_us)

-- the book: its revision, what it comes to, which symbols wait in it
local book_revision, caps_total, caps_count = take(), take_number(), take_number()
local base_total, base_count = take_number(), take_number()
local held = {}
local from, to = take_list()
for i = from, to do held[ARGV[i]] = true end
local release_from, release_to = take_list()
local book_same = has_book and (redis.call('HGET', KEYS[4], ':rev') or '0') == book_revision
local total, slots, waits = 0, 0, {}
local is_counted = false
local function count_book()
  if is_counted then return end
  is_counted = true
  if release_to >= release_from then
    for i = release_from, release_to, 1000 do
      redis.call('HDEL', KEYS[4], unpack(ARGV, i, math.min(i + 999, release_to)))
    end
    redis.call('HINCRBY', KEYS[4], ':rev', 1)
  end
  local all = redis.call('HGETALL', KEYS[4])
  for i = 1, #all, 2 do
    if string.sub(all[i], 1, 1) ~= ':' then
      local symbol, usd, _, _, consumed = string.match(all[i + 1], '^(%S+) (%S+) (%S+) (%S+) (%S+)$')
      total = total + (tonumber(usd) or math.huge)
      local waiting = symbol and (consumed ~= '0' or not held[symbol])
      if waiting and not waits[symbol] then
        waits[symbol] = true
        slots = slots + 1
      end
    end
  end
end
local function close_to(value, limit)  -- the decision summed exactly; the order of a sum must not turn it
  return value <= limit * (1 + 1e-9) + 1e-6
end

-- symbols: their ledgers, the revision decided on, the entries that no limit counts any more
local symbols = {}
for i = 1, take_number() do
  local one = {name = take(), ledger = take_number(), last_exec = take_number(), revision = take()}
  one.from, one.to = take_list()
  one.readable = holds(KEYS[one.ledger], 'hash')
  if one.readable then
    one.same = (redis.call('HGET', KEYS[one.ledger], ':rev') or '0') == one.revision or one.revision == ''
  else
    one.same = one.revision == ''
  end
  symbols[i] = one
end

local function add_events(from_stamp)
  for _ = 1, take_number() do
    local first, last = take_list()
    if from_stamp then
      local fields = {}
      for i = first, last do fields[#fields + 1] = ARGV[i] end
      fields[#fields + 1] = 'issued_us'
      fields[#fields + 1] = text(stamp_us)
      redis.call('XADD', KEYS[5], 'MAXLEN', '~', maxlen, '*', unpack(fields))
    else
      redis.call('XADD', KEYS[5], 'MAXLEN', '~', maxlen, '*', unpack(ARGV, first, last))
    end
  end
end

local statuses, waiting_ids, all_wait, open_waits = {}, {}, false, false
local n_ok = 0

local function permit(one, id)
  local key, json, ttl_ms, entry, is_open = take_number(), take(), take_number(), take(), take() == '1'
  local usd, valid_until_us = take_number(), take_number()
  if stamp_us > valid_until_us or not one.readable then return 'moved' end
  if is_open then
    if not book_same then return 'moved' end
    count_book()
    if not close_to(base_total + total + usd, caps_total) then return 'moved' end
    local takes_slot = not held[one.name] and not waits[one.name]
    if takes_slot and base_count + slots + 1 > caps_count then return 'moved' end
  end
  if redis.call('EXISTS', KEYS[key]) == 1 then return 'taken' end
  return 'ok', function()
    redis.call('SET', KEYS[key], json, 'PX', ttl_ms)
    if one.to >= one.from then redis.call('HDEL', KEYS[one.ledger], unpack(ARGV, one.from, one.to)) end
    one.to = one.from - 1
    redis.call('HSET', KEYS[one.ledger], id, text(stamp_us) .. ' ' .. entry)
    redis.call('HINCRBY', KEYS[one.ledger], ':rev', 1)
    redis.call('EXPIRE', KEYS[one.ledger], ledger_ttl_s)
    redis.call('SET', KEYS[one.last_exec], string.format('%.6f', stamp_us / 1000000), 'EX', ledger_ttl_s)
    if is_open then
      redis.call('HSET', KEYS[4], id, one.name .. ' ' .. string.format('%.17g', usd) .. ' ' .. text(stamp_us)
        .. ' ' .. text(stamp_us + ttl_ms * 1000) .. ' 0')
      redis.call('HINCRBY', KEYS[4], ':rev', 1)
      total = total + usd
      if not held[one.name] and not waits[one.name] then
        waits[one.name] = true
        slots = slots + 1
      end
    end
  end
end

for item = 1, take_number() do
  local past = take_number()
  past = cursor + past
  local kind, entry, id, at = take(), take(), take(), take_number()
  local one, status, write = symbols[at], 'ok', nil
  local is_answer = kind == 'P' or kind == 'B'
  local tomb, tomb_json, tomb_ttl_ms, disarms, on_book, block, block_json, block_ttl_s
  if is_answer then tomb, tomb_json, tomb_ttl_ms = take_number(), take(), take_number() end
  if kind == 'B' then
    disarms, on_book = take() == '1', take() == '1'
    block, block_json, block_ttl_s = take_number(), take(), take_number()
  end
  if all_wait or (on_book and open_waits) or (id ~= '' and waiting_ids[id]) or (one and (one.waits or not one.same)) then
    status = 'moved'
  elseif is_answer and not holds(KEYS[tomb], 'string') then
    status = 'type'
  elseif is_answer and redis.call('EXISTS', KEYS[tomb]) == 1 then
    status = 'moved'
  elseif kind == 'P' then
    status, write = permit(one, id)
  end
  if status == 'ok' and kind ~= 'P' and not holds(KEYS[7], 'stream') and ARGV[cursor + 1] ~= '0' then status = 'type' end
  if status == 'ok' and redis.call('XACK', KEYS[6], group, entry) == 0 then status = 'gone' end
  if status == 'ok' then
    n_ok = n_ok + 1
    if write then write() end
    if tomb then
      redis.call('SET', KEYS[tomb], tomb_json .. ',"stamp_us":' .. text(stamp_us) .. '}', 'PX', tomb_ttl_ms)
    end
    if block then redis.call('SET', KEYS[block], block_json, 'EX', block_ttl_s) end
    if disarms then redis.call('SET', KEYS[1], 'reduce') end
    local first, last = take_list()
    if last >= first then redis.call('XADD', KEYS[7], 'MAXLEN', '~', maxlen, '*', unpack(ARGV, first, last)) end
    add_events(kind == 'P')
  elseif status ~= 'gone' or is_answer then  -- what was decided after it counted on it
    if id ~= '' then waiting_ids[id] = true end
    if one then one.waits = true end
    all_wait = all_wait or disarms == true
    open_waits = open_waits or kind == 'P'
  end
  statuses[item] = status
  cursor = past
end

if n_ok > 0 and has_book then
  if is_stable and time_us > watermark_us then redis.call('HSET', KEYS[4], ':watermark', text(time_us)) end
  if position ~= '' then redis.call('HSET', KEYS[4], ':pos', position) end
end
return {'ok', text(stamp_us), unpack(statuses)}
