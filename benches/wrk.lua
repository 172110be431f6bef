-- Sends one new short sentence per request. Arguments after --: the encoding format and the model.
local words = {}
for word in ([[the of and to in is that for it was on are as with they at be this from have or by one had not but what all
were when we there can an your which their said if do will each about how up out them then she many some so these would other
into has more her two like him see time could no make than first been its who now people my made over did down only way find
use may water long little very after called just where most know get through back much before go good new write our used me man
too any day same right look think also around another came come work three word because does part even place well such here take
why things help put years different away again off went old number great tell men say small every found still between name should]]):gmatch("%S+") do
  words[#words + 1] = word
end

local format, model, prefix

function setup(thread)
  count = (count or 0) + 1
  thread:set("id", count)
end

function init(args)
  format, model = args[1], args[2]
  math.randomseed(os.time() + id * 7919)
  wrk.method, wrk.path = "POST", "/v1/embeddings"
  wrk.headers["Content-Type"] = "application/json"
end

function request()
  local text = {}
  for i = 1, 11 do text[i] = words[math.random(#words)] end
  return wrk.format(nil, nil, nil, '{"input":"' .. table.concat(text, " ") .. '","model":"' .. model .. '","encoding_format":"' .. format .. '"}')
end
