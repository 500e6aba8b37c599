#!lua
-- Writes the kill switch's latch, unless there is one or somebody has rearmed in the meantime.
-- KEYS  1 latch  2 rearm  3 events      ARGV  1 rearm as seen  2 since  3 by  4 why  5 timestamp  6 maxlen
local latch = redis.call('TYPE', KEYS[1]).ok
if latch ~= 'none' then return 0 end
local rearm = redis.call('TYPE', KEYS[2]).ok
if rearm ~= 'none' and rearm ~= 'hash' then return 0 end
local at = rearm == 'hash' and redis.call('HGET', KEYS[2], 'at') or false
if (at or '') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'state', 'HALT', 'since', ARGV[2], 'by', ARGV[3], 'why', ARGV[4], 'ts', string.match(ARGV[2], '^%d+'))
local events = redis.call('TYPE', KEYS[3]).ok
if events == 'none' or events == 'stream' then
  redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[6], '*', 'event', 'KILL', 'plan_id', '', 'symbol', '',
    'reason', 'latched', 'timestamp', ARGV[5], 'ts', ARGV[5], 'state', 'HALT', 'by', ARGV[3], 'why', ARGV[4])
end
return 1
