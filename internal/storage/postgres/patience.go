package postgres

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// patience is how long a statement waits for its answer if the caller sets no deadline. A
// connection may stay open although the answer was lost, for example behind a pooler or a proxy
// that was itself cut off. The connection is closed then.
type patience time.Duration

// answerWithin is above what any statement of ours takes.
const answerWithin = patience(time.Minute)

type patienceEnds struct{}

func (p patience) begin(ctx context.Context) context.Context {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(p))
	return context.WithValue(ctx, patienceEnds{}, cancel)
}

func (p patience) end(ctx context.Context) {
	if cancel, ok := ctx.Value(patienceEnds{}).(context.CancelFunc); ok {
		cancel()
	}
}

// TraceQueryStart implements [pgx.QueryTracer].
func (p patience) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return p.begin(ctx)
}

// TraceQueryEnd implements [pgx.QueryTracer].
func (p patience) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryEndData) {
	p.end(ctx)
}

// TraceBatchStart implements [pgx.BatchTracer].
func (p patience) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	return p.begin(ctx)
}

// TraceBatchQuery implements [pgx.BatchTracer].
func (patience) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}

// TraceBatchEnd implements [pgx.BatchTracer].
func (p patience) TraceBatchEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchEndData) {
	p.end(ctx)
}

var _ pgx.BatchTracer = answerWithin
