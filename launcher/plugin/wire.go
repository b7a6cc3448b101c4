package plugin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/launcher"
	pb "github.com/slipway-run/slipway/proto/launcher"
)

// codesOf pairs the contract's errors with gRPC codes.
var codesOf = []struct {
	err  error
	code codes.Code
}{
	{launcher.ErrInvalid, codes.InvalidArgument},
	{launcher.ErrDenied, codes.PermissionDenied},
	{launcher.ErrCapacity, codes.ResourceExhausted},
	{launcher.ErrTransient, codes.Unavailable},
	{launcher.ErrNotFound, codes.NotFound},
	{launcher.ErrPending, codes.FailedPrecondition},
	{context.Canceled, codes.Canceled},
	{context.DeadlineExceeded, codes.DeadlineExceeded},
	{errors.ErrUnsupported, codes.Unimplemented},
}

// toWire returns err in the form that crosses the wire. at is the path of the settings, for errors
// of Open.
func toWire(err error, at string) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	code := codes.Unknown
	for _, c := range codesOf {
		if errors.Is(err, c.err) {
			code = c.code
			break
		}
	}
	detail := &pb.ErrorDetail{Cause: string(launcher.CauseOf(err)), Notes: notesOut(launcher.Notes(err))}
	if after, ok := launcher.RetryAfter(err); ok {
		detail.RetryAfterUs = max(1, after.Microseconds())
	}
	for _, p := range config.Problems(err) {
		detail.Problems = append(detail.Problems, &pb.Problem{Setting: cutPath(p.Setting, at), Text: p.Text})
	}
	s := status.New(code, err.Error())
	if with, derr := s.WithDetails(detail); derr == nil {
		s = with
	}
	return s.Err()
}

// remoteError is an error that came over the wire, with the text of the other side.
type remoteError struct {
	kind error
	text string
}

func (e *remoteError) Error() string { return e.text }
func (e *remoteError) Unwrap() error { return e.kind }

// fromWire reads an error that [toWire] or a program in another language made. An error of the
// connection is a [launcher.ErrTransient].
func fromWire(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	s, ok := status.FromError(err)
	if !ok {
		return err
	}
	var out error = &remoteError{text: s.Message()}
	for _, c := range codesOf {
		if s.Code() == c.code {
			out = &remoteError{kind: c.err, text: s.Message()}
		}
	}
	for _, d := range s.Details() {
		d, ok := d.(*pb.ErrorDetail)
		if !ok {
			continue
		}
		if d.Cause != "" {
			out = launcher.WithCause(out, launcher.Cause(d.Cause))
		}
		after := time.Duration(d.RetryAfterUs) * time.Microsecond
		if errors.Is(out, launcher.ErrPending) {
			out = launcher.Pending(after, notesIn(d.Notes)...)
		} else if after > 0 {
			out = launcher.WithRetryAfter(out, after)
		}
	}
	return out
}

func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

func moment(us int64) time.Time {
	if us == 0 {
		return time.Time{}
	}
	return time.UnixMicro(us).UTC()
}

func span(us int64) time.Duration { return time.Duration(us) * time.Microsecond }

func traitsOut(t launcher.Traits) *pb.Traits {
	return &pb.Traits{
		Unique: t.Unique, StrongRead: t.StrongRead, Restarts: t.Restarts, LocalFiles: t.LocalFiles,
		SignalsWorker: t.SignalsWorker, Nodes: t.Nodes, Gate: t.Gate,
		WritesStorage: t.WritesStorage, OwnCommand: t.OwnCommand, MaxCommand: int64(t.MaxCommand),
		KeepUs: t.Keep.Microseconds(), SettleUs: t.LateStart.Microseconds(),
	}
}

func traitsIn(t *pb.Traits) launcher.Traits {
	return launcher.Traits{
		Unique: t.GetUnique(), StrongRead: t.GetStrongRead(), Restarts: t.GetRestarts(), LocalFiles: t.GetLocalFiles(),
		SignalsWorker: t.GetSignalsWorker(), Nodes: t.GetNodes(), Gate: t.GetGate(),
		WritesStorage: t.GetWritesStorage(), OwnCommand: t.GetOwnCommand(), MaxCommand: int(t.GetMaxCommand()),
		Keep: span(t.GetKeepUs()), LateStart: span(t.GetSettleUs()),
	}
}

func settingsOut(fields []config.Field) []*pb.Setting {
	var out []*pb.Setting
	for _, f := range fields {
		s := &pb.Setting{Name: f.Name, Type: f.Type, DefaultValue: f.Default, Help: f.Help, Required: f.Required,
			Fields: settingsOut(f.Fields)}
		if f.Item != nil {
			s.Item = settingsOut([]config.Field{*f.Item})[0]
		}
		out = append(out, s)
	}
	return out
}

func settingsIn(settings []*pb.Setting) []config.Field {
	var out []config.Field
	for _, s := range settings {
		f := config.Field{Name: s.Name, Type: s.Type, Default: s.DefaultValue, Help: s.Help, Required: s.Required,
			Fields: settingsIn(s.Fields)}
		if s.Item != nil {
			f.Item = &settingsIn([]*pb.Setting{s.Item})[0]
		}
		out = append(out, f)
	}
	return out
}

func idIn(id *pb.ID) launcher.ID {
	return launcher.ID{Run: id.GetRun(), Attempt: int(id.GetAttempt())}
}

func idOut(id launcher.ID) *pb.ID {
	attempt := int32(min(id.Attempt, 1<<30)) //nolint:gosec // an attempt has at most four digits
	return &pb.ID{Run: id.Run, Attempt: attempt}
}

func resourcesIn(r *pb.Resources) launcher.Resources {
	return launcher.Resources{CPUMillis: r.GetCpuMillis(), MemoryBytes: r.GetMemoryBytes(), GPUs: r.GetGpus(),
		DiskBytes: r.GetDiskBytes()}
}

func resourcesOut(r launcher.Resources) *pb.Resources {
	return &pb.Resources{CpuMillis: r.CPUMillis, MemoryBytes: r.MemoryBytes, Gpus: r.GPUs, DiskBytes: r.DiskBytes}
}

func requestOut(r *launcher.Request) *pb.Request {
	out := &pb.Request{
		Id: idOut(r.ID), Token: r.Token, Instance: r.Instance, Command: r.Command, Dir: r.Dir, Image: r.Image,
		Labels: r.Labels, Resources: resourcesOut(r.Resources),
		Job: r.Job, Location: r.Location, Repository: r.Repository, DagsterVersion: r.DagsterVersion,
		GraceUs: r.Grace.Microseconds(), AtUs: micros(r.At),
		Nodes: r.Nodes, Warm: r.Warm, Run: r.Run, InstanceRef: r.InstanceRef, Resume: r.Resume,
	}
	for _, e := range r.Env {
		out.Env = append(out.Env, &pb.Env{Name: e.Name, Value: e.Value, Secret: e.Secret})
	}
	for _, o := range r.Overrides {
		out.Overrides = append(out.Overrides, &pb.Override{Source: o.Source, Json: o.JSON})
	}
	return out
}

func requestIn(r *pb.Request) *launcher.Request {
	out := &launcher.Request{
		ID: idIn(r.Id), Token: r.Token, Instance: r.Instance, Command: r.Command, Dir: r.Dir, Image: r.Image,
		Labels: r.Labels, Resources: resourcesIn(r.Resources),
		Job: r.Job, Location: r.Location, Repository: r.Repository, DagsterVersion: r.DagsterVersion,
		Grace: span(r.GraceUs), At: moment(r.AtUs),
		Nodes: r.Nodes, Warm: r.Warm, Run: r.Run, InstanceRef: r.InstanceRef, Resume: r.Resume,
	}
	for _, e := range r.Env {
		out.Env = append(out.Env, launcher.Env{Name: e.Name, Value: e.Value, Secret: e.Secret})
	}
	for _, o := range r.Overrides {
		out.Overrides = append(out.Overrides, launcher.Override{Source: o.Source, JSON: o.Json})
	}
	return out
}

func notesOut(notes []launcher.Note) []*pb.Note {
	var out []*pb.Note
	for _, n := range notes {
		note := &pb.Note{Text: n.Text}
		for _, m := range n.Metadata {
			note.Metadata = append(note.Metadata, &pb.Metadata{Label: m[0], Value: m[1]})
		}
		out = append(out, note)
	}
	return out
}

func notesIn(notes []*pb.Note) []launcher.Note {
	var out []launcher.Note
	for _, n := range notes {
		note := launcher.Note{Text: n.Text}
		for _, m := range n.Metadata {
			note.Metadata = append(note.Metadata, [2]string{m.Label, m.Value})
		}
		out = append(out, note)
	}
	return out
}

func launchedOut(l launcher.Launched) *pb.Launched {
	return &pb.Launched{Handle: string(l.Handle), Tags: l.Tags, Notes: notesOut(l.Notes)}
}

// launchedIn refuses a handle that cannot be stored.
func launchedIn(l *pb.Launched) (launcher.Launched, error) {
	out := launcher.Launched{Handle: launcher.Handle(l.GetHandle()), Tags: l.GetTags(), Notes: notesIn(l.GetNotes())}
	if n := len(out.Handle); n == 0 || n > launcher.MaxHandle {
		return out, fmt.Errorf("the launcher's handle has %d bytes; 1 to %d are expected", n, launcher.MaxHandle)
	}
	return out, nil
}

func healthOut(h launcher.Health) *pb.HealthReply {
	out := &pb.HealthReply{
		Status: string(h.Status), Phase: string(h.Phase), Cause: string(h.Cause), Message: h.Message,
		Incarnation: h.Incarnation,
		StartedUs:   micros(h.Started), EndedUs: micros(h.Ended), CpuUs: h.Usage.CPU.Microseconds(),
		MaxMemoryBytes: h.Usage.MaxMemoryBytes, Tail: h.Tail,
	}
	if h.Exit != nil {
		code := int32(*h.Exit) //nolint:gosec // an exit code
		out.Exit = &code
	}
	return out
}

// healthIn reads a health. A status that the contract does not have becomes Unknown.
func healthIn(h *pb.HealthReply) launcher.Health {
	out := launcher.Health{
		Status: launcher.Status(h.GetStatus()), Phase: launcher.Phase(h.GetPhase()),
		Cause: launcher.Cause(h.GetCause()), Message: h.GetMessage(), Incarnation: h.GetIncarnation(),
		Started: moment(h.GetStartedUs()), Ended: moment(h.GetEndedUs()),
		Usage: launcher.Usage{CPU: span(h.GetCpuUs()), MaxMemoryBytes: h.GetMaxMemoryBytes()}, Tail: h.GetTail(),
	}
	switch out.Status {
	case launcher.Starting, launcher.Running, launcher.Succeeded, launcher.Failed, launcher.NotFound, launcher.Unknown:
	default:
		out.Message = fmt.Sprintf("the launcher gave the status %q, which there is not; %s", out.Status, out.Message)
		out.Status = launcher.Unknown
	}
	if h.GetExit() != 0 || h != nil && h.Exit != nil {
		code := int(h.GetExit())
		out.Exit = &code
	}
	return out
}

func workerOut(w launcher.Worker) *pb.Worker {
	return &pb.Worker{Id: idOut(w.ID), Instance: w.Instance, Handle: string(w.Handle), Health: healthOut(w.Health),
		Synced: w.Synced}
}

func workerIn(w *pb.Worker) launcher.Worker {
	if w.Synced {
		return launcher.Worker{Synced: true}
	}
	return launcher.Worker{ID: idIn(w.Id), Instance: w.Instance, Handle: launcher.Handle(w.Handle),
		Health: healthIn(w.Health)}
}
