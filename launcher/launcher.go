// Package launcher is the contract between Slipway and the places where run workers run.
//
// A launcher starts workers in one kind of target (processes of this machine, containers of an
// engine, Jobs of a cluster) and answers for them. It has three methods that every target can
// offer, and optional abilities, each an interface of its own, that [As] finds.
//
// What it rests on: a worker is named after its run and attempt, purely, so that any process
// with the same settings finds any worker again and a second Launch of one name cannot start a
// second worker. A launcher keeps nothing in memory that another process would need, has no
// storage, and does no retries, rate limits or deadlines of its own: package dispatch puts
// every call through one place that does.
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

// A Launcher starts run workers in one kind of target and answers for them. Its methods are
// called from many goroutines at once, each with a context that has a deadline.
type Launcher interface {
	// Launch starts the worker of req.ID and returns at once, without waiting for it to run. A second
	// Launch of the same ID, at the same time, later or from another process, returns the same
	// Launched and starts nothing, also when that worker has ended or was stopped. An error that is none of the
	// sentinels below, or a context that ended, leaves the outcome unknown: the caller asks
	// again with the same ID.
	Launch(ctx context.Context, req *Request) (Launched, error)
	// Terminate asks the worker to stop and returns without waiting: a stop signal now, a kill when
	// grace has passed, only the kill if grace is 0. It says false if the worker had ended already or is unknown. It may be
	// called again, also with a shorter grace.
	Terminate(ctx context.Context, h Handle, grace time.Duration) (bool, error)
	// Health observes the worker. A worker that the target does not know has status [NotFound]; an error means
	// that the target could not be asked, and says nothing of the worker.
	Health(ctx context.Context, h Handle) (Health, error)
}

// Abilities, each optional.
type (
	// A Lister lists the workers of one instance. Every built-in launcher is one.
	Lister interface {
		// List yields the workers that match f, ended ones that the target still knows included, in no
		// particular order. After an error it stops.
		List(ctx context.Context, f Filter) iter.Seq2[Worker, error]
	}
	// A Finder finds the worker of a request, where a target has no list of workers by instance.
	Finder interface {
		// Find says whether the worker of req.ID exists, and what Launch returned for it.
		Find(ctx context.Context, req *Request) (Launched, bool, error)
	}
	// A Local sees only the workers of one host, or of one engine. Its answers prove nothing about the others.
	Local interface {
		// Host names that host or engine. The name is the same for all launchers that see these workers, differs from
		// every other, and has no blanks. "" means that the target has no name: its answers count for all workers.
		//
		// Host may ask the target. An error means that the target could not be asked. It is called before a worker is
		// launched, and when a worker was not found.
		Host(ctx context.Context) (string, error)
	}
	// A Watcher reports changes as they happen.
	Watcher interface {
		// Watch yields every worker that there is, then one Worker with Synced set, then each worker whose health
		// changes, until ctx ends or an error is yielded; after an error the caller watches again.
		Watch(ctx context.Context) iter.Seq2[Worker, error]
	}
	// A Batcher answers for many workers in one request.
	Batcher interface {
		// HealthOf gives one Health per handle, in their order. An error is about all of them.
		HealthOf(ctx context.Context, hs []Handle) ([]Health, error)
	}
	// A Remover forgets ended workers.
	Remover interface {
		// Remove frees what the target keeps of an ended worker. One that is gone is no error; one that still
		// runs is left alone and an error.
		Remove(ctx context.Context, h Handle) error
	}
	// A LogReader has the output of workers.
	LogReader interface {
		// Logs reads what the worker wrote to its standard output and error. The caller closes it.
		// [ErrNotFound] if the target does not know the worker or keeps no output.
		Logs(ctx context.Context, h Handle, o LogOptions) (io.ReadCloser, error)
	}
	// A Describer has debug information, as a JSON object for people.
	Describer interface {
		Describe(ctx context.Context, h Handle, logs bool) (json.RawMessage, error)
	}
	// A Previewer shows what Launch would send to the target, with secrets redacted, and sends nothing.
	Previewer interface {
		Preview(ctx context.Context, req *Request) (json.RawMessage, error)
	}
	// A Trier has the target itself look at what Launch would send, and make nothing of it.
	Trier interface {
		// Try says what the target says of the request; nil: it would take it.
		Try(ctx context.Context, req *Request) error
	}
	// A Checker looks for what would make launches fail: authentication, permissions, quota, image.
	Checker interface {
		Check(ctx context.Context) []Finding
	}
	// A Capacity tells how many more workers of a size fit.
	Capacity interface {
		Free(ctx context.Context, r Resources) (n int, known bool, err error)
	}
	// A Meter tells what a worker has cost so far, or in all once it has ended.
	Meter interface {
		Cost(ctx context.Context, h Handle) (Cost, error)
	}
	// A Divider starts workers at several places that fail independently, such as code servers. The
	// engine treats each place as a target of its own, and gives it one launch at a time. PlaceOfRun and
	// PlaceOf are pure; "" is no place in particular.
	Divider interface {
		// PlaceOfRun names the place for a run, given by its body.
		PlaceOfRun(run json.RawMessage) string
		// PlaceOf names the place of a worker.
		PlaceOf(h Handle) string
		// Ping returns nil if a place answers. While it does not, no run is launched there.
		Ping(ctx context.Context, place string) error
	}
	// An Adopter finds workers that another launcher started, from the tags it left. It is pure.
	Adopter interface {
		Adopt(f Foreign) (Handle, bool)
	}
)

// As finds an ability of a launcher: the launcher itself, or, if it says so, what it stands for. A
// launcher at the other end of a wire has a method As(any) bool that fills the ability it was given a pointer to.
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

// Handle names one worker on its target, in at most 512 bytes. It is enough for any process with the same settings.
type Handle string

// MaxHandle is the most bytes that a handle may have.
const MaxHandle = 512

// ID names a worker: a run and which attempt at it this is, from 1.
type ID struct {
	Run     string
	Attempt int
}

// String is the worker's default name on its target: DNS-safe and at most 63 bytes long.
func (id ID) String() string { return fmt.Sprintf("dagster-run-%s-%d", id.RunName(), id.Attempt) }

// ParseID reads what [ID.String] wrote.
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

// Check says whether the ID can name a worker; Dagster's run IDs, which are UUIDs, can.
func (id ID) Check() error {
	if !runName.MatchString(id.RunName()) || id.Attempt < 1 || id.Attempt > 9999 {
		return fmt.Errorf("%w: run ID %q with attempt %d cannot name a worker", ErrInvalid, id.Run, id.Attempt)
	}
	return nil
}

// Env is one environment variable of a worker. A Secret's value never shows.
type Env struct {
	Name, Value string
	Secret      bool
}

// Request is everything a launcher is told about a worker. A launcher does not change it.
type Request struct {
	ID        ID
	Token     string // the launch row's; the gate compares it
	Instance  string // stands on every worker; one that carries another instance's is never touched
	Command   []string
	Dir       string // working directory; only where the worker sees the daemon's files (Traits.LocalFiles)
	Env       []Env  // in order; the last of equal names wins
	Image     string // of code location, rule or tag, raw settings with a member image included: the strongest
	Labels    map[string]string
	Resources Resources
	Nodes     map[string]string // labels that the worker's node must have; only for launchers that promise Nodes

	Job, Location, Repository, DagsterVersion string

	Overrides []Override    // later wins; the launcher decodes them
	Grace     time.Duration // between stop and kill, for targets that fix it at launch
	At        time.Time     // of the claim: the clock that a spec may show
	Warm      string        // equal keys may share a warm parent; "" never

	Run, InstanceRef json.RawMessage // run body and patched ref, for launchers that hand them on
	Resume           bool            // the command goes on with a run whose worker died
}

// Check says whether any launcher could take the request: it names a worker, its instance and, as a rule, a command. Its error is [ErrInvalid].
func (r *Request) Check() error {
	if err := r.ID.Check(); err != nil {
		return err
	}
	if len(r.Command) == 0 || r.Instance == "" {
		return fmt.Errorf("%w: the request for %s has no command or no instance", ErrInvalid, r.ID)
	}
	return nil
}

// GateEnv is the variable with what a gated worker shows at its gate: "<attempt> <token>".
const GateEnv = "SLIPWAY_GATE"

// Override is raw settings for one run, with where they come from: a container_context section, a tag or a route.
type Override struct {
	Source string
	JSON   json.RawMessage
}

// Resources is what a worker asks for. Zero means: the launcher's default.
type Resources struct {
	CPUMillis, MemoryBytes, GPUs, DiskBytes int64
}

// Launched is the outcome of a Launch that a target accepted.
type Launched struct {
	Handle Handle
	Tags   map[string]string // for the run; facts of Dagster's own launchers such as docker/container_id
	Notes  []Note            // become engine events
}

// Note is a text for people about a launch.
type Note struct {
	Text     string
	Metadata [][2]string // label, value
}

// Status is what the target says of a worker.
type Status string

// The statuses. Starting and Running are alive, Succeeded and Failed have ended; of the others nothing is known.
const (
	Starting  Status = "Starting"
	Running   Status = "Running"
	Succeeded Status = "Succeeded"
	Failed    Status = "Failed"
	NotFound  Status = "NotFound" // the target answered, and knows no such worker
	Unknown   Status = "Unknown"  // the target cannot tell now
)

// Ended says whether the target itself has seen the worker end: proof, unlike NotFound and Unknown.
func (s Status) Ended() bool { return s == Succeeded || s == Failed }

// Alive says whether the worker may still do something.
func (s Status) Alive() bool { return s == Starting || s == Running }

// Phase is how far a worker that is not running yet has come.
type Phase string

// The phases, in order.
const (
	Accepted     Phase = "Accepted"
	Scheduled    Phase = "Scheduled"
	Pulling      Phase = "Pulling"
	Pulled       Phase = "Pulled"
	PhaseStarted Phase = "Started"
)

// Cause is why a worker ended, where the target knows.
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
		CauseOOM, CauseEvicted, CausePreempted, CauseImagePull, CauseUnschedulable, CauseQuota, CauseThrottled, CauseAuth, CauseNodeLost, CauseTimeout,
		CauseUserCode, CauseCanceled, CauseExit, CauseUnknown,
	}
}

// Health is what the target says of one worker at one moment.
type Health struct {
	Status         Status
	Phase          Phase
	Cause          Cause  // of an ended worker
	Message        string // the target's own words
	Exit           *int   // exit code; nil where the target has none
	Incarnation    string // changes when the platform restarts the worker in place
	Started, Ended time.Time
	Usage          Usage
	Tail           []string // the last lines that the worker wrote, of an ended one
}

// String lists what is known of the worker, for messages: Failed exit=3 cause=exit message="no rows".
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
	Amount                float64 // 0: the price is not known
	Currency              string
	AsOf                  string // date of the prices
}

// Worker is one worker of a List or Watch.
type Worker struct {
	ID       ID
	Instance string
	Handle   Handle
	Health   Health
	Synced   bool // only on the mark that Watch yields after what there is; nothing else is set then
}

// Filter selects workers. Instance is always set; Runs nil means all of them.
type Filter struct {
	Instance string
	Runs     []string
}

// Wants says whether the filter selects the workers of a run.
func (f Filter) Wants(run string) bool { return f.Runs == nil || slices.Contains(f.Runs, run) }

// LogOptions says which part of the output to read.
type LogOptions struct {
	Tail   int  // the last so many lines; 0 is everything
	Follow bool // go on until the worker ends or the reader is closed
}

// Finding is one result of a Check.
type Finding struct {
	OK        bool
	What, Fix string
}

// Foreign is what another launcher left on a run.
type Foreign struct {
	Run  string
	Tags map[string]string
}

// Errors, each with one consequence. A launcher joins them to the target's own error with %w.
var (
	// ErrInvalid: the request can never work. The run fails.
	ErrInvalid = errors.New("invalid request")
	// ErrDenied: the target refuses every request or cannot be reached, and nothing was created. The
	// launcher is sick until a call is answered. The run goes to the next target or back to the queue.
	// See [Unreached].
	ErrDenied = errors.New("denied by the target")
	// ErrCapacity: there is no room, nothing exists and nothing will. The run goes to the next target or back to the queue.
	ErrCapacity = errors.New("no capacity")
	// ErrTransient: ask again later with the same ID. Nothing is said of the outcome.
	ErrTransient = errors.New("transient failure")
	// ErrNotFound: the target does not know this worker. It is an answer.
	ErrNotFound = errors.New("no such worker")
	// ErrPending: nothing exists yet, and the target is preparing what the worker needs, such as its image. Ask again
	// with the same ID. See [Pending].
	ErrPending = errors.New("the target is preparing")
)

// Traits are what a kind of target promises, for the engine and for the kit: a sentence that a trait rules
// out is reported as not promised.
type Traits struct {
	Unique        bool // the target itself refuses a second worker of one name
	StrongRead    bool // a look-up after an accepted Launch finds the worker
	Restarts      bool // the platform may restart a worker in place
	LocalFiles    bool // the worker sees the daemon's files
	SignalsWorker bool // Terminate reaches the worker's process as SIGTERM
	Gate          bool // its worker can be gated
	Nodes         bool // it puts workers on nodes with the labels that are asked for
	WritesStorage bool // the launcher writes Dagster's rows itself
	OwnCommand    bool // it makes the worker's command itself, from Run and InstanceRef; Request has none
	MaxCommand    int  // bytes that one argument may have; 0 is no known limit
	Keep          time.Duration
	// Settle is how long after a Launch without an answer the worker may still appear, where the target would start a second one if it was
	// asked again. Only then its absence counts, and it is launched again. 0: the target refuses a second one, and is asked at once.
	Settle time.Duration
}

// Kind declares a kind of launcher.
type Kind struct {
	Name, Help string
	Schema     []config.Field
	Tags       []string // run tags with overrides for it
	StockTags  bool     // Dagster's own launcher obeys these tags: they are allowed unless allow.tags says otherwise
	Context    string   // its section of container_context
	Traits     Traits
	Remove     string // default of a launcher's setting remove; "" is a day
	// Stock is Dagster's own launcher whose config this kind takes as it is, as module.Class; *.Class if guides have people write it. "" for none.
	// Several are separated by spaces.
	Stock string
	// Steps gives the class of Dagster's own launcher, with its config, that step executors of the target look for in the
	// instance that a worker sees; nil where there is none.
	Steps func(v config.Values) (Class, error)
	// FailsWithRun says whether these settings ask for workers that exit with an error when their run fails; nil: they never do.
	FailsWithRun func(v config.Values) bool
	// Open checks the settings and makes a launcher. It asks the target nothing. Who opened it calls [Close].
	Open func(ctx context.Context, v config.Values, log *slog.Logger) (Launcher, error)
}

// KindOf is the kind of an open launcher. One that is a program of its own, or depends on its settings, says it itself, by a method
// Declared; else it is that by which it was opened.
func KindOf(k *Kind, l Launcher) *Kind {
	if d, ok := l.(interface{ Declared() *Kind }); ok {
		return d.Declared()
	}
	return k
}

// HealthOfEach is a [Batcher]'s HealthOf for a target that answers one by one: n at once.
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

// Close frees what an open launcher holds in this process, if it holds anything. Workers go on.
func Close(l Launcher) error {
	if c, ok := l.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

// Class names a Python class of Dagster's instance, and its config. Secrets are not in it.
type Class struct {
	Module, Name string
	Config       map[string]any
}
