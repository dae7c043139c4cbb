-- One chat request of about 1 KB, again and again. Environment: KEY, MODEL, STREAM=1.
local key = os.getenv("KEY") or ""
local model = os.getenv("MODEL") or "bench-unary"
local stream = os.getenv("STREAM") == "1" and ',"stream":true,"stream_options":{"include_usage":true}' or ""
local sentence = "Please summarise the following paragraph for the weekly note. "

wrk.method = "POST"
wrk.path = "/v1/chat/completions"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer " .. key
wrk.body = '{"model":"' .. model .. '","messages":[{"role":"system","content":"You are a careful assistant."},'
  .. '{"role":"user","content":"' .. string.rep(sentence, 12) .. '"}],"temperature":0.2,"max_tokens":256'
  .. stream .. "}"

done = function(summary, latency, _)
  local errors = summary.errors
  io.write(string.format(
    'JSON {"requests":%d,"duration_us":%d,"p50_us":%d,"p99_us":%d,"errors":%d}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
