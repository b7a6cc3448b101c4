package k8s

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"

	"github.com/slipway-run/slipway/launcher"
)

// An informerSet has the informers of one launcher: for Jobs and pods with Slipway's labels, in
// each namespace that may have some. They run while there is a watcher.
type informerSet struct {
	l      *Launcher
	ctx    context.Context // of the informers
	cancel context.CancelFunc

	mu       sync.Mutex
	spaces   map[string]*space // by namespace
	watchers map[*watcher]bool
	fresh    map[string]*batchv1.Job // just created; the watch has not reported them yet
	tails    map[string][]string     // last lines of ended workers, by the pod's UID
	details  map[string]detail       // events of workers that start slowly, by the UID of the pod or Job
	again    map[string]bool         // Jobs that will be looked at again later
	asking   *rate.Limiter           // limits requests for events
	closed   bool
}

// A space is the informers of one namespace.
type space struct {
	jobs, pods, steps cache.SharedIndexInformer
	broken            map[string]error // by what is watched: the error of a watch that has failed and not come back
}

// A watcher is one caller of Watch. It records which workers have changed since the caller looked.
type watcher struct {
	mu      sync.Mutex
	changed map[string]bool
	wake    chan struct{}
}

func (w *watcher) note(key string) {
	w.mu.Lock()
	w.changed[key] = true
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *watcher) take() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var keys []string
	for k := range w.changed {
		keys = append(keys, k)
	}
	clear(w.changed)
	return keys
}

func newInformerSet(l *Launcher) *informerSet {
	set := &informerSet{l: l, spaces: map[string]*space{}, watchers: map[*watcher]bool{},
		fresh: map[string]*batchv1.Job{}, tails: map[string][]string{}, details: map[string]detail{},
		again: map[string]bool{}, asking: rate.NewLimiter(eventsPerSecond, 5)}
	for _, namespace := range append([]string{l.config.Namespace}, l.config.Namespaces...) {
		set.spaces[namespace] = nil
	}
	if slices.Contains(l.config.Namespaces, allNamespaces) {
		set.spaces = map[string]*space{metav1.NamespaceAll: nil}
	}
	return set
}

// allNamespaces means all namespaces, in the settings.
const allNamespaces = "*"

func (set *informerSet) close() {
	set.mu.Lock()
	defer set.mu.Unlock()
	set.closed = true
	set.stop()
}

func (set *informerSet) stop() {
	if set.cancel != nil {
		set.cancel()
	}
	for namespace := range set.spaces {
		set.spaces[namespace] = nil
	}
	set.cancel = nil
	clear(set.fresh)
}

// later makes the watchers look at a Job again after some time, even if it has not changed.
func (set *informerSet) later(key string, after time.Duration) {
	set.mu.Lock()
	defer set.mu.Unlock()
	if set.again[key] || len(set.watchers) == 0 {
		return
	}
	set.again[key] = true
	time.AfterFunc(after+10*time.Millisecond, func() {
		set.mu.Lock()
		defer set.mu.Unlock()
		delete(set.again, key)
		for w := range set.watchers {
			w.note(key)
		}
	})
}

// namespaces returns the namespaces that may have workers.
func (set *informerSet) namespaces() []string {
	set.mu.Lock()
	defer set.mu.Unlock()
	var out []string
	for namespace := range set.spaces {
		out = append(out, namespace)
	}
	slices.Sort(out)
	return out
}

// knows adds a namespace in which there is a worker.
func (set *informerSet) knows(namespace string) {
	set.mu.Lock()
	defer set.mu.Unlock()
	_, all := set.spaces[metav1.NamespaceAll]
	if _, ok := set.spaces[namespace]; ok || all || set.closed {
		return
	}
	set.spaces[namespace] = nil
	if set.cancel != nil {
		set.start(namespace)
	}
}

// in returns the informers that see a namespace.
func (set *informerSet) in(namespace string) *space {
	if s := set.spaces[namespace]; s != nil {
		return s
	}
	return set.spaces[metav1.NamespaceAll]
}

// made records a Job that was just created.
func (set *informerSet) made(job *batchv1.Job) {
	set.knows(job.Namespace)
	set.mu.Lock()
	defer set.mu.Unlock()
	if s := set.in(job.Namespace); s == nil {
		return
	} else if _, there, _ := s.jobs.GetStore().GetByKey(job.Namespace + "/" + job.Name); there {
		return
	}
	maps.DeleteFunc(set.fresh, func(_ string, j *batchv1.Job) bool {
		return time.Since(j.CreationTimestamp.Time) > freshFor
	})
	set.fresh[job.Namespace+"/"+job.Name] = job
}

// freshFor is how long a Job that was created counts as existing although the watch has not
// reported it.
const freshFor = time.Minute

// start starts the informers of a namespace. The caller holds mu.
func (set *informerSet) start(namespace string) {
	s := &space{broken: map[string]error{}}
	set.spaces[namespace] = s
	ours := informers.NewSharedInformerFactoryWithOptions(set.l.client, 0, informers.WithNamespace(namespace),
		informers.WithTransform(slim),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.LabelSelector = instanceLabel }))
	s.jobs, s.pods = ours.Batch().V1().Jobs().Informer(), ours.Core().V1().Pods().Informer()
	set.follow(s, "jobs", s.jobs, func(o metav1.Object) string { return o.GetNamespace() + "/" + o.GetName() })
	set.follow(s, "pods", s.pods, func(o metav1.Object) string {
		return o.GetNamespace() + "/" + o.GetLabels()[batchv1.JobNameLabel]
	})
	if err := s.pods.AddIndexers(cache.Indexers{byJob: func(o any) ([]string, error) {
		pod, ok := o.(*corev1.Pod)
		if !ok {
			return nil, nil
		}
		return []string{pod.Namespace + "/" + pod.Labels[batchv1.JobNameLabel]}, nil
	}}); err != nil {
		set.l.log.Error("kubernetes: the pods have no index", "err", err)
	}
	ours.Start(set.ctx.Done())
	if set.l.config.OwnSteps {
		steps := informers.NewSharedInformerFactoryWithOptions(set.l.client, 0, informers.WithNamespace(namespace),
			informers.WithTransform(slim),
			informers.WithTweakListOptions(func(o *metav1.ListOptions) {
				o.LabelSelector = componentLabel + "=" + stepWorker + "," + dagsterRunLabel + ",!" + instanceLabel
			}))
		s.steps = steps.Batch().V1().Jobs().Informer()
		set.followSteps(set.ctx, s)
		steps.Start(set.ctx.Done())
	}
}

const byJob = "job"

// slim removes the unused parts of an object. Above all these are the arguments of workers: those
// of a day's ended Jobs would fill the memory.
func slim(o any) (any, error) {
	var spec *corev1.PodSpec
	switch o := o.(type) {
	case *batchv1.Job:
		o.ManagedFields, spec = nil, &o.Spec.Template.Spec
	case *corev1.Pod:
		o.ManagedFields, spec = nil, &o.Spec
	default:
		return o, nil
	}
	containers := make([]corev1.Container, len(spec.Containers))
	for i, c := range spec.Containers {
		containers[i] = corev1.Container{Name: c.Name, Image: c.Image}
	}
	*spec = corev1.PodSpec{
		Containers: containers, NodeName: spec.NodeName, RestartPolicy: spec.RestartPolicy,
		TerminationGracePeriodSeconds: spec.TerminationGracePeriodSeconds,
		ActiveDeadlineSeconds:         spec.ActiveDeadlineSeconds,
	}
	return o, nil
}

// follow notifies the watchers of what an informer reports, and records when its watch breaks.
func (set *informerSet) follow(s *space, what string, informer cache.SharedIndexInformer,
	key func(metav1.Object) string) {
	tell := func(o any) {
		if gone, ok := o.(cache.DeletedFinalStateUnknown); ok {
			o = gone.Obj
		}
		m, ok := o.(metav1.Object)
		if !ok {
			return
		}
		set.mu.Lock()
		defer set.mu.Unlock()
		if what == "jobs" {
			delete(set.fresh, key(m))
		}
		for w := range set.watchers {
			w.note(key(m))
		}
	}
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: tell, UpdateFunc: func(_, o any) {
		tell(o)
	}, DeleteFunc: tell})
	err = errors.Join(err, informer.SetWatchErrorHandlerWithContext(
		func(ctx context.Context, r *cache.Reflector, err error) {
			if apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
				cache.DefaultWatchErrorHandler(ctx, r, err)
				return // the informer lists again
			}
			set.mu.Lock()
			s.broken[what] = err
			set.mu.Unlock()
			if ctx.Err() == nil {
				set.l.log.WarnContext(ctx, "kubernetes: a watch failed, and is tried again", "what", what, "err", err)
			}
		}))
	if err != nil {
		set.l.log.Error("kubernetes: nothing can be watched", "what", what, "err", err)
	}
}

// mended records that a watch has come back. It makes the watchers look at all workers, because
// they ignored notifications while the watch was broken.
func (set *informerSet) mended(namespace, what string) {
	set.mu.Lock()
	defer set.mu.Unlock()
	s := set.spaces[namespace]
	if s == nil || s.broken[what] == nil {
		return
	}
	delete(s.broken, what)
	for w := range set.watchers {
		for _, key := range s.jobs.GetStore().ListKeys() {
			w.note(key)
		}
	}
}

// A listener notifies the informerSet of each of its watches that an API server has begun to
// answer.
type listener struct {
	next      http.RoundTripper
	informers *informerSet
}

// RoundTrip implements [http.RoundTripper].
func (l *listener) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, err := l.next.RoundTrip(r)
	if q := r.URL.Query(); err == nil && answer.StatusCode == http.StatusOK && q.Get("watch") != "" &&
		q.Get("labelSelector") == instanceLabel {
		path := strings.Split(r.URL.Path, "/")
		namespace := metav1.NamespaceAll
		if i := slices.Index(path, "namespaces"); i > 0 && i+1 < len(path) {
			namespace = path[i+1]
		}
		l.informers.mended(namespace, path[len(path)-1])
	}
	return answer, err
}

// synced waits until the informers know all existing objects.
func (set *informerSet) synced(ctx context.Context) error {
	for ctx.Err() == nil {
		set.mu.Lock()
		whole, broken := true, error(nil)
		for namespace, s := range set.spaces {
			if s == nil {
				whole = false
				continue
			}
			err := errors.Join(s.broken["jobs"], s.broken["pods"])
			if set.l.foreign(namespace) && apierrors.IsForbidden(err) {
				continue // Health asks the API server about each of its workers
			}
			whole = whole && s.jobs.HasSynced() && s.pods.HasSynced()
			broken = errors.Join(broken, err)
		}
		set.mu.Unlock()
		if whole {
			return nil
		}
		if broken != nil {
			return asked(broken)
		}
		select {
		case <-ctx.Done():
		case <-time.After(5 * time.Millisecond):
		}
	}
	return ctx.Err()
}

// view returns a Job and its pods as the watches know them. It returns false if the watches are
// incomplete or do not know the Job.
func (set *informerSet) view(namespace, name string) (*batchv1.Job, []*corev1.Pod, bool) {
	set.mu.Lock()
	defer set.mu.Unlock()
	s := set.in(namespace)
	if s == nil || len(s.broken) > 0 || !s.jobs.HasSynced() || !s.pods.HasSynced() {
		return nil, nil, false
	}
	key := namespace + "/" + name
	got, ok, err := s.jobs.GetStore().GetByKey(key)
	if err != nil || !ok {
		job := set.fresh[key]
		return job, nil, job != nil && time.Since(job.CreationTimestamp.Time) < freshFor
	}
	job := got.(*batchv1.Job)
	items, err := s.pods.GetIndexer().ByIndex(byJob, key)
	if err != nil {
		return nil, nil, false
	}
	var pods []*corev1.Pod
	for _, item := range items {
		if pod := item.(*corev1.Pod); metav1.IsControlledBy(pod, job) {
			pods = append(pods, pod)
		}
	}
	return job, pods, true
}

// Watch implements [launcher.Watcher] with informers, which recover by themselves when a watch
// breaks or expires.
func (l *Launcher) Watch(ctx context.Context) iter.Seq2[launcher.Worker, error] {
	return func(yield func(launcher.Worker, error) bool) {
		w := &watcher{changed: map[string]bool{}, wake: make(chan struct{}, 1)}
		if !l.informers.enter(w) {
			return
		}
		defer l.informers.leave(w)
		if err := l.informers.synced(ctx); err != nil {
			if ctx.Err() == nil {
				yield(launcher.Worker{}, err)
			}
			return
		}
		w.take()
		for _, key := range l.informers.keys() {
			if worker, ok := l.worker(ctx, key); ok && !yield(worker, nil) {
				return
			}
		}
		if !yield(launcher.Worker{Synced: true}, nil) {
			return
		}
		for {
			select {
			case <-ctx.Done():
				return
			case <-w.wake:
			}
			for _, key := range w.take() {
				if worker, ok := l.worker(ctx, key); ok && !yield(worker, nil) {
					return
				}
			}
		}
	}
}

// enter adds a watcher, and starts the informers for the first one.
func (set *informerSet) enter(w *watcher) bool {
	set.mu.Lock()
	defer set.mu.Unlock()
	if set.closed {
		return false
	}
	set.watchers[w] = true
	if set.cancel == nil {
		set.ctx, set.cancel = context.WithCancel(context.Background())
		for namespace := range set.spaces {
			set.start(namespace)
		}
	}
	return true
}

// leave removes a watcher, and stops the informers after the last one.
func (set *informerSet) leave(w *watcher) {
	set.mu.Lock()
	defer set.mu.Unlock()
	delete(set.watchers, w)
	if len(set.watchers) == 0 {
		set.stop()
	}
}

// keys returns the keys of the Jobs that the informers know.
func (set *informerSet) keys() []string {
	set.mu.Lock()
	defer set.mu.Unlock()
	var keys []string
	for _, s := range set.spaces {
		if s != nil {
			keys = append(keys, s.jobs.GetStore().ListKeys()...)
		}
	}
	return keys
}

// worker returns the worker of a Job that the informers know. It returns false if the Job is gone,
// or not a worker.
func (l *Launcher) worker(ctx context.Context, key string) (launcher.Worker, bool) {
	namespace, name, _ := strings.Cut(key, "/")
	job, pods, ok := l.informers.view(namespace, name)
	if !ok {
		return launcher.Worker{}, false
	}
	w, ok := workerOf(job)
	if ok {
		w.Health = l.healthOf(ctx, job, pods)
	}
	return w, ok
}

// workerOf returns the worker that a Job's labels name, and false if it is not one of Slipway's.
func workerOf(job *batchv1.Job) (launcher.Worker, bool) {
	attempt, err := strconv.Atoi(job.Labels[attemptLabel])
	w := launcher.Worker{
		ID: launcher.ID{Run: job.Labels[runLabel], Attempt: attempt}, Instance: job.Labels[instanceLabel],
		Handle: launcher.Handle(job.Namespace + "/" + job.Name),
	}
	return w, err == nil && w.Instance != "" && w.ID.Check() == nil &&
		strings.HasPrefix(job.Name, "dagster-run-"+w.ID.RunName())
}

// List implements [launcher.Lister].
func (l *Launcher) List(ctx context.Context, f launcher.Filter) iter.Seq2[launcher.Worker, error] {
	return func(yield func(launcher.Worker, error) bool) {
		if f.Runs != nil && len(f.Runs) == 0 {
			return
		}
		selector := instanceLabel
		if f.Instance != "" {
			selector += "=" + labelText(f.Instance)
		}
		if len(f.Runs) > 0 && len(f.Runs) <= 50 {
			selector += fmt.Sprintf(",%s in (%s)", runLabel, strings.Join(f.Runs, ","))
		}
		for _, namespace := range l.informers.namespaces() {
			jobs, pods, err := l.list(ctx, namespace, selector)
			if f.Runs == nil && l.foreign(namespace) && apierrors.IsForbidden(err) {
				// A run that is looked for must not seem absent.
				l.log.WarnContext(ctx, "the workers in the namespace of a code location cannot be listed",
					"namespace", namespace, "err", err)
				continue
			}
			if err != nil {
				yield(launcher.Worker{}, asked(err))
				return
			}
			for i := range jobs {
				w, ok := workerOf(&jobs[i])
				if !ok || !f.Wants(w.ID.Run) {
					continue
				}
				w.Health = l.healthOf(ctx, &jobs[i], pods[jobs[i].UID])
				if !yield(w, nil) {
					return
				}
			}
		}
	}
}

// pageSize is the number of objects in one answer of a list.
const pageSize = 500

// list returns the Jobs that a selector finds in a namespace, and their pods by the Job's UID.
func (l *Launcher) list(ctx context.Context,
	namespace, selector string) ([]batchv1.Job, map[types.UID][]*corev1.Pod, error) {
	var jobs []batchv1.Job
	pods := map[types.UID][]*corev1.Pod{}
	for o := (metav1.ListOptions{LabelSelector: selector, Limit: pageSize}); ; {
		page, err := l.client.BatchV1().Jobs(namespace).List(ctx, o)
		if err != nil {
			return nil, nil, err
		}
		jobs = append(jobs, page.Items...)
		if o.Continue = page.Continue; o.Continue == "" {
			break
		}
	}
	if len(jobs) == 0 {
		return nil, nil, nil
	}
	for o := (metav1.ListOptions{LabelSelector: selector, Limit: pageSize}); ; {
		page, err := l.client.CoreV1().Pods(namespace).List(ctx, o)
		if err != nil {
			return nil, nil, err
		}
		for i := range page.Items {
			if owner := metav1.GetControllerOf(&page.Items[i]); owner != nil {
				pods[owner.UID] = append(pods[owner.UID], &page.Items[i])
			}
		}
		if o.Continue = page.Continue; o.Continue == "" {
			return jobs, pods, nil
		}
	}
}
