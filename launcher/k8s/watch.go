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

// A hub has the informers of one launcher: Jobs and pods with our labels in each namespace where there may be some. They run
// while somebody watches.
type hub struct {
	l      *Launcher
	ctx    context.Context // of the informers
	cancel context.CancelFunc

	mu       sync.Mutex
	spaces   map[string]*space // by namespace
	watchers map[*watcher]bool
	fresh    map[string]*batchv1.Job // made a moment ago, which the watch has not brought yet
	tails    map[string][]string     // last lines of ended workers, by the pod's UID
	details  map[string]detail       // what events say of workers that start slowly, by the pod's or Job's UID
	again    map[string]bool         // Jobs that are looked at again after some time
	asking   *rate.Limiter           // of events
	closed   bool
}

// A space is the informers of one namespace.
type space struct {
	jobs, pods, steps cache.SharedIndexInformer
	broken            map[string]error // by what is watched: the watch has failed and not come back
}

// A watcher is one caller of Watch: which workers have changed since it looked.
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

func newHub(l *Launcher) *hub {
	h := &hub{l: l, spaces: map[string]*space{}, watchers: map[*watcher]bool{}, fresh: map[string]*batchv1.Job{}, tails: map[string][]string{}, details: map[string]detail{}, again: map[string]bool{}, asking: rate.NewLimiter(eventsPerSecond, 5)}
	for _, namespace := range append([]string{l.config.Namespace}, l.config.Namespaces...) {
		h.spaces[namespace] = nil
	}
	if slices.Contains(l.config.Namespaces, allNamespaces) {
		h.spaces = map[string]*space{metav1.NamespaceAll: nil}
	}
	return h
}

// allNamespaces stands in the settings for all of them.
const allNamespaces = "*"

func (h *hub) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	h.stop()
}

func (h *hub) stop() {
	if h.cancel != nil {
		h.cancel()
	}
	for namespace := range h.spaces {
		h.spaces[namespace] = nil
	}
	h.cancel = nil
	clear(h.fresh)
}

// later has the watchers look at a Job again after a time, though nothing may have happened to it.
func (h *hub) later(key string, after time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.again[key] || len(h.watchers) == 0 {
		return
	}
	h.again[key] = true
	time.AfterFunc(after+10*time.Millisecond, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.again, key)
		for w := range h.watchers {
			w.note(key)
		}
	})
}

// namespaces are those in which there may be workers.
func (h *hub) namespaces() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []string
	for namespace := range h.spaces {
		out = append(out, namespace)
	}
	slices.Sort(out)
	return out
}

// knows adds a namespace in which there is a worker.
func (h *hub) knows(namespace string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, all := h.spaces[metav1.NamespaceAll]
	if _, ok := h.spaces[namespace]; ok || all || h.closed {
		return
	}
	h.spaces[namespace] = nil
	if h.cancel != nil {
		h.start(namespace)
	}
}

// in is the informers that see a namespace.
func (h *hub) in(namespace string) *space {
	if s := h.spaces[namespace]; s != nil {
		return s
	}
	return h.spaces[metav1.NamespaceAll]
}

// made notes a Job that was made a moment ago.
func (h *hub) made(job *batchv1.Job) {
	h.knows(job.Namespace)
	h.mu.Lock()
	defer h.mu.Unlock()
	if s := h.in(job.Namespace); s == nil {
		return
	} else if _, there, _ := s.jobs.GetStore().GetByKey(job.Namespace + "/" + job.Name); there {
		return
	}
	maps.DeleteFunc(h.fresh, func(_ string, j *batchv1.Job) bool { return time.Since(j.CreationTimestamp.Time) > freshFor })
	h.fresh[job.Namespace+"/"+job.Name] = job
}

// freshFor is how long a Job that was made is believed to be there, though the watch has not brought it.
const freshFor = time.Minute

// start starts the informers of a namespace. The caller holds mu.
func (h *hub) start(namespace string) {
	s := &space{broken: map[string]error{}}
	h.spaces[namespace] = s
	ours := informers.NewSharedInformerFactoryWithOptions(h.l.client, 0, informers.WithNamespace(namespace), informers.WithTransform(slim),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.LabelSelector = instanceLabel }))
	s.jobs, s.pods = ours.Batch().V1().Jobs().Informer(), ours.Core().V1().Pods().Informer()
	h.follow(s, "jobs", s.jobs, func(o metav1.Object) string { return o.GetNamespace() + "/" + o.GetName() })
	h.follow(s, "pods", s.pods, func(o metav1.Object) string { return o.GetNamespace() + "/" + o.GetLabels()[batchv1.JobNameLabel] })
	if err := s.pods.AddIndexers(cache.Indexers{byJob: func(o any) ([]string, error) {
		pod, ok := o.(*corev1.Pod)
		if !ok {
			return nil, nil
		}
		return []string{pod.Namespace + "/" + pod.Labels[batchv1.JobNameLabel]}, nil
	}}); err != nil {
		h.l.log.Error("kubernetes: the pods have no index", "err", err)
	}
	ours.Start(h.ctx.Done())
	if h.l.config.OwnSteps {
		steps := informers.NewSharedInformerFactoryWithOptions(h.l.client, 0, informers.WithNamespace(namespace), informers.WithTransform(slim),
			informers.WithTweakListOptions(func(o *metav1.ListOptions) {
				o.LabelSelector = componentLabel + "=" + stepWorker + "," + dagsterRunLabel + ",!" + instanceLabel
			}))
		s.steps = steps.Batch().V1().Jobs().Informer()
		h.followSteps(h.ctx, s)
		steps.Start(h.ctx.Done())
	}
}

const byJob = "job"

// slim takes off an object what is not looked at: the arguments of workers above all, of which a day's ended Jobs would fill the memory.
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
		TerminationGracePeriodSeconds: spec.TerminationGracePeriodSeconds, ActiveDeadlineSeconds: spec.ActiveDeadlineSeconds,
	}
	return o, nil
}

// follow tells the watchers of what an informer sees, and notes when its watch breaks and comes back.
func (h *hub) follow(s *space, what string, informer cache.SharedIndexInformer, key func(metav1.Object) string) {
	tell := func(o any) {
		if gone, ok := o.(cache.DeletedFinalStateUnknown); ok {
			o = gone.Obj
		}
		m, ok := o.(metav1.Object)
		if !ok {
			return
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		if what == "jobs" {
			delete(h.fresh, key(m))
		}
		for w := range h.watchers {
			w.note(key(m))
		}
	}
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: tell, UpdateFunc: func(_, o any) { tell(o) }, DeleteFunc: tell})
	err = errors.Join(err, informer.SetWatchErrorHandlerWithContext(func(ctx context.Context, r *cache.Reflector, err error) {
		if apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
			cache.DefaultWatchErrorHandler(ctx, r, err)
			return // it lists again
		}
		h.mu.Lock()
		s.broken[what] = err
		h.mu.Unlock()
		if ctx.Err() == nil {
			h.l.log.WarnContext(ctx, "kubernetes: a watch failed, and is tried again", "what", what, "err", err)
		}
	}))
	if err != nil {
		h.l.log.Error("kubernetes: nothing can be watched", "what", what, "err", err)
	}
}

// mended notes that a watch has come back, and has the watchers look at all workers: what was told while it was broken was not looked at.
func (h *hub) mended(namespace, what string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.spaces[namespace]
	if s == nil || s.broken[what] == nil {
		return
	}
	delete(s.broken, what)
	for w := range h.watchers {
		for _, key := range s.jobs.GetStore().ListKeys() {
			w.note(key)
		}
	}
}

// A listener tells the hub of each watch of ours that an API server has begun to answer.
type listener struct {
	next http.RoundTripper
	hub  *hub
}

// RoundTrip implements [http.RoundTripper].
func (l *listener) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, err := l.next.RoundTrip(r)
	if q := r.URL.Query(); err == nil && answer.StatusCode == http.StatusOK && q.Get("watch") != "" && q.Get("labelSelector") == instanceLabel {
		path := strings.Split(r.URL.Path, "/")
		namespace := metav1.NamespaceAll
		if i := slices.Index(path, "namespaces"); i > 0 && i+1 < len(path) {
			namespace = path[i+1]
		}
		l.hub.mended(namespace, path[len(path)-1])
	}
	return answer, err
}

// synced waits until the informers have what there is.
func (h *hub) synced(ctx context.Context) error {
	for ctx.Err() == nil {
		h.mu.Lock()
		whole, broken := true, error(nil)
		for namespace, s := range h.spaces {
			if s == nil {
				whole = false
				continue
			}
			err := errors.Join(s.broken["jobs"], s.broken["pods"])
			if h.l.foreign(namespace) && apierrors.IsForbidden(err) {
				continue // its workers are asked about one by one
			}
			whole = whole && s.jobs.HasSynced() && s.pods.HasSynced()
			broken = errors.Join(broken, err)
		}
		h.mu.Unlock()
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

// view gives a Job and its pods as the watches have brought them; false if they are not whole, or do not know the Job.
func (h *hub) view(namespace, name string) (*batchv1.Job, []*corev1.Pod, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.in(namespace)
	if s == nil || len(s.broken) > 0 || !s.jobs.HasSynced() || !s.pods.HasSynced() {
		return nil, nil, false
	}
	key := namespace + "/" + name
	got, ok, err := s.jobs.GetStore().GetByKey(key)
	if err != nil || !ok {
		job := h.fresh[key]
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

// Watch implements [launcher.Watcher] by informers, which go on by themselves when a watch breaks or expires.
func (l *Launcher) Watch(ctx context.Context) iter.Seq2[launcher.Worker, error] {
	return func(yield func(launcher.Worker, error) bool) {
		w := &watcher{changed: map[string]bool{}, wake: make(chan struct{}, 1)}
		if !l.hub.enter(w) {
			return
		}
		defer l.hub.leave(w)
		if err := l.hub.synced(ctx); err != nil {
			if ctx.Err() == nil {
				yield(launcher.Worker{}, err)
			}
			return
		}
		w.take()
		for _, key := range l.hub.keys() {
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
func (h *hub) enter(w *watcher) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return false
	}
	h.watchers[w] = true
	if h.cancel == nil {
		h.ctx, h.cancel = context.WithCancel(context.Background())
		for namespace := range h.spaces {
			h.start(namespace)
		}
	}
	return true
}

// leave removes a watcher, and ends the informers after the last one.
func (h *hub) leave(w *watcher) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.watchers, w)
	if len(h.watchers) == 0 {
		h.stop()
	}
}

// keys are the Jobs that the informers know.
func (h *hub) keys() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var keys []string
	for _, s := range h.spaces {
		if s != nil {
			keys = append(keys, s.jobs.GetStore().ListKeys()...)
		}
	}
	return keys
}

// worker is the worker of a Job that the informers know; false if it is none, or gone.
func (l *Launcher) worker(ctx context.Context, key string) (launcher.Worker, bool) {
	namespace, name, _ := strings.Cut(key, "/")
	job, pods, ok := l.hub.view(namespace, name)
	if !ok {
		return launcher.Worker{}, false
	}
	w, ok := workerOf(job)
	if ok {
		w.Health = l.healthOf(ctx, job, pods)
	}
	return w, ok
}

// workerOf is what a Job says of the worker in it; false if it is none of ours.
func workerOf(job *batchv1.Job) (launcher.Worker, bool) {
	attempt, err := strconv.Atoi(job.Labels[attemptLabel])
	w := launcher.Worker{
		ID: launcher.ID{Run: job.Labels[runLabel], Attempt: attempt}, Instance: job.Labels[instanceLabel], Handle: launcher.Handle(job.Namespace + "/" + job.Name),
	}
	return w, err == nil && w.Instance != "" && w.ID.Check() == nil && strings.HasPrefix(job.Name, "dagster-run-"+w.ID.RunName())
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
		for _, namespace := range l.hub.namespaces() {
			jobs, pods, err := l.list(ctx, namespace, selector)
			if f.Runs == nil && l.foreign(namespace) && apierrors.IsForbidden(err) { // a run that is looked for must not seem absent
				l.log.WarnContext(ctx, "the workers in the namespace of a code location cannot be listed", "namespace", namespace, "err", err)
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

// pageSize is how many objects one answer of a list has.
const pageSize = 500

// list gives the Jobs that a selector finds in a namespace, and their pods by the Job's UID.
func (l *Launcher) list(ctx context.Context, namespace, selector string) ([]batchv1.Job, map[types.UID][]*corev1.Pod, error) {
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
