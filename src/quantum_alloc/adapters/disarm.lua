#!lua
-- Sets the kill switch to reduce where it is off, and tells of it; never lowers a HALT.
-- KEYS  1 kill  2 events      ARGV  1 maxlen, then the fields of the event
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'none' and kind ~= 'string' then return 0 end
local value = redis.call('GET', KEYS[1])
if value and value ~= '' and value ~= '0' and value ~= 'false' and value ~= 'off' then return 0 end
redis.call('SET', KEYS[1], 'reduce')
local events = redis.call('TYPE', KEYS[2]).ok
if events == 'none' or events == 'stream' then
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[1], '*', unpack(ARGV, 2))
end
return 1
