-- Runs on every request that comes in.
function envoy_on_request(handle)
  local headers = handle:headers()

  -- The client's own X-Request-Id was put aside; Envoy made a fresh one. The client's is kept if it
  -- is one word of sane length, so that logs stay readable.
  local sent = headers:get("x-vlserve-sent-request-id")
  if sent and #sent <= 128 and not sent:find("[^%w%-_.:]") then
    headers:replace("x-request-id", sent)
  end

  -- For the access log: routes rewrite the path to the version's own, engine.lua drops the key.
  local noted = handle:streamInfo():dynamicMetadata()
  noted:set("vlserve", "path", headers:get(":path"):match("^[^?]*"))
  local caller = headers:get("x-sticky-key")
  if caller and caller ~= "" then
    noted:set("vlserve", "caller", caller:sub(1, 256))
  end
end
