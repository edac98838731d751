-- Makes wrk end with one line of JSON. Its own report rounds, and needs units parsed.
function done(summary, latency, requests)
    local errors = summary.errors
    io.write(string.format(
        '{"requests": %d, "seconds": %.6f, "errors": %d, "p50_us": %.0f, "p99_us": %.0f}\n',
        summary.requests, summary.duration / 1e6,
        errors.connect + errors.read + errors.write + errors.status + errors.timeout,
        latency:percentile(50), latency:percentile(99)))
end
