// Package launcher is the contract between Slipway and the places where run workers run.
//
// A launcher starts workers in one kind of target (processes of this machine, containers of an
// engine, Jobs of a cluster) and reports on them. It has three methods that every target can offer,
// and optional abilities. Each ability is an interface of its own, which [As] finds.
//
// The idea: the name of a worker depends only on its run and attempt. So any process with the same
// settings finds any worker again, and a second Launch of one name cannot start a second worker. A
// launcher keeps nothing in memory that another process would need. It has no storage, and no
// retries, rate limits or deadlines of its own: every call goes through one function of package
// dispatch, which has them.
//
// Package launchertest holds the sentences of this contract as tests.
package launcher

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/slipway-run/slipway/config"
)

// A Launcher starts run workers in one kind of target and reports on them. Its methods are called
// from many goroutines at once, each with a context that has a deadline.
type Launcher interface {
	// Launch starts the worker of req.ID and returns at once, without waiting for it to run. A
	// second Launch of the same ID returns the same Launched and starts nothing. This holds at the
	// same time, later, from another process, and also after that worker has ended or was stopped.
	// The outcome is unknown if the context ended, or if the error is none of the sentinels below:
	// the caller then asks again with the same ID.
	Launch(ctx context.Context, req *Request) (Launched, error)
	// Terminate asks the worker to stop and returns without waiting. The worker gets a stop signal
	// now and is killed after grace; if grace is 0 it is killed at once. Terminate returns false if
	// the worker had already ended or is unknown. It may be called again, also with a shorter
	// grace.
	Terminate(ctx context.Context, h Handle, grace time.Duration) (bool, error)
	// Health observes the worker. A worker that the target does not know has status [NotFound]. An
	// error means that the target could not be asked; it tells nothing about the worker.
	Health(ctx context.Context, h Handle) (Health, error)
}

// Abilities, each of them optional.
type (
	// A Lister lists the workers of one instance. Built-in launchers are Listers except codeserver
	// and python; command and plugin depend on their settings.
	Lister interface {
		// List yields the workers that match f in no particular order, including ended workers that
		// the target still knows. It stops after an error.
		List(ctx context.Context, f Filter) iter.Seq2[Worker, error]
	}
	// A Finder finds the worker of a request. It is for targets that have no list of workers by
	// instance.
	Finder interface {
		// Find reports whether the worker of req.ID exists, and returns what Launch returned for
		// it.
		Find(ctx context.Context, req *Request) (Launched, bool, error)
	}
	// A Local launcher sees only the workers of one host, or of one engine. Its answers prove
	// nothing about others.
	Local interface {
		// Host names that host or engine. The name is the same for all launchers that see these
		// workers, differs from every other name, and has no blanks. "" means that the target has
		// no name: its answers count for all workers.
		//
		// Host may ask the target. An error means that the target could not be asked. It is called
		// before a worker is launched, and when a worker was not found.
		Host(ctx context.Context) (string, error)
	}
	// A Watcher reports changes as they happen.
	Watcher interface {
		// Watch first yields every worker that exists, then one Worker with Synced set, then each
		// worker whose health changes. It stops when ctx ends or after it yielded an error. After
		// an error the caller watches again.
		Watch(ctx context.Context) iter.Seq2[Worker, error]
	}
	// A Batcher answers for many workers in one request.
	Batcher interface {
		// HealthOf returns one Health for each handle, in the same order. An error concerns all of
		// them.
		HealthOf(ctx context.Context, hs []Handle) ([]Health, error)
	}
	// A Remover frees what the target keeps of ended workers.
	Remover interface {
		// Remove frees what the target keeps of an ended worker. If the worker is already gone,
		// that is no error. A worker that still runs is left alone, and Remove returns an error.
		Remove(ctx context.Context, h Handle) error
	}
	// A LogReader reads the output of workers.
	LogReader interface {
		// Logs reads what the worker wrote to its standard output and error. The caller closes the
		// reader. The error is [ErrNotFound] if the target does not know the worker or keeps no
		// output.
		Logs(ctx context.Context, h Handle, o LogOptions) (io.ReadCloser, error)
	}
	// A Describer returns debug information as a JSON object for people.
	Describer interface {
		Describe(ctx context.Context, h Handle, logs bool) (json.RawMessage, error)
	}
	// A Previewer returns what Launch would send to the target, with secrets redacted. It sends
	// nothing.
	Previewer interface {
		Preview(ctx context.Context, req *Request) (json.RawMessage, error)
	}
	// A Trier asks the target itself to check what Launch would send, without creating anything.
	Trier interface {
		// Try returns nil if the target would accept the request, else the target's objection.
		Try(ctx context.Context, req *Request) error
	}
	// A Checker looks for causes of failing launches: authentication, permissions, quota, image.
	Checker interface {
		Check(ctx context.Context) []Finding
	}
	// A Capacity reports how many more workers of a size fit.
	Capacity interface {
		Free(ctx context.Context, r Resources) (n int, known bool, err error)
	}
	// A Meter reports what a worker has cost so far, or in all if it has ended.
	Meter interface {
		Cost(ctx context.Context, h Handle) (Cost, error)
	}
	// A Divider starts workers at several places that fail independently, such as code servers. The
	// engine treats each place as a target of its own, and gives it one launch at a time.
	// PlaceOfRun and PlaceOf are pure; "" means no place in particular.
	Divider interface {
		// PlaceOfRun returns the place for a run, given the run's body.
		PlaceOfRun(run json.RawMessage) string
		// PlaceOf returns the place of a worker.
		PlaceOf(h Handle) string
		// Ping returns nil if the place answers. No run is launched at a place that does not
		// answer.
		Ping(ctx context.Context, place string) error
	}
	// An Adopter recognizes workers that another launcher started, by the tags that launcher left
	// on the run. It is pure.
	Adopter interface {
		Adopt(f Foreign) (Handle, bool)
	}
)

// As finds an ability of a launcher. Either the launcher implements it, or its method As(any) bool
// provides it: a launcher at the other end of a wire has such a method, and fills the ability that
// it gets a pointer to.
func As[T any](l Launcher) (T, bool) {
	if a, ok := l.(T); ok {
		return a, true
	}
	var a T
	if d, ok := l.(interface{ As(ability any) bool }); ok && d.As(&a) {
		return a, true
	}
	return a, false
}

// Handle names one worker on its target, in at most 512 bytes. Any process with the same settings
// can find the worker by its handle alone.
type Handle string

// MaxHandle is the maximum length of a handle, in bytes.
const MaxHandle = 512

// ID names a worker: the run, and the attempt, counted from 1.
type ID struct {
	Run     string
	Attempt int
}

// String returns the worker's default name on its target: DNS-safe and at most 63 bytes long.
func (id ID) String() string { return fmt.Sprintf("dagster-run-%s-%d", id.RunName(), id.Attempt) }

// ParseID parses what [ID.String] returned.
func ParseID(s string) (ID, bool) {
	rest, ok := strings.CutPrefix(s, "dagster-run-")
	i := strings.LastIndexByte(rest, '-')
	if !ok || i < 1 {
		return ID{}, false
	}
	n, err := strconv.Atoi(rest[i+1:])
	id := ID{Run: runOf(rest[:i]), Attempt: n}
	return id, err == nil && id.String() == s && id.Check() == nil
}

// Check returns nil if the ID can name a worker. Dagster's run IDs are UUIDs and can.
func (id ID) Check() error {
	if !runName.MatchString(id.RunName()) || id.Attempt < 1 || id.Attempt > 9999 {
		return fmt.Errorf("%w: run ID %q with attempt %d cannot name a worker", ErrInvalid, id.Run, id.Attempt)
	}
	return nil
}

// Env is one environment variable of a worker. The value of a Secret is never shown.
type Env struct {
	Name, Value string
	Secret      bool
}

// Request is everything that a launcher learns about a worker. A launcher does not change it.
type Request struct {
	ID        ID
	Token     string // the token of the launch row; the gate compares it
	Instance  string // recorded on every worker; a launcher never touches a worker of another instance
	Command   []string
	Dir       string // working directory; only if the worker sees the daemon's files (Traits.LocalFiles)
	Env       []Env  // in order; if a name occurs twice, the last one wins
	Image     string // from code location, rule, tag or a member image of raw settings: the strongest
	Labels    map[string]string
	Resources Resources
	Nodes     map[string]string // labels that the worker's node must have; only for launchers with Traits.Nodes

	Job, Location, Repository, DagsterVersion string

	Overrides []Override    // later ones win; the launcher decodes them
	Grace     time.Duration // between stop and kill, for targets that fix it at launch
	At        time.Time     // time of the claim; the only time that a spec may contain
	Warm      string        // workers with equal keys may share a warm parent; "" means never

	Run, InstanceRef json.RawMessage // run body and patched InstanceRef, for launchers that pass them on
	Resume           bool            // the command continues a run whose worker died
}

// Check returns nil if a launcher could accept the request: it names a worker, its instance and, as
// a rule, a command. The error is an [ErrInvalid].
func (r *Request) Check() error {
	if err := r.ID.Check(); err != nil {
		return err
	}
	if len(r.Command) == 0 || r.Instance == "" {
		return fmt.Errorf("%w: the request for %s has no command or no instance", ErrInvalid, r.ID)
	}
	return nil
}

// GateEnv is the variable that a gated worker shows at its gate. Its value is "<attempt> <token>".
const GateEnv = "SLIPWAY_GATE"

// Override is raw settings for one run and their source: a container_context section, a tag or a
// route.
type Override struct {
	Source string
	JSON   json.RawMessage
}

// Resources is what a worker asks for. Zero means the launcher's default.
type Resources struct {
	CPUMillis, MemoryBytes, GPUs, DiskBytes int64
}

// Launched is the outcome of a Launch that a target accepted.
type Launched struct {
	Handle Handle
	Tags   map[string]string // for the run; facts that Dagster's own launchers record, such as docker/container_id
	Notes  []Note            // each becomes an engine event
}

// Note is a text for people about a launch.
type Note struct {
	Text     string
	Metadata [][2]string // label, value
}

// Status is what the target reports about a worker.
type Status string

// The statuses. A worker that is Starting or Running is alive. One that is Succeeded or Failed has
// ended. NotFound and Unknown prove neither.
const (
	Starting  Status = "Starting"
	Running   Status = "Running"
	Succeeded Status = "Succeeded"
	Failed    Status = "Failed"
	NotFound  Status = "NotFound" // the target answered that it knows no such worker
	Unknown   Status = "Unknown"  // the target cannot tell at the moment
)

// Ended reports whether the target itself has seen the worker end. That is proof, unlike NotFound
// and Unknown.
func (s Status) Ended() bool { return s == Succeeded || s == Failed }

// Alive reports whether the worker may still do something.
func (s Status) Alive() bool { return s == Starting || s == Running }

// Phase is how far the start of a worker has come.
type Phase string

// The phases, in order.
const (
	Accepted     Phase = "Accepted"
	Scheduled    Phase = "Scheduled"
	Pulling      Phase = "Pulling"
	Pulled       Phase = "Pulled"
	PhaseStarted Phase = "Started"
)

// Cause is why a worker ended, if the target knows.
type Cause string

// The causes.
const (
	CauseOOM           Cause = "oom"
	CauseEvicted       Cause = "evicted"
	CausePreempted     Cause = "preempted"
	CauseImagePull     Cause = "image_pull"
	CauseUnschedulable Cause = "unschedulable"
	CauseQuota         Cause = "quota"
	CauseThrottled     Cause = "throttled"
	CauseAuth          Cause = "auth"
	CauseNodeLost      Cause = "node_lost"
	CauseTimeout       Cause = "timeout"
	CauseUserCode      Cause = "user_code"
	CauseCanceled      Cause = "canceled"
	CauseExit          Cause = "exit"
	CauseUnknown       Cause = "unknown"
)

// Causes lists all causes.
func Causes() []Cause {
	return []Cause{
		CauseOOM, CauseEvicted, CausePreempted, CauseImagePull, CauseUnschedulable, CauseQuota, CauseThrottled,
		CauseAuth, CauseNodeLost, CauseTimeout,
		CauseUserCode, CauseCanceled, CauseExit, CauseUnknown,
	}
}

// Health is what the target reports about one worker at one moment.
type Health struct {
	Status         Status
	Phase          Phase
	Cause          Cause  // only of an ended worker
	Message        string // the target's own words
	Exit           *int   // exit code; nil if the target has none
	Incarnation    string // changes when the platform restarts the worker in place
	Started, Ended time.Time
	Usage          Usage
	Tail           []string // the last lines that an ended worker wrote
}

// String returns the known facts about the worker, for messages: Failed exit=3 cause=exit
// message="no rows".
func (h Health) String() string {
	var b strings.Builder
	b.WriteString(cmp.Or(string(h.Status), "no status"))
	add := func(known bool, format string, args ...any) {
		if known {
			fmt.Fprintf(&b, " "+format, args...)
		}
	}
	add(h.Phase != "", "phase=%s", h.Phase)
	if h.Exit != nil {
		add(true, "exit=%d", *h.Exit)
	}
	add(h.Cause != "", "cause=%s", h.Cause)
	add(h.Message != "", "message=%q", h.Message)
	add(h.Incarnation != "", "incarnation=%s", h.Incarnation)
	add(!h.Started.IsZero(), "started=%s", h.Started.Format(time.RFC3339Nano))
	add(!h.Ended.IsZero(), "ended=%s", h.Ended.Format(time.RFC3339Nano))
	add(h.Usage.CPU != 0, "cpu=%s", h.Usage.CPU)
	add(h.Usage.MaxMemoryBytes != 0, "max_memory_bytes=%d", h.Usage.MaxMemoryBytes)
	add(h.Tail != nil, "tail=%q", h.Tail)
	return b.String()
}

// Usage is what a worker used. Zero means unknown.
type Usage struct {
	CPU            time.Duration
	MaxMemoryBytes int64
}

// Cost is what a target bills for a worker.
type Cost struct {
	CPUSeconds, GBSeconds float64
	Amount                float64 // 0 means that the price is not known
	Currency              string
	AsOf                  string // date of the prices
}

// Worker is one worker of a List or Watch.
type Worker struct {
	ID       ID
	Instance string
	Handle   Handle
	Health   Health
	Synced   bool // only set on the mark that Watch yields after the existing workers; no other field is set then
}

// Filter selects workers. Instance is always set. If Runs is nil, the filter selects all runs.
type Filter struct {
	Instance string
	Runs     []string
}

// Wants reports whether the filter selects the workers of a run.
func (f Filter) Wants(run string) bool { return f.Runs == nil || slices.Contains(f.Runs, run) }

// LogOptions selects the part of the output to read.
type LogOptions struct {
	Tail   int  // number of last lines; 0 means everything
	Follow bool // continue until the worker ends or the reader is closed
}

// Finding is one result of a Check.
type Finding struct {
	OK        bool
	What, Fix string
}

// Foreign is the tags that another launcher left on a run.
type Foreign struct {
	Run  string
	Tags map[string]string
}

// The errors, each with one consequence. A launcher joins them to the target's own error with %w.
var (
	// ErrInvalid: the request can never work. The run fails.
	ErrInvalid = errors.New("invalid request")
	// ErrDenied: the target refuses every request or cannot be reached, and nothing was created.
	// The launcher is sick until a call is answered. The run goes to the next target or back to the
	// queue. See [Unreached].
	ErrDenied = errors.New("denied by the target")
	// ErrCapacity: there is no room. Nothing exists and nothing will. The run goes to the next
	// target or back to the queue.
	ErrCapacity = errors.New("no capacity")
	// ErrTransient: ask again later with the same ID. The outcome is unknown.
	ErrTransient = errors.New("transient failure")
	// ErrNotFound: the target does not know this worker. This is an answer, not a failure.
	ErrNotFound = errors.New("no such worker")
	// ErrPending: nothing exists yet. The target is preparing something that the worker needs, such
	// as its image. Ask again with the same ID. See [Pending].
	ErrPending = errors.New("the target is preparing")
)

// Traits are what a kind of target promises, to the engine and to the kit. The kit reports a
// sentence that the traits rule out as not promised.
type Traits struct {
	Unique        bool // the target itself refuses a second worker with the same name
	StrongRead    bool // after an accepted Launch a look-up always finds the worker
	Restarts      bool // the platform may restart a worker in place
	LocalFiles    bool // the worker sees the daemon's files
	SignalsWorker bool // Terminate reaches the worker's process as SIGTERM
	Gate          bool // its workers can be gated
	Nodes         bool // it puts workers on nodes that have the requested labels
	WritesStorage bool // the launcher writes Dagster's rows itself
	OwnCommand    bool // it builds the worker's command itself from Run and InstanceRef; Request has none
	MaxCommand    int  // maximum length of one argument in bytes; 0 means no known limit
	Keep          time.Duration
	// LateStart is how long the worker may still appear after a Launch without an answer. It is for
	// targets that would start a second worker if asked again: the absence of the worker counts,
	// and it is launched again, only after this time. 0 means that the target refuses a second
	// worker, so it is asked again at once.
	LateStart time.Duration
}

// Kind declares a kind of launcher.
type Kind struct {
	Name, Help string
	Schema     []config.Field
	Tags       []string // run tags with overrides for this kind
	StockTags  bool     // Dagster's own launcher obeys these tags: they are allowed unless allow.tags is set
	Context    string   // name of its section of container_context
	Traits     Traits
	Remove     string // default of a launcher's setting remove; "" is a day
	// Stock is Dagster's own launcher whose config this kind accepts unchanged, as module.Class. It
	// is *.Class if guides let people write the class themselves. Several are separated by spaces;
	// "" means none.
	Stock string
	// Steps returns the class and config of Dagster's own launcher. Step executors of the target
	// look for it in the instance that a worker sees. nil if the kind has none.
	Steps func(v config.Values) (Class, error)
	// FailsWithRun reports whether these settings make workers exit with an error when their run
	// fails. nil means that they never do.
	FailsWithRun func(v config.Values) bool
	// Open checks the settings and returns a launcher. It sends no request to the target. The
	// caller calls [Close].
	Open func(ctx context.Context, v config.Values, log *slog.Logger) (Launcher, error)
}

// KindOf returns the kind that l declares by a method Declared, else the kind k it was opened with.
// Launchers that are programs of their own, or whose kind depends on their settings, have that
// method.
func KindOf(k *Kind, l Launcher) *Kind {
	if d, ok := l.(interface{ Declared() *Kind }); ok {
		return d.Declared()
	}
	return k
}

// HealthOfEach implements HealthOf of a [Batcher] for a target that answers for one worker at a
// time. It asks n at once.
func HealthOfEach(ctx context.Context, l Launcher, hs []Handle, n int) ([]Health, error) {
	out := make([]Health, len(hs))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(n)
	for i, h := range hs {
		g.Go(func() (err error) {
			out[i], err = l.Health(ctx, h)
			return err
		})
	}
	return out, g.Wait()
}

// Close frees what an open launcher holds in this process, if anything. Workers are not affected.
func Close(l Launcher) error {
	if c, ok := l.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

// Class names a Python class of Dagster's instance, and its config. The config contains no secrets.
type Class struct {
	Module, Name string
	Config       map[string]any
}
