#!lua
-- Puts permits back that a server has lost: tombstone, ledger entry, outstanding open, and their event.
-- What is there already stays as it is, so that several governors may do it at once.
--
-- KEYS  1 book  2 events, then two a permit: tombstone, ledger
-- ARGV  1 now_us  2 maxlen  3 ledger_ttl_s, then eleven a permit: plan_id symbol issued usd tombstone
--       tombstone_ttl_ms at_us until_us is_counted decision_id is_done
-- Answers with the number of ledger entries that were lacking, and of permits that a key of another type kept out.
local now_us = tonumber(ARGV[1])
local restored, failed = 0, 0
local function holds(key, kind)
  local found = redis.call('TYPE', key).ok
  return found == kind or found == 'none'
end
if not holds(KEYS[1], 'hash') or not holds(KEYS[2], 'stream') then return -1 end
for i = 0, (#ARGV - 3) / 11 - 1 do
  local at = 3 + i * 11
  local plan_id, symbol, issued, usd = ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]
  local tombstone, ttl_ms, at_us, until_us = ARGV[at + 5], ARGV[at + 6], ARGV[at + 7], ARGV[at + 8]
  local tomb_key, ledger_key = KEYS[3 + i * 2], KEYS[4 + i * 2]
  local there = holds(tomb_key, 'string') and redis.call('GET', tomb_key)
  if not holds(tomb_key, 'string') or not holds(ledger_key, 'hash') then
    failed = failed + 1
  elseif there and ARGV[at + 11] == '0' and not string.find(there, '"decision_id":"' .. ARGV[at + 10] .. '"', 1, true) then
    -- the id has another answer: what was only intended never was
  else
    if not there then
      redis.call('SET', tomb_key, tombstone .. ',"stamp_us":' .. at_us .. ',"restored":true}', 'PX', ttl_ms)
    end
    if ARGV[at + 9] == '1' and redis.call('HSETNX', ledger_key, plan_id, at_us .. ' ' .. issued) == 1 then
      restored = restored + 1
      redis.call('HINCRBY', ledger_key, ':rev', 1)
      redis.call('EXPIRE', ledger_key, ARGV[3])
      redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[2], '*', 'event', 'PERMIT', 'plan_id', plan_id, 'symbol', symbol,
        'reason', 'restored', 'timestamp', string.format('%.0f', math.floor(now_us / 1000000)),
        'ts', string.format('%.0f', math.floor(now_us / 1000000)), 'decision_id', ARGV[at + 10], 'issued_us', at_us)
    end
    -- whether it was consumed is lost: as if at the last moment, so that only position and portfolio can release it
    if usd ~= '' and ARGV[at + 9] == '1' and redis.call('HEXISTS', KEYS[1], plan_id) == 0 then
      redis.call('HSET', KEYS[1], plan_id, symbol .. ' ' .. usd .. ' ' .. at_us .. ' ' .. until_us .. ' ' .. until_us)
      redis.call('HINCRBY', KEYS[1], ':rev', 1)
    end
    local watermark = tonumber(redis.call('HGET', KEYS[1], ':watermark') or '0') or 0
    if tonumber(at_us) > watermark and tonumber(at_us) <= now_us then redis.call('HSET', KEYS[1], ':watermark', at_us) end
  end
end
return {restored, failed}
