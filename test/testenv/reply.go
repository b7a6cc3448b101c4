package testenv

import (
	"encoding/json"
	"net/http"
)

// Reply answers a request in a test with JSON: with body as it is if it is a []byte, and else with
// its encoding. What was written is sent at once. The client may have left by then, which is no
// fault of the server, so errors of writing are ignored. A body that JSON cannot hold panics.
func Reply(w http.ResponseWriter, code int, body any) {
	text, raw := body.([]byte)
	if !raw {
		var err error
		if text, err = json.Marshal(body); err != nil {
			panic(err)
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(text)
	_ = http.NewResponseController(w).Flush()
}
