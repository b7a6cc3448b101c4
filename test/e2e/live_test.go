//go:build real

package e2e_test

import (
	"context"
	"iter"
	"strings"

	"github.com/coder/websocket"
	"github.com/coder/websocket/wsjson"

	"github.com/slipway-run/slipway/internal/webserver"
)

// liveLog yields the events of a run as the webserver sends them to the page of the run, until ctx
// ends.
func liveLog(ctx context.Context, s *webserver.Server, run string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		url := strings.Replace(s.URL, "http", "ws", 1) + "/graphql"
		conn, _, err := websocket.Dial(ctx, url, &websocket.DialOptions{Subprotocols: []string{"graphql-ws"}})
		if err != nil {
			yield("", err)
			return
		}
		defer func() { _ = conn.CloseNow() }()
		conn.SetReadLimit(-1) // one message may hold many events
		for _, m := range []map[string]any{
			{"type": "connection_init", "payload": map[string]any{}},
			{"type": "start", "id": "1", "payload": map[string]any{
				"variables": map[string]any{"run": run},
				"query": `subscription ($run: ID!) {pipelineRunLogs(runId: $run) {... on ` +
					`PipelineRunLogsSubscriptionSuccess {messages {... on MessageEvent {message eventType}}} ... on ` +
					`PipelineRunLogsSubscriptionFailure {message}}}`,
			}},
		} {
			if err := wsjson.Write(ctx, conn, m); err != nil {
				yield("", err)
				return
			}
		}
		for {
			var got struct {
				Payload struct {
					Data struct {
						PipelineRunLogs struct {
							Messages []webserver.Event
							Message  string
						}
					}
				}
			}
			if err := wsjson.Read(ctx, conn, &got); err != nil {
				if ctx.Err() == nil {
					yield("", err)
				}
				return
			}
			for _, e := range got.Payload.Data.PipelineRunLogs.Messages {
				if !yield(e.EventType+" "+e.Message, nil) {
					return
				}
			}
		}
	}
}
