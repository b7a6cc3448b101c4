// Chaos runs an instance and breaks everything around it. Then an independent checker examines what
// is left:
//
//	go run ./test/chaos -storage sqlite -runs 1000
//	hack/with-postgres hack/with-docker go run ./test/chaos -storage postgres -runs 1000 \
//		-dagster 50 -seed 7
//	hack/with-postgres go run ./test/chaos -storage postgres -runs 500 -lasting
//
// The instance has two daemons and random command jobs on the process launcher. With -dagster,
// Dagster's own workers execute some runs. With hack/with-docker on Postgres, a fifth of the runs
// is in containers.
//
// These faults happen at random. Daemons are killed, or stopped for longer than their lease, and
// their clocks are stepped. Workers and supervisors are killed. Runs are canceled, canceled by
// force and deleted. Connections to Postgres are cut or delayed, lose their answers, or lose
// everything. There are false notices. Postgres crashes, Docker's engine is killed, the disk is
// full (-disk).
//
// What the daemons did is replayed through the model of the protocol. The exit code is 1 if the
// checker finds anything, or if the model cannot do what the daemons did. A seed repeats the
// choices, but not their moments.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/google/uuid"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/test/chaos/check"
	"github.com/slipway-run/slipway/test/failpoint"
	"github.com/slipway-run/slipway/test/faultproxy"
	"github.com/slipway-run/slipway/test/home"
	"github.com/slipway-run/slipway/test/storagetest"
	"github.com/slipway-run/slipway/test/testenv"
)

func main() {
	var o options
	flag.StringVar(&o.storage, "storage", "sqlite", "sqlite, or postgres, of which SLIPWAY_TEST_PG names a server")
	flag.IntVar(&o.runs, "runs", 1000, "how many runs")
	flag.Uint64Var(&o.seed, "seed", uint64(time.Now().UnixNano()), "of the choices")
	flag.StringVar(&o.dir, "dir", "", "folder for everything; kept if something is found (default: a temporary one)")
	flag.StringVar(&o.disk, "disk",
		"", "size of a file system of its own for the instance, as 256m, which is then filled at random; for root on "+
			"Linux")
	flag.IntVar(&o.dagster, "dagster", 0,
		"have one run of so many executed by Dagster's own worker, from .venv; 0: none")
	flag.IntVar(&o.containers, "containers", 5,
		"on Postgres with hack/with-docker: have one run of so many executed in a container; 0: none")
	flag.DurationVar(&o.engine, "engine", 0,
		"on Postgres with hack/with-docker: kill Docker's engine about so often, in addition to the other faults, "+
			"which rarely kill it; 0: only there")
	flag.BoolVar(&o.lasting, "lasting", false,
		"one daemon that leads all the time, and faults that it must heal by itself: single lost answers, moody "+
			"targets, locked rows")
	flag.DurationVar(&o.settle, "settle", 5*time.Minute, "how long the last runs may take when everything works again")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := chaos(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(1) //nolint:gocritic // nothing is left to stop
	}
}

type options struct {
	storage, dir string
	disk         string // size of a separate file system for the instance; "": none
	lasting      bool
	runs         int
	dagster      int           // one run in this many is for Dagster's own worker; 0: none
	containers   int           // one run in this many is for a container; 0: none
	engine       time.Duration // between two deaths of the engine, in addition to those among the faults
	seed         uint64
	settle       time.Duration
}

// world is the instance and what happens to it.
type world struct {
	options
	home, location, witness string
	image, instance         string // of containers; "": there are no containers
	bin, python             string
	d                       *storagetest.Dagster
	proxy                   *faultproxy.Proxy
	journal                 *os.File

	mu      sync.Mutex
	daemons [2]*exec.Cmd
	runs    map[string]bool     // by ID
	ends    map[string][]string // what users did to it: cancel, force, delete
	counts  map[string]int
}

// diskOfRun is the most that a run leaves on the disk, in bytes. The average is about 55 kB.
const diskOfRun = 100 << 10

const settings = `queue: {max_concurrent_runs: 40}
terminate: {local_only: true}
allow_secrets_in_argv: true
monitoring:
  launch_attempts: 1000
  free_slots_after_run_end_seconds: 1
  deaths: [{causes: [exit, unknown, timeout], do: again, started: again}]
crash_loop: {deaths: 0}
launchers:
  local: {kind: process, stop_grace: 1s, settle: 5s}
`

func (w *world) settings() string {
	if w.lasting {
		return lastingSettings
	}
	return settings + w.inContainers()
}

// inContainers returns the settings that are added if there is an image with slipway-worker: part
// of the runs goes into containers.
func (w *world) inContainers() string {
	if w.image == "" {
		return ""
	}
	return fmt.Sprintf(`  docker:
    kind: docker
    stop_grace: 1s
    settle: 5s
    config: {image: %q, network: host, env_vars: ["PATH=/opt/app:/usr/bin:/bin"], mounts: ["%s:%[2]s"]}
routes: [{when: {tags: {on: docker}}, to: docker}]
instance_id: %s
`, w.image, w.witness, w.instance)
}

func chaos(ctx context.Context, o options) (err error) {
	fmt.Printf("chaos: %s, %d runs, seed %d\n", o.storage, o.runs, o.seed)
	if o.dir == "" {
		if o.dir, err = os.MkdirTemp("", "slipway-chaos-"); err != nil {
			return err
		}
	}
	w := &world{options: o, runs: map[string]bool{}, ends: map[string][]string{}, counts: map[string]int{}}
	began := time.Now()
	bad, err := w.run(ctx)
	var parts []string
	for k, n := range w.counts {
		parts = append(parts, fmt.Sprintf("%s %d", k, n))
	}
	slices.Sort(parts)
	fmt.Printf("chaos: done in %s: %s\n", time.Since(began).Round(time.Second), strings.Join(parts, ", "))
	if err != nil || len(bad) > 0 {
		for _, b := range bad {
			fmt.Println("VIOLATION", b)
		}
		return errors.Join(err, fmt.Errorf("%d violations on %s with seed %d; everything is kept in %s", len(bad),
			o.storage, o.seed, o.dir))
	}
	fmt.Printf("chaos: the checker has found nothing\n")
	if o.disk != "" {
		if out, err := exec.CommandContext(context.WithoutCancel(ctx), "umount", "-l", w.home).CombinedOutput(); err !=
			nil {
			return fmt.Errorf("umount: %w\n%s", err, out)
		}
	}
	return os.RemoveAll(o.dir)
}

func (w *world) run(ctx context.Context) ([]string, error) {
	if err := w.prepare(ctx); err != nil {
		return nil, err
	}
	defer w.stopAll()
	faults, heal := context.WithCancel(ctx)
	var wg sync.WaitGroup
	for i := range w.daemons {
		if w.lasting && i > 0 {
			break
		}
		if err := w.start(i); err != nil {
			heal()
			return nil, err
		}
	}
	if err := w.leads(ctx); err != nil {
		heal()
		return nil, err
	}
	if w.lasting {
		w.troubles(faults, &wg)
	} else {
		wg.Go(func() { w.breaks(faults, rand.New(rand.NewPCG(w.seed, 1))) })
	}
	if w.engine > 0 {
		wg.Go(func() { w.killsEngine(faults, rand.New(rand.NewPCG(w.seed, 4))) })
	}
	wg.Go(func() { w.meddles(faults, rand.New(rand.NewPCG(w.seed, 2))) })
	err := w.enqueues(ctx, rand.New(rand.NewPCG(w.seed, 3)))
	if err == nil { // the faults continue while the last runs execute
		_ = w.wait(ctx, 30*time.Second, w.options.runs/50) // if not, they end in the wait below
	}
	heal()
	wg.Wait()
	w.mend()
	if err != nil {
		return nil, err
	}
	if werr := w.wait(ctx, w.settle, 0); werr != nil {
		fmt.Println("chaos:", werr)
	}
	time.Sleep(8 * time.Second) // late effects: slots in pools, workers of runs that were ended by force
	testedAt := time.Now()
	bad, err := w.check()
	// A worker that no run needs is found by the next sweep, and has a grace period.
	for err == nil && slices.ContainsFunc(bad, check.MayPass) && time.Since(testedAt) < 3*time.Minute {
		time.Sleep(time.Second)
		bad, err = w.check()
	}
	if err != nil {
		return bad, err
	}
	if w.lasting { // the model has no moody targets
		unfit, err := w.lasted()
		return append(bad, unfit...), err
	}
	unfit, err := w.replays()
	return append(bad, unfit...), err
}

func (w *world) check() ([]string, error) {
	return check.Check(check.World{Location: w.location, Witness: w.witness, Journal: w.journal.Name(), Mark: w.dir,
		Proc: "/proc"})
}

func (w *world) prepare(ctx context.Context) (err error) {
	w.home, w.witness = filepath.Join(w.dir, "home"), filepath.Join(w.dir, "witness")
	if w.storage == "postgres" && !w.lasting { // containers can reach it
		w.image, w.instance = os.Getenv("SLIPWAY_TEST_IMAGE"), "chaos-"+uuid.NewString()[:8]
	}
	for _, dir := range []string{w.home, w.witness, filepath.Join(w.dir, "bin")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if w.disk != "" {
		if out, err := exec.CommandContext(ctx, "mount", "-t", "tmpfs", "-o", "size="+w.disk,
			"chaos", w.home).CombinedOutput(); err != nil {
			return fmt.Errorf("-disk: mount: %w\n%s", err, out)
		}
		var fs syscall.Statfs_t
		if err := syscall.Statfs(w.home, &fs); err != nil {
			return err
		}
		if needs := uint64(w.options.runs) * diskOfRun; fs.Blocks*uint64(fs.Bsize) < needs {
			_ = exec.CommandContext(ctx, "umount", w.home).Run() // it is empty
			return fmt.Errorf("-disk %s is full for good before the end: %d runs need %dm", w.disk, w.options.runs,
				needs>>20+1)
		}
	}
	w.bin = filepath.Join(w.dir, "bin", "slipway")
	over, err := overlay(ctx, w.dir)
	if err != nil {
		return err
	}
	for _, program := range []string{"./test/chaos/slipway", "./cmd/slipway-agent", "./cmd/slipway-worker"} {
		build := exec.CommandContext(ctx, "go", "build", "-tags", "failpoints", "-overlay", over,
			"-o", filepath.Join(w.dir, "bin")+"/", program)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", build, err, out)
		}
	}
	if w.python, err = filepath.Abs(".venv/bin/python"); err != nil {
		return err
	}
	if _, err := os.Stat(w.python); err != nil && w.dagster > 0 {
		return fmt.Errorf("-dagster: %w: make venv installs Dagster", err)
	}
	job, err := os.ReadFile("test/chaos/witness.py")
	if err := errors.Join(err, os.WriteFile(filepath.Join(w.dir, "witness.py"), job, 0o600)); err != nil {
		return err
	}
	if w.journal, err = os.OpenFile(filepath.Join(w.dir, "journal"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600); err !=
		nil {
		return err
	}
	w.location = w.home
	reached := w.location // the address that the daemons use
	if w.storage == "postgres" {
		if reached, err = w.database(ctx); err != nil {
			return err
		}
	}
	if err := errors.Join(home.Create(ctx, w.location), home.Write(w.home, reached, home.Parked, w.settings())); err !=
		nil {
		return err
	}
	if w.d, err = storagetest.Connect(w.location); err != nil {
		return err
	}
	for range 5 { // foreign runs
		r := dagster.NewCommandRun(uuid.NewString(), "foreign", dagster.Encode(map[string]any{}), nil)
		err := errors.Join(w.d.EnqueueRun(r), w.d.Event(dagster.NewEvent(r, dagster.RunStarting, time.Now(), "")),
			w.d.Event(dagster.NewEvent(r, dagster.RunStart, time.Now(), "")))
		if err != nil {
			return err
		}
		w.note(check.Entry{Do: "foreign", Run: r.ID, Note: "STARTED"})
	}
	return nil
}

// database makes a database on the server and a proxy in front of it. It returns the address
// through the proxy.
func (w *world) database(ctx context.Context) (string, error) {
	server := os.Getenv(testenv.PostgresEnv)
	if server == "" {
		return "", errors.New("SLIPWAY_TEST_PG names no server: hack/with-postgres starts one")
	}
	var err error
	// The database is kept, so that people can examine what was found.
	if w.location, _, err = testenv.Database(ctx, server); err != nil {
		return "", err
	}
	admin, err := storagetest.Connect(server)
	if err != nil {
		return "", err
	}
	u, err := url.Parse(w.location)
	if err != nil {
		return "", err
	}
	// The test server commits before it writes. These commits must survive a crash, so they have to
	// be written.
	if err := admin.Exec("ALTER DATABASE " + strings.TrimPrefix(u.Path, "/") + " SET synchronous_commit = on"); err !=
		nil {
		return "", err
	}
	if w.proxy, err = faultproxy.New(u.Host); err != nil {
		return "", err
	}
	u.Host = w.proxy.Addr()
	return u.String(), nil
}

// note writes to the journal what is about to be done.
func (w *world) note(e check.Entry) {
	e.At = time.Now().UTC().Format("15:04:05.000")
	text, _ := json.Marshal(e) // it has nothing that cannot be marshaled
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counts[e.Do]++
	if e.Do == "cancel" || e.Do == "force" || e.Do == "delete" {
		w.ends[e.Run] = append(w.ends[e.Run], e.Do)
	}
	_, _ = w.journal.Write(append(text, '\n')) // an incomplete journal shows as violations
}

func (w *world) start(i int) error {
	log, err := os.OpenFile(filepath.Join(w.dir, fmt.Sprintf("daemon-%d.log", i)), os.O_CREATE|os.O_WRONLY|os.O_APPEND,
		0o600)
	if err != nil {
		return err
	}
	cmd := exec.Command(w.bin, "daemon", "--home", w.home)
	cmd.Env = append(os.Environ(), clockEnv+"="+w.clock(i), moodsEnv+"="+w.moods(),
		failpoint.TraceEnv+"="+filepath.Join(w.dir, "trace"))
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = log, log, &syscall.SysProcAttr{Setpgid: true}
	if err := errors.Join(cmd.Start(), log.Close()); err != nil {
		return err
	}
	go func() { _ = cmd.Wait() }() // reaps it; signals show whether it is alive
	w.mu.Lock()
	defer w.mu.Unlock()
	w.daemons[i] = cmd
	return nil
}

// leads waits until a daemon leads. Its error has the log of a daemon that cannot even start.
func (w *world) leads(ctx context.Context) error {
	for range 300 {
		if text, err := w.d.Text("SELECT value FROM kvs WHERE key = 'slipway/leader'"); err == nil && text != "" {
			return nil
		}
		pause(ctx, 100*time.Millisecond)
	}
	log, _ := os.ReadFile(filepath.Join(w.dir, "daemon-0.log")) // for the message only
	return fmt.Errorf("no daemon leads: %s", log)
}

func (w *world) daemon(i int) *os.Process {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.daemons[i].Process
}

func (w *world) stopAll() {
	for i := range w.daemons {
		if w.daemons[i] == nil {
			continue
		}
		p := w.daemon(i)
		_ = p.Signal(syscall.SIGCONT)
		_ = p.Signal(syscall.SIGTERM)
	}
	time.Sleep(500 * time.Millisecond)
	for i := range w.daemons {
		if w.daemons[i] != nil {
			_ = w.daemon(i).Kill()
		}
	}
	if w.proxy != nil {
		_ = w.proxy.Close()
	}
	if w.image != "" {
		rm := "cd " + w.dir + " && for c in $(docker ps -aq --filter label=slipway-instance=" + w.instance +
			"); do docker logs -t $c >$(docker inspect -f '{{.Name}}' $c | tr -d /).log 2>&1; docker rm -f -v $c " +
			">$c.rm; done"
		if out, err := exec.Command("sh", "-c", rm).CombinedOutput(); err != nil {
			fmt.Printf("chaos: %s: %v\n%s", rm, err, out)
		}
	}
}

// again repeats f until the storage accepts it, because the storage may be down.
func again(ctx context.Context, f func() error) {
	for range 600 {
		if f() == nil || ctx.Err() != nil {
			return
		}
		pause(ctx, 100*time.Millisecond)
	}
}

// enqueues puts the runs into the queue, a few at a time.
func (w *world) enqueues(ctx context.Context, r *rand.Rand) error {
	most := 120 // unfinished at the same time
	if w.lasting {
		most = 30 // so that the faults hit more of them
	}
	for n := 0; n < w.options.runs && ctx.Err() == nil; {
		if open, err := w.unfinished(); err != nil || open > most {
			time.Sleep(50 * time.Millisecond)
			continue
		}
		for range 1 + r.IntN(8) {
			if n == w.options.runs {
				break
			}
			n++
			w.enqueue(ctx, r)
		}
	}
	return ctx.Err()
}

func (w *world) enqueue(ctx context.Context, r *rand.Rand) {
	id, fate := uuid.NewString(), "ok"
	seconds, code := float64(r.IntN(400))/1000, 0
	if r.IntN(10) == 0 {
		fate, code = "fail", 3
	}
	if r.IntN(16) == 0 {
		seconds += 1.5
	}
	var tags map[string]string
	if w.lasting {
		if tags = where(r); r.IntN(20) == 0 {
			fate, seconds = "expire", 600
		}
	}
	file := filepath.Join(w.witness, id)
	conf := dagster.Encode(map[string]any{
		"steps": map[string]any{"only": map[string]any{"command": []string{"sh", "-c", step(file, seconds, code)}}}})
	if w.image != "" && w.containers > 0 && r.IntN(w.containers) == 0 {
		tags = map[string]string{"on": "docker"}
		w.count("in_a_container")
	}
	run := dagster.NewCommandRun(id, "job"+strconv.Itoa(r.IntN(5)), conf, tags)
	if fate == "expire" {
		run = expires(run)
	}
	if w.dagster > 0 && r.IntN(w.dagster) == 0 {
		run, fate = w.own(id, file, seconds), "dagster"
		w.count("of_dagster")
	}
	w.note(check.Entry{Do: "enqueue", Run: id, Fate: fate})
	again(ctx, func() error {
		err := w.d.EnqueueRun(run)
		if err != nil { // it may have been written in part
			_ = errors.Join(w.d.Exec("DELETE FROM run_tags WHERE run_id = ?", id),
				w.d.Exec("DELETE FROM runs WHERE run_id = ?", id))
		}
		return err
	})
	w.mu.Lock()
	w.runs[id] = true
	w.mu.Unlock()
	// A slot in a pool, as a step of Dagster takes it and leaves it when it is killed.
	if r.IntN(20) == 0 {
		again(ctx, func() error {
			return errors.Join(
				w.d.ExecIndex("INSERT INTO concurrency_slots (concurrency_key, run_id, step_key, deleted) VALUES "+
					"('chaos', ?, 'only', false)", id),
				w.d.ExecIndex("INSERT INTO pending_steps (concurrency_key, run_id, step_key, priority, "+
					"assigned_timestamp) VALUES ('chaos', ?, 'only', 0, CURRENT_TIMESTAMP)", id))
		})
		w.count("slot")
	}
}

// step returns the script of a run's step. It records when it begins and ends, and first whether
// another step of the same run is alive. In a container, where processes are numbered anew, an
// earlier step may have had the number that this one has.
func step(file string, seconds float64, code int) string {
	const beside = "p=$(sed -n 's/^begin //p' %s 2>/dev/null | tail -n 1); [ -z \"$p\" ] || [ $p = $$ ] || " +
		"! grep -aqs %[1]s /proc/$p/cmdline || echo beside $p >> %[1]s; "
	return fmt.Sprintf(beside+"echo begin $$ >> %[1]s; sleep %.3f || exit 9; echo end >> %[1]s; exit %[3]d", file,
		seconds, code)
}

func (w *world) count(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counts[what]++
}

const unfinished = "SELECT count(*) FROM runs WHERE pipeline_name <> 'foreign' AND status NOT IN ('SUCCESS', " +
	"'FAILURE', 'CANCELED')"

func (w *world) unfinished() (int, error) {
	text, err := w.d.Text(unfinished)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(text)
}

// wait waits until no more than most runs are unfinished.
func (w *world) wait(ctx context.Context, within time.Duration, most int) error {
	ends := time.Now().Add(within)
	for {
		n, err := w.unfinished()
		if err == nil && n <= most {
			return nil
		}
		if time.Now().After(ends) || ctx.Err() != nil {
			return errors.Join(fmt.Errorf("%d runs are unfinished after %s", n, within), err, ctx.Err())
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// victims returns the processes of this world whose command line contains text, with their runs.
func (w *world) victims(text string) map[int]string {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline") // the pattern is valid
	found := map[int]string{}
	for _, f := range files {
		line, err := os.ReadFile(f)
		if err != nil || !bytes.Contains(line, []byte(text)) || !bytes.Contains(line, []byte(w.dir)) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f)))
		if err != nil {
			continue
		}
		w.mu.Lock()
		for id := range w.runs {
			if bytes.Contains(line, []byte(id)) {
				found[pid] = id
			}
		}
		w.mu.Unlock()
	}
	// Leave out the child of a victim that has not become another program yet. If it were killed,
	// that would look like a step that fails.
	maps.DeleteFunc(found, func(pid int, _ string) bool {
		_, ofVictim := found[parent(pid)]
		return ofVictim
	})
	return found
}

// parent returns the parent of a process, or 0 if the process has ended.
func parent(pid int) int {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)) // it may have ended
	_, rest, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 2 {
		return 0
	}
	ppid, _ := strconv.Atoi(fields[1]) // the kernel wrote it
	return ppid
}

// meddles does to runs and workers what users, kernels and machines do.
func (w *world) meddles(ctx context.Context, r *rand.Rand) {
	for ctx.Err() == nil {
		pause(ctx, time.Duration(30+r.IntN(250))*time.Millisecond)
		switch n := r.IntN(10); {
		case n == 0 && w.lasting:
			w.killOne(r, "kill_worker", "resume_run")
		case n < 4:
			w.killOne(r, "kill_worker", "execute_run")
		case n < 5:
			w.killOne(r, "kill_supervisor", "\x00dagster-run-")
		default:
			w.end(ctx, r, n)
		}
	}
}

func (w *world) killOne(r *rand.Rand, do, text string) {
	victims := w.victims(text)
	pids := slices.Sorted(maps.Keys(victims))
	if len(pids) == 0 {
		return
	}
	pid := pids[r.IntN(len(pids))]
	if w.image != "" && lost(pid) {
		return
	}
	w.note(check.Entry{Do: do, Run: victims[pid]})
	_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended
}

var containerID = regexp.MustCompile("[0-9a-f]{64}")

// lost reports whether a process belongs to a container that Docker's engine does not know to be
// running. That happens if the engine was killed while it started the container. No one would learn
// of the end of such a process.
func lost(pid int) bool {
	groups, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid)) // it may have ended
	id := containerID.Find(groups)
	if id == nil {
		return false
	}
	// While the engine is away, it does not know either.
	out, _ := exec.Command("docker", "inspect", "-f", "{{.State.Running}}", string(id)).Output()
	return strings.TrimSpace(string(out)) != "true"
}

// end cancels a run, cancels it by force, or deletes it.
func (w *world) end(ctx context.Context, r *rand.Rand, n int) {
	statuses := "'STARTED', 'STARTING', 'QUEUED'"
	if n < 7 {
		statuses = "'STARTED'"
	}
	id, err := w.d.Text("SELECT run_id FROM runs WHERE pipeline_name <> 'foreign' AND status IN (" + statuses +
		") ORDER BY random() LIMIT 1")
	if err != nil || id == "" || r.IntN(3) > 0 {
		return
	}
	run := dagster.NewCommandRun(id, "job", dagster.Encode(map[string]any{}), nil)
	switch {
	case n < 7:
		w.note(check.Entry{Do: "cancel", Run: id})
		// In two steps, as Dagster writes it. It may fail.
		_ = w.d.Event(dagster.NewEvent(run, dagster.RunCanceling, time.Now(), ""))
	case n < 9:
		w.note(check.Entry{Do: "force", Run: id})
		_ = w.d.Event(dagster.NewEvent(run, dagster.RunCanceled, time.Now(), "")) // as above
	default:
		w.note(check.Entry{Do: "delete", Run: id})
		again(ctx, func() error {
			return errors.Join(w.d.Exec("DELETE FROM run_tags WHERE run_id = ?", id),
				w.d.Exec("DELETE FROM runs WHERE run_id = ?", id))
		})
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// own returns a run that Dagster's own worker executes.
func (w *world) own(id, file string, seconds float64) dagster.Run {
	run := dagster.NewSampleRun(id, "command_job", "witness", "", nil)
	text := func(v any) string { return string(dagster.Encode(v)) }
	body := run.Body()
	for was, is := range map[string]string{
		`"executable_path": "python"`: `"executable_path": ` + text(w.python),
		`"module": "sample"`:          `"module": "witness"`,
		`"working_directory": null`:   `"working_directory": ` + text(w.dir),
		`"run_config": {}`: `"run_config": ` +
			text(map[string]any{"ops": map[string]any{
				"only": map[string]any{"config": map[string]any{"file": file, "seconds": seconds}}}}),
	} {
		if strings.Count(body, was) != 1 {
			panic(fmt.Sprintf("%s: not once in %s", was, body))
		}
		body = strings.Replace(body, was, is, 1)
	}
	run, err := dagster.ParseRun(body)
	if err != nil { // it was made just above
		panic(err)
	}
	return run
}

// breaks breaks daemons, network and database.
func (w *world) breaks(ctx context.Context, r *rand.Rand) {
	faults := w.faults(ctx, r)
	for ctx.Err() == nil {
		pause(ctx, time.Duration(500+r.IntN(3000))*time.Millisecond)
		if ctx.Err() == nil {
			faults[r.IntN(len(faults))](r.IntN(2))
		}
	}
}

// faults returns the faults that are possible for this instance. i is a daemon.
func (w *world) faults(ctx context.Context, r *rand.Rand) []func(i int) {
	all := []func(int){
		func(i int) {
			w.note(check.Entry{Do: "kill_daemon"})
			_ = w.daemon(i).Kill()
			pause(ctx, time.Duration(r.IntN(1000))*time.Millisecond)
			if err := w.start(i); err != nil {
				fmt.Println("chaos:", err)
			}
		},
		func(i int) {
			w.note(check.Entry{Do: "stop_daemon"})
			_ = w.daemon(i).Signal(syscall.SIGSTOP)
			pause(ctx, time.Duration(500+r.IntN(3500))*time.Millisecond)
			_ = w.daemon(i).Signal(syscall.SIGCONT)
		},
		func(i int) { w.steps(i, r) },
	}
	if crash := os.Getenv("SLIPWAY_TEST_DOCKER_CRASH"); crash != "" && w.image != "" {
		all = append(all, func(int) {
			if r.IntN(3) == 0 {
				w.crashes(ctx, "crash_docker", crash)
			}
		})
	}
	if w.disk != "" {
		all = append(all, func(int) { w.during(ctx, r, "fill_disk", w.fill) })
	}
	if w.proxy == nil {
		return all
	}
	return append(all,
		func(int) { w.during(ctx, r, "cut", w.proxy.Cut) },
		func(int) { w.during(ctx, r, "swallow", w.proxy.Swallow) },
		func(int) {
			w.during(ctx, r, "lose_answers", func(on bool) {
				w.proxy.LoseAnswers(on)
				if !on { // requests were carried out without the clients knowing
					w.proxy.Cut(true)
					w.proxy.Cut(false)
				}
			})
		},
		func(int) {
			w.during(ctx, r, "delay", func(on bool) {
				w.proxy.Delay(map[bool]time.Duration{true: time.Duration(5+r.IntN(60)) * time.Millisecond}[on])
			})
		},
		func(int) {
			w.note(check.Entry{Do: "notices"}) // repeated, late, and about runs that do not exist
			for range 50 {
				// A notice without a run is one as well.
				id, _ := w.d.Text("SELECT run_id FROM runs ORDER BY random() LIMIT 1")
				_ = w.d.Exec("SELECT pg_notify('run_events', ?)", fmt.Sprintf("%s_%d", id, r.IntN(1000)))
			}
		},
		func(int) {
			if crash := os.Getenv("SLIPWAY_TEST_PG_CRASH"); crash != "" && r.IntN(3) == 0 {
				w.crashes(ctx, "crash_postgres", crash)
			}
		})
}

// killsEngine kills Docker's engine again and again.
func (w *world) killsEngine(ctx context.Context, r *rand.Rand) {
	crash := os.Getenv("SLIPWAY_TEST_DOCKER_CRASH")
	for crash != "" && w.image != "" && ctx.Err() == nil {
		w.crashes(ctx, "crash_docker", crash)
		pause(ctx, w.engine/2+time.Duration(r.Int64N(int64(w.engine))))
	}
}

// crashes runs a command that kills a server and starts it again.
func (w *world) crashes(ctx context.Context, what, command string) {
	w.note(check.Entry{Do: what})
	if out, err := exec.CommandContext(context.WithoutCancel(ctx), "sh", "-c", command).CombinedOutput(); err != nil {
		fmt.Printf("chaos: %s: %v\n%s", what, err, out)
	}
}

// ballast is the file that fills the disk.
const ballast = "ballast"

// fill leaves no space in the file system of the instance, or frees it.
func (w *world) fill(on bool) {
	file := filepath.Join(w.home, ballast)
	if !on {
		_ = os.Remove(file)
		return
	}
	f, err := os.Create(file)
	if err != nil {
		return
	}
	piece := make([]byte, 1<<20)
	for err == nil { // the last pieces get smaller
		if _, err = f.Write(piece); err != nil && len(piece) > 512 {
			piece, err = piece[:len(piece)/2], nil
		}
	}
	_ = f.Close()
}

// during switches a fault on for some time.
func (w *world) during(ctx context.Context, r *rand.Rand, what string, set func(bool)) {
	w.note(check.Entry{Do: what})
	set(true)
	pause(ctx, time.Duration(100+r.IntN(3000))*time.Millisecond)
	set(false)
}

// mend ends every fault.
func (w *world) mend() {
	w.fill(false)
	_ = os.Remove(w.moods()) // the file may not exist
	if w.proxy != nil {
		w.proxy.Swallow(false)
		w.proxy.LoseAnswers(false)
		w.proxy.Delay(0)
		w.proxy.Cut(false)
	}
	if w.lasting {
		return
	}
	for i := range w.daemons {
		if err := w.setClock(i, 0); err != nil {
			fmt.Println("chaos: clock:", err)
		}
		_ = w.daemon(i).Signal(syscall.SIGCONT)
		if w.daemon(i).Signal(syscall.Signal(0)) != nil { // the daemon has ended
			if err := w.start(i); err != nil {
				fmt.Println("chaos:", err)
			}
		}
	}
}
