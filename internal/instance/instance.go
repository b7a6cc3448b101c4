package instance

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/netresearch/go-cron"
	"go.yaml.in/yaml/v3"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/router"
	"github.com/slipway-run/slipway/launcher"
)

// Instance is one Dagster instance and Slipway's settings for it.
type Instance struct {
	Home        string // absolute path of DAGSTER_HOME
	Storage     Storage
	StockQueue  Queue // limits of dagster.yaml, with Dagster's defaults, which dagster-daemon applies
	Parked      bool  // max_concurrent_runs in dagster.yaml is 0: the stock dequeuer is off
	MonitorsRun bool  // run_monitoring in dagster.yaml is enabled: the stock monitor is on
	Monitoring  RunMonitoring
	Settings    Settings
	Launchers   map[string]Launcher
	Router      *router.Router
	Unknown     []*config.Problem // settings of dagster.yaml that Slipway does not know and ignores

	auth error          // dagster.yaml has an auth_provider, which Slipway cannot use to log in
	file string         // path of dagster.yaml
	tree map[string]any // content of dagster.yaml, with variables not expanded
	doc  *yaml.Node     // the same, with lines and columns

	implied []router.Rule // implicit rules, which follow those of slipway.yaml
}

// Storage is the place of the shared storage: Postgres if URL is set, else SQLite files in BaseDir.
type Storage struct {
	BaseDir string
	URL     config.Secret
}

// Queue holds the limits of the run queue.
type Queue struct {
	MaxConcurrentRuns int // -1: no limit
	TagLimits         []TagLimit
	BlockPools        bool // a run whose pools are full waits in the queue
	PoolsPerRun       bool // granularity is run: a run takes a slot in each of its pools
	PoolBuffer        int
	DefaultPool       *int   // limit of pools without their own limit
	Charge            string // "admitted" or "dagster"
	Only              Only
}

// Only selects the runs that Slipway launches. The zero value selects all. A run must match each
// part that is not empty.
type Only struct {
	Locations []string          `config:"locations" help:"Names of code locations."`
	Jobs      []string          `config:"jobs" help:"Names of jobs."`
	Tags      map[string]string `config:"tags" help:"Tags that the run must have; an empty value matches any value."`
}

// Empty reports whether all runs are selected.
func (o Only) Empty() bool { return len(o.Locations)+len(o.Jobs)+len(o.Tags) == 0 }

// Fits reports whether a run is selected.
func (o Only) Fits(r dagster.Run) bool {
	for k, want := range o.Tags {
		if v, ok := r.Tags[k]; !ok || want != "" && v != want {
			return false
		}
	}
	return (len(o.Locations) == 0 || slices.Contains(o.Locations, r.Remote.Location)) &&
		(len(o.Jobs) == 0 || slices.Contains(o.Jobs, r.Job))
}

// TagLimit is one entry of tag_concurrency_limits.
type TagLimit struct {
	Key, Value string // Value "" with PerValue and Empty false: all runs that have the key
	PerValue   bool   // applyLimitPerUniqueValue
	Empty      bool   // the runs whose tag has the value ""
	Limit      int
}

// Launcher is one entry of slipway.yaml's launchers.
type Launcher struct {
	Name   string
	Kind   *launcher.Kind
	Python map[string]string // Python by code location, "*" for the others; where the worker sees our files
	Cwd    map[string]string // working directory by code location, "*" for the others
	Grace  time.Duration     // between stop and kill of a worker whose run is canceled
	Rate   int               // maximum launches per second; 0 means not set
	Settle time.Duration     // a worker unknown to its target for this long counts as dead; 0: never
	Ref    RefMode
	Gate   string // "off", "relaunch", "on" or "" for the kind's default
	Allow  Allow
	Remove Removal         // of ended workers
	Steps  *launcher.Class // Dagster's own launcher in the workers' instance; nil: the one of dagster.yaml
	Config config.Values
}

// Removal says when an ended worker is removed from its target: After its end, or never. KeepFailed
// keeps the workers that failed.
type Removal struct {
	Never      bool
	KeepFailed bool
	After      time.Duration
}

// removal reads always, on_success, never or a duration.
func removal(text string) (Removal, error) {
	switch text {
	case "always":
		return Removal{}, nil
	case "on_success":
		return Removal{KeepFailed: true}, nil
	case "never":
		return Removal{Never: true}, nil
	}
	after, err := time.ParseDuration(text)
	if err != nil {
		return Removal{}, fmt.Errorf("%q is not one of always, on_success, never or a duration such as 24h", text)
	}
	return Removal{After: after}, nil
}

// RefMode says how a launcher's workers find the instance. With the zero value they get the
// InstanceRef unchanged.
type RefMode struct {
	Image bool   // no InstanceRef: the worker reads the dagster.yaml in its own DAGSTER_HOME
	Home  string // an InstanceRef with this path instead of our DAGSTER_HOME
}

// Settings holds the settings of slipway.yaml.
type Settings struct {
	InstanceID          string                     `config:"instance_id" help:"Name of the instance on its workers; default: run_storage_id of the storage."`
	FormerIDs           []string                   `config:"former_instance_ids" help:"Earlier names of the instance. Runs in flight that were launched under one of these names are left alone. While there are such runs of a name that is not listed, the daemon does not start."`
	LogLevel            string                     `config:"log_level" default:"info" help:"Log level of slipway daemon: debug, info, warn or error. --log-level overrides it."`
	Default             string                     `config:"default" default:"local" help:"Launcher of the runs that no route matches."`
	Launchers           map[string]launcherSection `config:"launchers" help:"Launchers by name; default: local, of kind process."`
	RunLauncher         config.Values              `config:"run_launcher" help:"A run_launcher section as in dagster.yaml: module, class and config. If launchers: is empty, it is used instead of the run_launcher in dagster.yaml."`
	HostPython          string                     `config:"run_launcher_python" help:"Python that hosts the class of run_launcher, if launchers: is empty and Slipway has no kind of launcher for that class."`
	Routes              []routeSection             `config:"routes" help:"Rules that choose the launcher of a run; the first rule that matches decides."`
	Queue               queueSection               `config:"queue" help:"Limits of the run queue. A key that is not set is taken from dagster.yaml, else it has Dagster's default."`
	Monitoring          monitoringSection          `config:"monitoring" help:"How long runs may take. A key that is not set is taken from run_monitoring in dagster.yaml, even if that is not enabled, else it has Dagster's default."`
	Maintenance         []Window                   `config:"maintenance" help:"Times at which all launches, or some of them, are paused. slipway pause does the same by hand."`
	Brake               Brake                      `config:"crash_loop" help:"If many workers of one job die of the same cause in a short time, the launches of that job are paused."`
	Web                 Web                        `config:"web" help:"Metrics for Prometheus, health and status over HTTP."`
	Terminate           Terminate                  `config:"terminate" help:"Where Dagster's webserver reaches Slipway to cancel a run."`
	Coexist             bool                       `config:"coexist" default:"false" help:"Start even if dagster-daemon monitors runs, and claim runs even if dagster-daemon may dequeue them too."`
	AllowSecretsInArgv  bool                       `config:"allow_secrets_in_argv" default:"false" help:"Pass workers their arguments on the command line, as Dagster's own launchers do. Process lists then show the contents of dagster.yaml."`
	ShutdownGracePeriod time.Duration              `config:"shutdown_grace" default:"10s" help:"How long a stopping daemon may take to finish the launches it has begun."`
	KeepLogs            time.Duration              `config:"keep_logs" default:"720h" help:"How long slipway/logs in DAGSTER_HOME keeps the output of workers that were removed from their target."`
	StorageURL          storageSection             `config:"storage" help:"How Slipway itself reaches the storage."`
}

type launcherSection struct {
	Kind       string            `config:"kind" help:"Kind of launcher; required, unless class is set."`
	Module     string            `config:"module" help:"With class, instead of kind: the Python module of a launcher of Dagster that one of Slipway's kinds replaces."`
	Class      string            `config:"class" help:"Class in that module, for example AzureContainerInstanceRunLauncher."`
	Python     map[string]string `config:"python" help:"Python on the target that has the packages of a code location, by location; * for all others. Default: the Python of the code location."`
	Cwd        map[string]string `config:"cwd" help:"Working directory of workers, by location; * for all others. Only for launchers on this machine."`
	Grace      time.Duration     `config:"stop_grace" default:"30s" help:"Time between the stop signal and the kill of a worker whose run is canceled. Dagster's workers take some seconds to stop."`
	Gate       string            `config:"worker_gate" help:"Which Python workers must pass a gate before they execute, which lets one worker of a run through: off (none), relaunch (attempts after the first) or on (all). Default: on if the target can have two workers with one name, off on this machine, else relaunch."`
	Steps      bool              `config:"step_executors" default:"false" help:"Workers see Dagster's own launcher of this target in their instance, because step executors such as docker_executor read its settings. The images of the workers need its package."`
	Allow      Allow             `config:"allow" help:"What runs may request with their tags, which any user who can launch runs can set."`
	Remove     string            `config:"remove" help:"When to delete an ended worker from the target (its output is saved first): a delay after its end, such as 24h; always, as soon as its name is no longer needed; on_success, like always, but failed workers stay; or never. Default: 24h; 10m for aci, where ended workers use quota."`
	Rate       int               `config:"launch_rate" default:"0" help:"Maximum launches per second; 0: 500. The rate falls automatically while the target rejects calls because there are too many, and rises again."`
	Settle     time.Duration     `config:"settle" default:"60s" help:"A worker counts as dead if for this long the target, asked repeatedly, does not know it and its run writes nothing. 0: never."`
	Restricted bool              `config:"restricted" default:"false" help:"Rules that match on tags may not lead to this launcher."`
	Ref        config.Values     `config:"instance" help:"How workers find the instance: inherit (default), from an InstanceRef made from dagster.yaml; image, from the dagster.yaml in their own DAGSTER_HOME; or {dagster_home: PATH}, from an InstanceRef with PATH instead of this DAGSTER_HOME."`
	Config     config.Values     `config:"config" help:"Settings of the launcher's kind."`
}

// Fields returns the settings of slipway.yaml, with those of the kinds of launchers.
func Fields(kinds []*launcher.Kind) []config.Field {
	fields := config.Fields(Settings{})
	for _, f := range fields {
		if f.Name != "launchers" {
			continue
		}
		for _, k := range kinds {
			f.Item.Cases = append(f.Item.Cases,
				config.Case{Where: "kind", Is: k.Name, Setting: "config", Fields: k.Schema})
		}
	}
	return fields
}

type queueSection struct {
	runQueue
	Charge string `config:"charge" default:"admitted" help:"Which queued runs count against the limits of tags and pools within one decision: admitted, only runs that may be launched; or dagster, also runs that are held back for another reason, as Dagster counts."`
	Only   Only   `config:"only" help:"Launch only some runs, while dagster-daemon launches the others. A run must match each part that is set."`
}

type monitoringSection struct {
	RunMonitoring
	Silence time.Duration  `config:"silence_timeout" default:"0" help:"If for this long a run writes nothing and the target does not tell the state of its worker, the worker is stopped and the run fails. 0: silence never fails a run."`
	Phases  time.Duration  `config:"phases_after" default:"2s" help:"How long a start phase of a worker (waiting for a place, scheduled, pulling its image, pulled, started) must last before the run's log shows it. 0: every phase is shown at once."`
	Workers int            `config:"launch_attempts" default:"3" help:"How many workers a run may have in total, if deaths launches new ones (again, next). Dagster's run retries are counted separately."`
	Memory  []string       `config:"memory" help:"Memory of the worker that replaces one that ran out of memory (oom), for example [4Gi, 8Gi, 16Gi]: the first amount that is more than the dead worker had."`
	Deaths  []deathSection `config:"deaths" help:"What happens to a run whose worker is proved dead before it has finished the run, by cause of death; the first entry with the cause decides. By default, a run that has not started gets another worker if its worker was preempted, evicted, throttled or lost with its node. A run that has started is resumed if max_resume_run_attempts allows it. Any other run fails."`
}

type deathSection struct {
	Causes  []string `config:"causes" required:"true" help:"Causes of death: oom, evicted, preempted, image_pull, unschedulable, quota, throttled, auth, node_lost, timeout, exit, unknown."`
	Do      string   `config:"do" default:"fail" help:"If the run has not started: again (another worker), next (another worker on the next launcher of the route) or fail."`
	Started string   `config:"started" default:"fail" help:"If the run has started: resume (another worker continues where this one ended), again or next (the run begins anew, and steps that had succeeded run once more), or fail."`
}

// Death says what happens to a run whose worker died of one of Causes. No causes means all causes.
type Death struct {
	Causes      []string
	Do, Started string
}

// Deaths holds the settings about dead workers.
type Deaths struct {
	Rules            []Death
	Workers, Resumes int
	Memory           []int64       // bytes, rising
	FreeSlots        time.Duration // negative: never
}

// slotsAfter is the default of free_slots_after_run_end_seconds.
const slotsAfter = 300

// Deaths returns the settings about dead workers. The default rules follow those of slipway.yaml.
func (in *Instance) Deaths() Deaths {
	m := in.Settings.Monitoring
	d := Deaths{Workers: m.Workers, Resumes: pick(m.MaxResumeAttempts, in.Monitoring.MaxResumeAttempts, 0)}
	d.FreeSlots = time.Duration(pick(m.FreeSlotsAfter, in.Monitoring.FreeSlotsAfter, slotsAfter)) * time.Second
	for _, text := range m.Memory {
		n, _ := config.ParseBytes(text) // Load has checked it
		d.Memory = append(d.Memory, n)
	}
	for _, s := range m.Deaths {
		d.Rules = append(d.Rules, Death(s))
	}
	started := "fail"
	if d.Resumes > 0 {
		started = "resume"
	}
	d.Rules = append(d.Rules,
		Death{[]string{"preempted", "evicted", "node_lost", "throttled"}, "again", started},
		Death{[]string{"user_code", "canceled"}, "fail", "fail"},
		Death{nil, "fail", started})
	return d
}

// check reports every mistake in the settings about dead workers.
func (m monitoringSection) check(fail func(setting, format string, args ...any)) {
	var last int64
	for i, text := range m.Memory {
		n, err := config.ParseBytes(text)
		switch {
		case err != nil:
			fail(fmt.Sprintf("memory[%d]", i), "%q is not an amount of memory (for example: 8Gi)", text)
		case n <= last:
			fail(fmt.Sprintf("memory[%d]", i), "%s is not more than the amount before it: write rising amounts", text)
		}
		last = n
	}
	var causes []string
	for _, c := range launcher.Causes() {
		causes = append(causes, string(c))
	}
	for i, d := range m.Deaths {
		for j, c := range d.Causes {
			if !slices.Contains(causes, c) {
				fail(fmt.Sprintf("deaths[%d].causes[%d]", i, j), "%q is not a cause%s", c, config.Suggest(c, causes))
			}
		}
		if !slices.Contains([]string{"again", "next", "fail"}, d.Do) {
			fail(fmt.Sprintf("deaths[%d].do", i), "%q is not one of again, next or fail", d.Do)
		}
		if !slices.Contains([]string{"resume", "again", "next", "fail"}, d.Started) {
			fail(fmt.Sprintf("deaths[%d].started", i), "%q is not one of resume, again, next or fail", d.Started)
		}
	}
	if m.Workers < 1 {
		fail("launch_attempts", "%d is less than 1: a run needs at least one worker", m.Workers)
	}
}

// Timeouts holds how long runs may take, in seconds; 0 means no limit.
type Timeouts struct{ Start, Cancel, MaxRuntime int }

// defaultTimeout is the default of start_timeout_seconds and cancel_timeout_seconds in
// run_monitoring.
const defaultTimeout = 180

// Timeouts returns the timeouts, each from slipway.yaml, else from dagster.yaml, else Dagster's
// default.
func (in *Instance) Timeouts() Timeouts {
	s, d := in.Settings.Monitoring, in.Monitoring
	return Timeouts{
		Start:  pick(s.StartTimeout, d.StartTimeout, defaultTimeout),
		Cancel: pick(s.CancelTimeout, d.CancelTimeout, defaultTimeout), MaxRuntime: pick(s.MaxRuntime, d.MaxRuntime, 0),
	}
}

// pick returns the value of slipway.yaml, else that of dagster.yaml, else other.
func pick(ours, dagsters *int, other int) int {
	if ours != nil {
		return *ours
	}
	return or(dagsters, other)
}

// Window is a recurring time at which launches are paused.
type Window struct {
	Cron     string        `config:"cron" required:"true" help:"When the window begins, as a cron line: minute, hour, day, month, day of the week, for example 0 2 * * 0. The time zone is that of this machine, unless the line starts with another one, for example CRON_TZ=Europe/Berlin."`
	For      time.Duration `config:"for" required:"true" help:"How long the window lasts."`
	Launcher string        `config:"launcher" help:"Only launches on this launcher; its runs go to the next launcher of their route."`
	Location string        `config:"location" help:"Only runs of this code location."`
	Job      string        `config:"job" help:"Only runs of this job."`
	Tag      string        `config:"tag" help:"Only runs with this tag, KEY=VALUE."`
	Why      string        `config:"why" help:"Reason, shown with the pause."`
}

// Begins returns the times at which the window begins. As in cron, a day matches if either its day
// of the month or its day of the week matches, and a time that the clock skips in spring comes
// right after the gap.
func (w Window) Begins() (cron.Schedule, error) {
	standard, err := cron.TryNewParser(cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow | cron.Descriptor |
		cron.DowOrDom)
	if err != nil {
		return nil, err
	}
	return standard.Parse(w.Cron)
}

// Brake says when the launches of a job are paused because its workers die.
type Brake struct {
	Deaths int           `config:"deaths" default:"10" help:"How many deaths of one cause pause the job; 0: never."`
	Within time.Duration `config:"within" default:"10m" help:"Time in which these deaths must happen."`
	Pause  time.Duration `config:"pause" default:"10m" help:"How long the launches of the job are paused. slipway unpause ends the pause earlier."`
}

// Web is the address of the endpoint for metrics, health and status, and its token.
type Web struct {
	Listen string        `config:"listen" help:"host:port to listen on, or off. Default: 127.0.0.1:9870, or another port of 127.0.0.1 if that one is in use."`
	Token  config.Secret `config:"token" help:"Token that /metrics, /status and /queue require, as Authorization: Bearer TOKEN. Required if other machines can reach the address in listen. /healthz and /readyz need no token and show nothing but health."`
}

// Loopback reports whether only this machine can reach the endpoint.
func (w Web) Loopback() bool {
	host, _, err := net.SplitHostPort(w.Listen)
	ip := net.ParseIP(host)
	return w.Listen == "" || w.Listen == "off" || err == nil && (host == "localhost" || ip != nil && ip.IsLoopback())
}

// Address returns the host and port at which webservers reach the endpoint for canceling. host is
// "" if no address is set.
func (t Terminate) Address() (host string, port int, err error) {
	setting, address := "advertise", t.Advertise
	if address == "" {
		setting, address = "listen", t.Listen
	}
	if address == "" {
		return "", 0, nil
	}
	host, text, err := net.SplitHostPort(address)
	port, perr := strconv.Atoi(text)
	if err != nil || perr != nil || host == "" || port < 1 {
		return "", 0, &config.Problem{Setting: "terminate." + setting,
			Text: fmt.Sprintf(
				"%q is not a host:port at which webservers reach this daemon (for example: slipway.internal:4001)",
				address)}
	}
	return host, port, nil
}

// checkOperation reports every mistake in the settings maintenance, web, log_level and terminate.
func (s Settings) checkOperation(fail func(setting, format string, args ...any)) {
	for i, w := range s.Maintenance {
		at := fmt.Sprintf("maintenance[%d].", i)
		if _, err := w.Begins(); err != nil {
			fail(at+"cron", "%q is not a cron line of five fields (for example: 0 2 * * 0): %v", w.Cron, err)
		}
		if w.For <= 0 {
			fail(at+"for", "%v is not a positive duration (for example: 2h)", w.For)
		}
		if w.Tag != "" && !strings.Contains(w.Tag, "=") {
			fail(at+"tag", "%q is not KEY=VALUE (for example: team=data)", w.Tag)
		}
		set := 0
		for _, v := range []string{w.Launcher, w.Location, w.Job, w.Tag} {
			if v != "" {
				set++
			}
		}
		if set > 1 {
			fail(fmt.Sprintf("maintenance[%d]", i),
				"at most one of launcher, location, job and tag is allowed: write a separate entry for each")
		}
	}
	if _, _, err := net.SplitHostPort(s.Web.Listen); err != nil && s.Web.Listen != "" && s.Web.Listen != "off" {
		fail("web.listen", "%q is not a host:port (for example: 127.0.0.1:9870) or off", s.Web.Listen)
	} else if !s.Web.Loopback() && s.Web.Token == "" {
		fail("web.listen",
			"other machines can reach %s: set web.token, for example to {env: SLIPWAY_TOKEN}, or listen on 127.0.0.1",
			s.Web.Listen)
	}
	if err := new(slog.Level).UnmarshalText([]byte(s.LogLevel)); err != nil {
		fail("log_level", "%q is not one of debug, info, warn or error", s.LogLevel)
	}
	_, _, err := s.Terminate.Address()
	for _, p := range config.Problems(err) {
		fail(p.Setting, "%s", p.Text)
	}
}

// Terminate is the endpoint at which Dagster's webserver reaches Slipway to cancel a run.
type Terminate struct {
	Listen    string `config:"listen" help:"Address of the endpoint for canceling, host:port. Default: a unix socket in DAGSTER_HOME/slipway; with advertise, its port on all addresses."`
	Advertise string `config:"advertise" help:"host:port at which webservers reach the endpoint; required if webservers run on other machines."`
	Cert      string `config:"tls_cert" help:"File with the certificate of the endpoint; without it, the endpoint uses no TLS. A request to the endpoint has no authority of its own: only runs that the storage shows as CANCELING are stopped."`
	Key       string `config:"tls_key" help:"File with the certificate's key."`
	LocalOnly bool   `config:"local_only" default:"false" help:"Webservers run only on this machine, or users accept that Terminate may report failure on others."`
}

type storageSection struct {
	DirectURL config.Secret `config:"direct_url" help:"Postgres address that bypasses a pooler, used only by Slipway."`
}

// Home finds DAGSTER_HOME as Dagster does.
func Home(env config.Lookup) (string, error) {
	home, _ := env("DAGSTER_HOME")
	if home == "" {
		hint := ""
		if cwd, err := os.Getwd(); err == nil {
			if _, err := os.Stat(filepath.Join(cwd, "dagster.yaml")); err == nil {
				hint = "; there is a dagster.yaml in this folder: export DAGSTER_HOME=" + cwd
			}
		}
		return "", fmt.Errorf(
			"DAGSTER_HOME is not set: set it to the folder of the dagster.yaml that your webserver uses%s", hint)
	}
	if rest, ok := strings.CutPrefix(home, "~"); ok {
		user, _ := env("HOME")
		home = user + rest
	}
	if !filepath.IsAbs(home) {
		return "", fmt.Errorf("DAGSTER_HOME=%s is not an absolute path, which Dagster requires: write the whole path",
			home)
	}
	if info, err := os.Stat(home); err != nil || !info.IsDir() {
		return "", fmt.Errorf("DAGSTER_HOME=%s is not a folder: %w; set it to the folder of your dagster.yaml", home,
			errOr(err, errors.New("it is a file")))
	}
	return filepath.Clean(home), nil
}

func errOr(err, other error) error {
	if err != nil {
		return err
	}
	return other
}

// Load reads the instance in home. kinds are the kinds of launchers that slipway.yaml may name.
func Load(home string, kinds []*launcher.Kind, env config.Lookup) (*Instance, error) {
	in, err := load(home, env)
	err = errors.Join(err, in.slipway(kinds, env))
	switch {
	case in.Settings.StorageURL.DirectURL == "":
		err = errors.Join(err, in.auth)
	case err == nil && in.Storage.URL == "":
		err = in.Problem("storage.direct_url",
			"the storage in dagster.yaml is SQLite in %s: leave direct_url out, or use a DAGSTER_HOME whose "+
				"dagster.yaml has storage: {postgres: …}", in.Storage.BaseDir)
	}
	if err != nil {
		return nil, err
	}
	return in, nil
}

// LoadDagster reads dagster.yaml alone. The instance is never nil.
func LoadDagster(home string, env config.Lookup) (*Instance, error) {
	in, err := load(home, env)
	return in, errors.Join(err, in.auth)
}

func load(home string, env config.Lookup) (*Instance, error) {
	in := &Instance{Home: home, file: filepath.Join(home, "dagster.yaml")}
	doc, err := parse(in.file)
	if err != nil {
		return in, err
	}
	in.doc = doc
	in.tree, _ = config.Tree(doc).(map[string]any)
	d, err := in.decode(doc, env)
	errs := []error{err, in.storage(d, doc, env)}
	if err == nil {
		in.MonitorsRun, in.Monitoring = d.RunMonitoring.Enabled, d.RunMonitoring
		errs = append(errs, in.queue(d, doc))
	}
	return in, errors.Join(errs...)
}

func parse(file string) (*yaml.Node, error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%w; the user of this process must be able to read it", err)
	}
	return config.Parse(file, text)
}

func problem(file string, n *yaml.Node, setting, format string, args ...any) error {
	p := &config.Problem{File: file, Setting: setting, Text: fmt.Sprintf(format, args...)}
	if n != nil {
		p.Line, p.Column = n.Line, n.Column
	}
	return p
}

// Problem returns an error about a setting of slipway.yaml, with its line.
func (in *Instance) Problem(setting, format string, args ...any) error {
	v := config.Values{File: filepath.Join(in.Home, "slipway.yaml")}
	var err error
	if v.Node, err = parse(v.File); err != nil {
		return err
	}
	return v.Problem(setting, format, args...)
}

// path follows keys down from n. It returns nil if one is missing.
func path(n *yaml.Node, keys ...string) *yaml.Node {
	for _, k := range keys {
		n = config.Child(n, k)
	}
	return n
}

func (in *Instance) storage(d document, doc *yaml.Node, env config.Lookup) error {
	if class := d.InstanceClass; class != nil && strings.HasPrefix(class.Module, "dagster_cloud") {
		return problem(in.file, path(doc, "instance_class"),
			"instance_class", "this is an instance of Dagster+, whose storage cannot be shared: Slipway needs a "+
				"storage that you run, SQLite or Postgres")
	}
	for _, legacy := range []string{"run_storage", "event_log_storage", "schedule_storage"} {
		if n := config.Child(doc, legacy); n != nil {
			return problem(in.file, n, legacy,
				"Slipway reads only the storage: section; replace the three storages with storage: {postgres: …} or "+
					"storage: {sqlite: …}, which is the same for Dagster")
		}
	}
	st := config.Child(doc, "storage")
	in.Storage.BaseDir = in.Home
	for _, other := range []string{"mysql", "custom"} {
		if n := config.Child(st, other); n != nil {
			return problem(in.file, n, "storage."+other,
				"Slipway supports Dagster's SQLite and Postgres storage, not %s: use sqlite or postgres", other)
		}
	}
	if n := config.Child(st, "sqlite"); n != nil {
		var s struct {
			BaseDir string `config:"base_dir" required:"true"`
		}
		err := in.dagsterYAML("storage.sqlite", n, env).Decode(&s)
		in.Storage.BaseDir = s.BaseDir
		return err
	}
	if n := config.Child(st, "postgres"); n != nil {
		return in.postgres(n, env)
	}
	if st != nil {
		return problem(in.file, st, "storage", "must have either sqlite or postgres")
	}
	return nil
}

// defaultMaxRuns is the default of max_concurrent_runs in QueuedRunCoordinator.
const defaultMaxRuns = 10

func (in *Instance) queue(d document, doc *yaml.Node) error {
	q := &in.StockQueue
	*q = Queue{MaxConcurrentRuns: defaultMaxRuns, BlockPools: true, Charge: "admitted"}
	section, name := d.RunQueue, "run_queue"
	if c := d.RunCoordinator; c != nil {
		if c.Class != queuedCoordinator {
			return problem(in.file, path(doc, "run_coordinator", "class"), "run_coordinator.class",
				"%s launches runs itself and leaves nothing QUEUED for Slipway; use QueuedRunCoordinator (Dagster's "+
					"default)", c.Class)
		}
		section, name = &runQueue{}, "run_coordinator.config"
		if err := c.Config.Decode(section); err != nil {
			return err
		}
	}
	if section != nil {
		if err := q.override(in.file, name, section.limitsSection); err != nil {
			return err
		}
		q.block(section.BlockPools)
	}
	if c := d.Concurrency; c != nil {
		q.DefaultPool = c.Old
		if c.Pools != nil {
			q.DefaultPool, q.PoolsPerRun, q.PoolBuffer = c.Pools.Default, c.Pools.Granularity == "run",
				or(c.Pools.Buffer, q.PoolBuffer)
		}
		if c.Runs != nil {
			if err := q.override(in.file, "concurrency.runs", *c.Runs); err != nil {
				return err
			}
		}
	}
	in.Parked = q.MaxConcurrentRuns == 0
	return nil
}

func or(p *int, other int) int {
	if p == nil {
		return other
	}
	return *p
}

// QueueSection returns the section of dagster.yaml that has the limits of the queue, or could have
// them. Dagster accepts them in one place only.
func (in *Instance) QueueSection() string {
	c, _ := in.tree["concurrency"].(map[string]any)
	switch {
	case c["runs"] != nil || c["pools"] != nil:
		return "concurrency.runs"
	case in.tree["run_coordinator"] != nil:
		return "run_coordinator.config"
	}
	return "run_queue"
}

// only returns a mapping reduced to some keys.
func only(n *yaml.Node, keys ...string) *yaml.Node {
	if n == nil {
		return nil
	}
	out := &yaml.Node{Kind: yaml.MappingNode, Line: n.Line, Column: n.Column}
	for _, k := range config.Keys(n) {
		if slices.Contains(keys, k.Value) {
			out.Content = append(out.Content, k, config.Child(n, k.Value))
		}
	}
	return out
}

// block applies block_op_concurrency_limited_runs to q.
func (q *Queue) block(b *blockPools) {
	if b != nil {
		q.BlockPools, q.PoolBuffer = b.Enabled == nil || *b.Enabled, or(b.Buffer, 0)
	}
}

// override applies the keys that are set in a section to q.
func (q *Queue) override(file, section string, s limitsSection) error {
	if s.MaxConcurrentRuns != nil {
		q.MaxConcurrentRuns = *s.MaxConcurrentRuns
		if q.MaxConcurrentRuns < -1 {
			return &config.Problem{File: file, Setting: section + ".max_concurrent_runs",
				Text: "must be -1 (no limit), 0 or more"}
		}
	}
	if s.TagLimits == nil {
		return nil
	}
	q.TagLimits = nil
	var errs []error
	for _, t := range *s.TagLimits {
		limit, err := t.decode()
		q.TagLimits, errs = append(q.TagLimits, limit), append(errs, err)
	}
	return errors.Join(errs...)
}

func (in *Instance) slipway(kinds []*launcher.Kind, env config.Lookup) error {
	file := filepath.Join(in.Home, "slipway.yaml")
	doc, err := parse(file)
	if err != nil {
		return err
	}
	// Settings that could be read are checked even if others could not, so that all problems of the
	// file are reported at once.
	unread := (config.Values{File: file, Node: doc, Env: env}).Decode(&in.Settings)
	if unread != nil && len(in.Settings.Launchers) == 0 {
		return unread
	}
	if id := in.Settings.InstanceID; id != "" && !launcherName.MatchString(id) {
		return problem(file, path(doc, "instance_id"),
			"instance_id", "%q is not an instance ID: use 1 to 40 letters, digits, - and _", id)
	}
	if len(in.Settings.Launchers) == 0 {
		if err := in.stockLauncher(kinds, file, doc, env); err != nil {
			return err
		}
	}
	in.Launchers = map[string]Launcher{}
	var errs []error
	for name, section := range in.Settings.Launchers {
		if section.Class != "" {
			if section.Kind != "" {
				errs = append(errs, problem(file, path(doc, "launchers", name, "class"), "launchers."+name+".class",
					"set either kind, or module and class, not both"))
				continue
			}
			if i := known(kinds, section.Module, section.Class); i >= 0 {
				section.Kind = kinds[i].Name
			}
		}
		if section.Kind == "" {
			text := "required: a kind of launcher (for example: process)"
			if section.Class != "" {
				text = fmt.Sprintf(
					"required: no kind of launcher replaces %s.%s; write kind: python to host the class itself",
					section.Module, section.Class)
			}
			errs = append(errs, problem(file, path(doc, "launchers", name), "launchers."+name+".kind", "%s", text))
			continue
		}
		i := slices.IndexFunc(kinds, func(k *launcher.Kind) bool { return k.Name == section.Kind })
		if i < 0 {
			errs = append(errs, problem(file, path(doc, "launchers", name, "kind"), "launchers."+name+".kind",
				"there is no launcher of kind %q%s", section.Kind, config.Suggest(section.Kind, kindNames(kinds))))
			continue
		}
		if !launcherName.MatchString(name) {
			errs = append(errs, problem(file, path(doc, "launchers", name), "launchers."+name,
				"the name of a launcher may have only letters, digits, - and _, at most 40"))
		}
		if g := section.Gate; g != "" && g != "off" && g != "relaunch" && g != "on" {
			errs = append(errs, problem(file, path(doc, "launchers", name, "worker_gate"),
				"launchers."+name+".worker_gate", "%q is not one of off, relaunch or on", g))
		}
		remove, err := removal(cmp.Or(section.Remove, kinds[i].Remove, defaultRemove))
		if err != nil {
			errs = append(errs, problem(file, path(doc, "launchers", name, "remove"), "launchers."+name+".remove", "%v",
				err))
		}
		mode, err := refMode(section.Ref)
		if err != nil {
			errs = append(errs, err)
		}
		if section.Config.Path != "run_launcher.config" {
			section.Config.File, section.Config.Path = file, "launchers."+name+".config"
		}
		section.Config.Env = env
		section.Config.Dir = filepath.Join(in.Home, "slipway", section.Kind, name)
		in.Launchers[name] = Launcher{Name: name, Kind: kinds[i], Python: section.Python, Cwd: section.Cwd,
			Grace: section.Grace, Settle: section.Settle, Rate: section.Rate, Ref: mode, Gate: section.Gate,
			Remove: remove, Allow: section.Allow, Config: section.Config}
		if section.Steps {
			if err := in.steps(doc, name); err != nil {
				errs = append(errs, err)
			}
		}
		_, err = section.Allow.Max()
		for _, err := range each(err) {
			if wrong := (*amountError)(nil); errors.As(err, &wrong) {
				err = problem(file, path(doc, "launchers", name, "allow", wrong.setting),
					"launchers."+name+".allow."+wrong.setting, "%v", wrong.err)
			}
			errs = append(errs, err)
		}
	}
	if _, ok := in.Launchers[in.Settings.Default]; !ok && len(errs) == 0 && unread == nil {
		errs = append(errs, problem(file, path(doc, "default"),
			"default", "there is no launcher named %q: set default to the name of one under launchers%s",
			in.Settings.Default, config.Suggest(in.Settings.Default, slices.Sorted(maps.Keys(in.Launchers)))))
	}
	in.Settings.Monitoring.check(func(setting, format string, args ...any) {
		errs = append(errs, config.Values{File: file, Node: doc}.Problem("monitoring."+setting, format, args...))
	})
	in.Settings.checkOperation(func(setting, format string, args ...any) {
		errs = append(errs, config.Values{File: file, Node: doc}.Problem(setting, format, args...))
	})
	if unread == nil { // routes lead to launchers, all of which must be known
		errs = append(errs, in.routes(file, doc))
	}
	if in.StockQueue.Charge != "" { // dagster.yaml's own limits could be read
		_, err := in.QueueLimits()
		errs = append(errs, err)
	}
	for _, p := range config.Problems(unread) { // a setting that could not be read is not checked too
		errs = slices.DeleteFunc(errs, func(err error) bool {
			other := (*config.Problem)(nil)
			return errors.As(err, &other) && other.Setting == p.Setting
		})
	}
	return errors.Join(append([]error{unread}, errs...)...)
}

func kindNames(kinds []*launcher.Kind) []string {
	var names []string
	for _, k := range kinds {
		names = append(names, k.Name)
	}
	return names
}

// steps sets the class that step executors look for.
func (in *Instance) steps(doc *yaml.Node, name string) error {
	l := in.Launchers[name]
	if l.Kind.Steps == nil {
		p := &config.Problem{File: l.Config.File, Setting: "launchers." + name + ".step_executors",
			Text: "Dagster has no step executors for launchers of kind " + l.Kind.Name + ": leave it out"}
		if n := path(doc, "launchers", name, "step_executors"); n != nil {
			p.Line, p.Column = n.Line, n.Column
		}
		return p
	}
	class, err := l.Kind.Steps(l.Config)
	l.Steps = &class
	in.Launchers[name] = l
	return err
}

func refMode(v config.Values) (RefMode, error) {
	if config.Tree(v.Node) == nil {
		return RefMode{}, nil
	}
	var mode string
	var section struct {
		Home string `config:"dagster_home" required:"true" help:"the DAGSTER_HOME of the workers"`
	}
	isText, err := v.Either(&mode, &section)
	switch {
	case err != nil:
		return RefMode{}, err
	case isText && (mode == "inherit" || mode == "image"):
		return RefMode{Image: mode == "image"}, nil
	case !isText && filepath.IsAbs(section.Home):
		return RefMode{Home: filepath.Clean(section.Home)}, nil
	}
	return RefMode{}, v.Problem("", "must be inherit, image or {dagster_home: /absolute/path}")
}

// parkedTag reports whether t is a tag limit of dagster.yaml that keeps the stock dequeuer from
// some of the runs that o selects.
func parkedTag(t TagLimit, o Only) bool {
	if t.Limit != 0 || t.PerValue || t.Empty {
		return false
	}
	if want, ok := o.Tags[t.Key]; ok {
		return t.Value == want // of any value, if both are empty
	}
	return t.Key == dagster.CodeLocationTag && slices.Contains(o.Locations, t.Value)
}

// Parks reports whether dagster.yaml keeps the stock dequeuer from every run that Slipway launches:
// with max_concurrent_runs: 0 or, if queue.only is set, with tag limits of 0 for each of its
// locations or for one of its tags.
func (in *Instance) Parks() bool { return in.parks(in.Settings.Queue.Only) }

func (in *Instance) parks(o Only) bool {
	parked := map[string]bool{}
	for _, t := range in.StockQueue.TagLimits {
		if parkedTag(t, o) {
			parked[t.Key+"="+t.Value] = true
			if t.Key != dagster.CodeLocationTag {
				return true
			}
		}
	}
	return in.Parked || len(o.Locations) > 0 &&
		!slices.ContainsFunc(o.Locations, func(l string) bool { return !parked[dagster.CodeLocationTag+"="+l] })
}

// defaultRemove is the default of remove.
const defaultRemove = "24h"

// The defaults of stop_grace and settle.
const (
	defaultGrace  = 30 * time.Second
	defaultSettle = time.Minute
)

var launcherName = regexp.MustCompile(`^[A-Za-z0-9_-]{1,40}$`)

// QueueLimits returns the limits that Slipway applies, each from queue: in slipway.yaml, else from
// dagster.yaml, else Dagster's default. A limit of 0 in dagster.yaml parks the stock dequeuer and
// does not limit Slipway.
func (in *Instance) QueueLimits() (Queue, error) {
	q := in.StockQueue
	if q.MaxConcurrentRuns == 0 {
		q.MaxConcurrentRuns = defaultMaxRuns
	}
	file, s := filepath.Join(in.Home, "slipway.yaml"), in.Settings.Queue
	if q.Charge = s.Charge; q.Charge != "admitted" && q.Charge != "dagster" {
		return q, in.Problem("queue.charge", "%q is neither admitted nor dagster: write one of them", s.Charge)
	}
	q.Only = s.Only
	// no limit of ours
	q.TagLimits = slices.DeleteFunc(slices.Clone(q.TagLimits), func(t TagLimit) bool { return parkedTag(t, q.Only) })
	q.block(s.BlockPools)
	err := q.override(file, "queue", s.limitsSection)
	return q, err
}
