-- One request again and again: a chat of about 1 KB, or with BODY_FILE that file. Environment: KEY, MODEL, STREAM=1;
-- BODY_FILE, REQUEST_PATH, REQUEST_HEADERS (lines "name: value").
local key = os.getenv("KEY") or ""
local model = os.getenv("MODEL") or "bench-unary"
local stream = os.getenv("STREAM") == "1" and ',"stream":true,"stream_options":{"include_usage":true}' or ""
local sentence = "Please summarise the following paragraph for the weekly note. "

wrk.method = "POST"
wrk.path = os.getenv("REQUEST_PATH") or "/v1/chat/completions"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer " .. key
for name, value in (os.getenv("REQUEST_HEADERS") or ""):gmatch("([^:\n]+): *([^\n]+)") do
  wrk.headers[name] = value
end
if os.getenv("BODY_FILE") then
  local file = assert(io.open(os.getenv("BODY_FILE"), "rb"))
  wrk.body = file:read("*a")
  file:close()
else
  wrk.body = '{"model":"' .. model .. '","messages":[{"role":"system","content":"You are a careful assistant."},'
    .. '{"role":"user","content":"' .. string.rep(sentence, 12) .. '"}],"temperature":0.2,"max_tokens":256'
    .. stream .. "}"
end

done = function(summary, latency, _)
  local errors = summary.errors
  io.write(string.format(
    'JSON {"requests":%d,"duration_us":%d,"p50_us":%d,"p99_us":%d,"errors":%d}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
