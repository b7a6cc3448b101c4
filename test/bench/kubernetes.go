package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/instance"
	"github.com/slipway-run/slipway/internal/storage"
	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/launcher/k8s"
)

// jobCallsBound is how many requests a run may cost, not counting watches.
const jobCallsBound = 3

// jobs measures how fast queued runs become pods of a cluster, for Slipway and for Dagster's
// K8sRunLauncher under the stock daemon.
func jobs(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("bench kubernetes", flag.ContinueOnError)
	n := flags.Int("n", 200, "how many runs are queued at once")
	alone := flags.Bool("alone", false, "measure Slipway only")
	if err := flags.Parse(args); err != nil {
		return err
	}
	kubeconfig, image := os.Getenv("SLIPWAY_TEST_KUBECONFIG"), os.Getenv("SLIPWAY_TEST_IMAGE")
	if kubeconfig == "" || image == "" || !slices.Contains(storages(), "postgres") {
		return errors.New(
			"there is no cluster, image or Postgres here: hack/with-postgres hack/with-docker hack/with-kubernetes " +
				"go run ./test/bench kubernetes starts all three")
	}
	access, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "slipway-bench-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	b := &jobBench{dir: dir, access: access, image: image, n: *n}
	ours, err := b.run(ctx, "slipway", b.slipway)
	if err != nil {
		return err
	}
	if !*alone {
		for _, v := range []stockVariant{{5, false}, {1, true}} {
			theirs, err := b.run(ctx, v.String(), func(ctx context.Context, w *jobWorld) error {
				return b.stock(ctx, w, v)
			})
			if err != nil {
				return err
			}
			fmt.Printf("slipway is %.1f times as fast to p99, and makes %.1f times as many Jobs a second\n",
				theirs.P99/ours.P99, ours.PerSecond/theirs.PerSecond)
		}
	}
	if ours.calls > jobCallsBound {
		return errors.New("the bound was missed")
	}
	return nil
}

type jobBench struct {
	dir    string
	access *rest.Config
	image  string
	n      int
}

// jobWorld is a namespace of a cluster behind a proxy that counts requests, and what was seen
// there.
type jobWorld struct {
	namespace, kubeconfig string
	mu                    sync.Mutex
	calls                 map[string]int
	jobs, pods            map[string]time.Time // when they were seen, by run
	queued                map[string]time.Time
}

type jobResult struct {
	comparison
	calls float64
}

func (b *jobBench) run(ctx context.Context, system string,
	f func(context.Context, *jobWorld) error) (jobResult, error) {
	none := jobResult{}
	client, err := kubernetes.NewForConfig(b.access)
	if err != nil {
		return none, err
	}
	w := &jobWorld{namespace: "bench-" + uuid.NewString()[:8], calls: map[string]int{}, jobs: map[string]time.Time{},
		pods: map[string]time.Time{}}
	if _, err := client.CoreV1().Namespaces().Create(ctx,
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: w.namespace}}, metav1.CreateOptions{}); err != nil {
		return none, err
	}
	defer func() {
		// The cluster is only for tests.
		_ = client.CoreV1().Namespaces().Delete(context.WithoutCancel(ctx), w.namespace, metav1.DeleteOptions{})
	}()
	transport, err := rest.TransportFor(b.access)
	if err != nil {
		return none, err
	}
	to, err := url.Parse(b.access.Host)
	if err != nil {
		return none, err
	}
	proxy := &httputil.ReverseProxy{Transport: transport, FlushInterval: -1,
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) {}, Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(to)
		}}
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.count(r)
		defer func() { _ = recover() }() // a watch whose client has left
		proxy.ServeHTTP(rw, r)
	}))
	defer server.CloseClientConnections()
	w.kubeconfig = filepath.Join(b.dir, w.namespace)
	text := fmt.Sprintf(
		"apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: %q}}]\ncontexts: [{name: c, context: "+
			"{cluster: c, user: u}}]\nusers: [{name: u, user: {}}]\ncurrent-context: c\n", server.URL)
	if err := os.WriteFile(w.kubeconfig, []byte(text), 0o600); err != nil {
		return none, err
	}
	watching, stop := context.WithCancel(ctx)
	defer stop()
	if err := w.watch(watching, client); err != nil {
		return none, err
	}
	if err := f(ctx, w); err != nil {
		return none, fmt.Errorf("%s: %w", system, err)
	}
	stop()
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.result(system, b.n)
}

// count counts a request by its verb and resource.
func (w *jobWorld) count(r *http.Request) {
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	what, verb := "other", r.Method
	if i := slices.Index(parts, "namespaces"); i >= 0 && i+2 < len(parts) {
		if what = parts[i+2]; len(parts) > i+4 {
			what += "/" + parts[i+4]
		}
		if len(parts) == i+3 && verb == http.MethodGet {
			verb = "LIST"
		}
	}
	if r.URL.Query().Get("watch") == "true" {
		verb = "WATCH"
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls[verb+" "+what]++
}

// watch records when Jobs and pods of runs appear, until ctx ends. It does not go through the
// proxy.
func (w *jobWorld) watch(ctx context.Context, client kubernetes.Interface) error {
	f := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithNamespace(w.namespace))
	for informer, into := range map[cache.SharedIndexInformer]map[string]time.Time{
		f.Batch().V1().Jobs().Informer(): w.jobs, f.Core().V1().Pods().Informer(): w.pods} {
		_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: func(o any) {
			w.mu.Lock()
			defer w.mu.Unlock()
			if run := o.(metav1.Object).GetLabels()["dagster/run-id"]; into[run].IsZero() {
				into[run] = time.Now()
			}
		}})
		if err != nil {
			return err
		}
	}
	f.Start(ctx.Done())
	f.WaitForCacheSync(ctx.Done())
	return nil
}

// wait waits until every run has a pod.
func (w *jobWorld) wait(ctx context.Context, n int) error {
	for {
		w.mu.Lock()
		got := len(w.pods)
		w.mu.Unlock()
		if got >= n {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d of %d runs have a pod: %w", got, n, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (w *jobWorld) result(system string, n int) (jobResult, error) {
	var waits, toJob []time.Duration
	var made []time.Time
	for run, at := range w.queued {
		if w.pods[run].IsZero() || w.jobs[run].IsZero() {
			return jobResult{}, fmt.Errorf("%s: run %s: of %d, %d Jobs and %d pods were seen", system, run, n,
				len(w.jobs), len(w.pods))
		}
		waits, toJob, made = append(waits, w.pods[run].Sub(at)), append(toJob, w.jobs[run].Sub(at)),
			append(made, w.jobs[run])
	}
	slices.SortFunc(made, time.Time.Compare)
	r, j := summarize(system, waits, 0), summarize(system, toJob, 0)
	out := jobResult{comparison: comparison{P50: r.P50, P99: r.P99,
		PerSecond: float64(n-1) / made[len(made)-1].Sub(made[0]).Seconds()}}
	fmt.Printf("%-36s n=%d  QUEUED to Job p50 %.0f ms, p99 %.0f ms; to pod p50 %.0f ms, p99 %.0f ms; %.1f Jobs a "+
		"second\n", system, n, j.P50, j.P99, out.P50, out.P99, out.PerSecond)
	for _, what := range slices.Sorted(maps.Keys(w.calls)) {
		fmt.Printf("  %-24s %6d, %.2f a run\n", what, w.calls[what], float64(w.calls[what])/float64(n))
		if !strings.HasPrefix(what, "WATCH ") {
			out.calls += float64(w.calls[what]) / float64(n)
		}
	}
	fmt.Printf("  %.2f requests a run, watches apart\n", out.calls)
	return out, nil
}

// slipway runs command jobs to their end: they are launched, watched and removed.
func (b *jobBench) slipway(ctx context.Context, j *jobWorld) error {
	w, err := newWorld(ctx, b.dir, "postgres", parkedYAML, fmt.Sprintf(`
queue: {max_concurrent_runs: -1}
default: k8s
allow_secrets_in_argv: true
launchers:
  k8s:
    kind: k8s
    config:
      load_incluster_config: false
      kubeconfig_file: %s
      job_namespace: %s
      job_image: %s
      image_pull_policy: Never
      env_vars: ["PATH=/opt/app:/usr/bin:/bin"]
      run_k8s_config: {pod_spec_config: {host_network: true}}
`, j.kubeconfig, j.namespace, b.image))
	if err != nil {
		return err
	}
	config := dagster.Encode(map[string]any{
		"steps": map[string]any{"only": map[string]any{"command": []string{"true"}}}})
	err = w.slipway(ctx, k8s.Kind(), func(ctx context.Context) error {
		j.queued = map[string]time.Time{}
		for range b.n {
			run := dagster.NewCommandRun(uuid.NewString(), "command", config, nil)
			if err := w.writer.EnqueueRun(run); err != nil {
				return err
			}
			j.queued[run.ID] = time.Now()
		}
		if err := j.wait(ctx, b.n); err != nil {
			return err
		}
		for id := range j.queued {
			r, err := w.await(ctx, id, func(r storage.Run) bool { return r.Status.Finished() })
			if err != nil {
				return err
			}
			if r.Status != dagster.Success {
				return fmt.Errorf("run %s is %s", id, r.Status)
			}
		}
		in, err := instance.Load(w.home, []*launcher.Kind{k8s.Kind()}, os.LookupEnv)
		if err != nil {
			return err
		}
		return j.remove(ctx, in)
	})
	return errors.Join(err, w.close())
}

// remove removes all Jobs as the daemon does, but at once: the daemon keeps them for at least ten
// minutes.
func (w *jobWorld) remove(ctx context.Context, in *instance.Instance) error {
	l, err := k8s.Kind().Open(ctx, in.Launchers["k8s"].Config, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer func() { _ = launcher.Close(l) }() // it writes nothing
	removed := map[launcher.Handle]bool{}
	for found, err := range l.(launcher.Watcher).Watch(ctx) {
		if err != nil {
			return err
		}
		if !found.Health.Status.Ended() || removed[found.Handle] {
			continue
		}
		if err := l.(launcher.Remover).Remove(ctx, found.Handle); err != nil {
			return err
		}
		if removed[found.Handle] = true; len(removed) == len(w.queued) {
			return nil
		}
	}
	return ctx.Err()
}

// stock lets the stock daemon launch runs with K8sRunLauncher. Their pods end at once, while
// Slipway's pods execute their run.
func (b *jobBench) stock(ctx context.Context, j *jobWorld, v stockVariant) error {
	packages, err := filepath.Abs(".venvs/launchers")
	if err != nil {
		return err
	}
	w, err := newWorld(ctx, b.dir, "postgres", v.yaml(fmt.Sprintf(`
run_launcher:
  module: dagster_k8s
  class: K8sRunLauncher
  config:
    load_incluster_config: false
    kubeconfig_file: %s
    job_namespace: %s
    job_image: %s
    image_pull_policy: Never
    service_account_name: default
    instance_config_map: none
    run_k8s_config: {container_config: {command: ["true"]}, pod_spec_config: {host_network: true}}
`, j.kubeconfig, j.namespace, b.image)), "")
	if err != nil {
		return err
	}
	s, stop, err := (&bencher{dir: packages}).startStock(w, filepath.Join(w.home, "workspace.yaml"))
	if err != nil {
		return err
	}
	first, err := w.enqueue(1, 0) // until the daemon is ready
	if err == nil {
		err = j.wait(ctx, 1)
	}
	if err == nil {
		if j.queued, err = w.enqueue(b.n, 0); err == nil {
			err = j.wait(ctx, b.n+len(first))
		}
	}
	stop()
	if err = errors.Join(err, w.close()); err != nil {
		text, _ := os.ReadFile(s.text) // for the message only
		return fmt.Errorf("%w\n%s", err, text)
	}
	return nil
}
