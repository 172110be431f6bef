-- Sends one new short text per request. Arguments after --: a file of words (one line per language), the model and the encoding format.
local languages, prefix, suffix = {}, nil, nil
local threads = 0

function setup(thread)
  threads = threads + 1
  thread:set("id", threads)
end

function init(args)
  for line in io.lines(args[1]) do
    local words = {}
    for word in line:gmatch("%S+") do words[#words + 1] = word end
    languages[#languages + 1] = words
  end
  math.randomseed(os.time() + id * 7919)
  wrk.method, wrk.path = "POST", "/v1/embeddings"
  wrk.headers["Content-Type"] = "application/json"
  prefix, suffix = '{"input":"', '","model":"' .. args[2] .. '","encoding_format":"' .. args[3] .. '"}'
end

function request()
  local words, text, bytes = languages[math.random(#languages)], {}, 0
  repeat
    text[#text + 1] = words[math.random(#words)]
    bytes = bytes + #text[#text] + 1
  until bytes >= 55
  return wrk.format(nil, nil, nil, prefix .. table.concat(text, " ") .. suffix)
end
